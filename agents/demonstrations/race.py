"""Which of several fixed policies demonstrates: the one whose trees the autoencoder learns best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

HANDICAP = 0.1
"""What the first entrant may be worse by, as a logarithm, and still win: it is what one would take
without a race, and small differences early on say little about the end."""
WARM_UP = 2 / 3
"""Share of the turns so far that do not count: early on, whatever is simplest leads."""


class Race:
    """The entrants take turns until ``end``, a share of the budget; then the winner demonstrates.

    What counts is the mean logarithm of the errors with which the autoencoder, which learns from
    all of them meanwhile, reconstructs what each has merged lately. Data differ in what suits them:
    trees by distance keep what belongs together in one subtree, trees of one shape are more alike.

    Raises ``ValueError`` without an entrant, and for an end outside [0, 1].
    """

    def __init__(self, entrants: Sequence[str], end: float) -> None:
        if not entrants:
            raise ValueError("there is no demonstrator; expected at least one fixed policy")
        if not 0 <= end <= 1:
            raise ValueError(f"the race ends at {end}; expected a share of the budget, 0 to 1")
        self.entrants, self.end = tuple(dict.fromkeys(entrants)), end
        self._errors: dict[str, list[float]] = {name: [] for name in self.entrants}

    def next(self, progress: float) -> str:
        """Who demonstrates now: whoever had the fewest turns, or the leader after the end."""
        if progress >= self.end:
            return self.leader
        return min(self.entrants, key=lambda name: len(self._errors[name]))

    @property
    def leader(self) -> str:
        """The best so far; the first entrant where nobody is better by more than its handicap."""
        first = self.entrants[0]
        return min(self.entrants, key=lambda name: self._mean(name) - HANDICAP * (name == first))

    def report(self, name: str, error: float, progress: float) -> None:
        """The mean error of what this entrant has merged; one that is not finite counts as 1.

        After the end it changes nothing.
        """
        if progress < self.end:
            known = max(error, 1e-30) if math.isfinite(error) else 1.0
            self._errors[name].append(math.log(known))

    def _mean(self, name: str) -> float:
        errors = self._errors[name]
        lately = errors[int(WARM_UP * len(errors)) :]
        return sum(lately) / len(lately) if lately else math.inf

    def state(self) -> dict[str, Any]:
        return {"errors": {name: list(errors) for name, errors in self._errors.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        self._errors = {name: list(errors) for name, errors in state["errors"].items()}
