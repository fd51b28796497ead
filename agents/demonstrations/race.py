"""Which of several fixed policies demonstrates: the one whose trees the autoencoder learns best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

KNOWN = {
    "HTM-Trees-v0": ("nearest_sorted",),
    "HTM-Crosses-v0": ("even_sorted",),
    "HTM-Digits-v0": ("balanced_sorted",),
    "HTM-Keys-v0": (),
}
"""Whose trees were best for REINFORCE on the validation split in the end. A race of a tenth of the
budget finds those of Crosses and Digits as well; on Trees ``even_sorted`` leads then, and is
overtaken. On Keys nobody demonstrates: no fixed policy listens to the key."""
ENTRANTS = ("nearest_sorted", "even_sorted", "balanced_sorted")
"""For data that nobody knows yet."""
HEAD_START = 0.1
"""What the first entrant may be worse by, as a logarithm, and still win: it is what one would take
without a race, and small differences early on say little about the end."""
BROKEN = 1e6
"""What an error that is not finite counts as."""
WARM_UP = 2 / 3
"""Share of the turns so far that do not count: early on, whatever is simplest leads."""


def demonstrators_of(env_id: str) -> tuple[str, ...]:
    """Who demonstrates on this id's data, unless somebody else is asked for; perhaps nobody."""
    return KNOWN.get(env_id, ENTRANTS)


class Race:
    """The entrants take turns until ``end``, a share of the budget; then the winner demonstrates.

    One alone has won at once.

    What counts is the mean logarithm of the errors with which the autoencoder, which learns from
    all of them meanwhile, reconstructs what each has merged lately. Data differ in what suits them:
    trees by distance keep what belongs together in one subtree, trees of one shape are more alike.

    Nobody may enter; then nobody demonstrates. Raises ``ValueError`` for an end outside [0, 1].
    """

    def __init__(self, entrants: Sequence[str], end: float) -> None:
        if not 0 <= end <= 1:
            raise ValueError(f"the race ends at {end}; expected a share of the budget, 0 to 1")
        self.entrants = tuple(dict.fromkeys(entrants))
        self.end = end if len(self.entrants) > 1 else 0.0
        self._errors: dict[str, list[float]] = {name: [] for name in self.entrants}

    def next(self, progress: float) -> str:
        """Who demonstrates now: whoever had the fewest turns, or the leader after the end.

        Raises ``ValueError`` where nobody entered.
        """
        if progress >= self.end:
            return self.leader
        return min(self.entrants, key=lambda name: len(self._errors[name]))

    @property
    def leader(self) -> str:
        """The best so far; the first entrant where nobody beats it by more than its head start.

        Raises ``ValueError`` where nobody entered.
        """
        if not self.entrants:
            raise ValueError("there is no demonstrator; expected at least one fixed policy")
        first = self.entrants[0]
        return min(self.entrants, key=lambda name: self._mean(name) - HEAD_START * (name == first))

    def report(self, name: str, error: float, progress: float) -> None:
        """The mean error of what this entrant has merged; after the end it changes nothing."""
        if progress < self.end:
            known = max(error, 1e-30) if math.isfinite(error) else BROKEN
            self._errors[name].append(math.log(known))

    def _mean(self, name: str) -> float:
        laps = min(map(len, self._errors.values()))  # the same ones for everybody
        errors = self._errors[name][:laps] if laps else self._errors[name]
        lately = errors[int(WARM_UP * len(errors)) :]
        return sum(lately) / len(lately) if lately else math.inf

    def state(self) -> dict[str, Any]:
        return {"errors": {name: list(errors) for name, errors in self._errors.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        self._errors = {name: list(errors) for name, errors in state["errors"].items()}
