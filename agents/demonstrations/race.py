"""Which of several fixed policies demonstrates: the one whose trees the autoencoder learns best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


class Race:
    """The entrants take turns until ``end``, a share of the budget; then the winner demonstrates.

    What counts is the mean logarithm of the errors with which the autoencoder, which learns from
    all of them meanwhile, reconstructs what each has merged: a factor counts the same early, when
    errors are large, and late. Data differ in what suits them. Trees by distance keep what belongs
    together in one subtree; trees of one shape are learned faster.

    Raises ``ValueError`` without an entrant, and for an end outside [0, 1].
    """

    def __init__(self, entrants: Sequence[str], end: float) -> None:
        if not entrants:
            raise ValueError("there is no demonstrator; expected at least one fixed policy")
        if not 0 <= end <= 1:
            raise ValueError(f"the race ends at {end}; expected a share of the budget, 0 to 1")
        self.entrants, self.end = tuple(dict.fromkeys(entrants)), end
        self._totals = dict.fromkeys(self.entrants, 0.0)
        self._turns = dict.fromkeys(self.entrants, 0)

    def next(self, progress: float) -> str:
        """Who demonstrates now: whoever had the fewest turns, or the leader after the end."""
        if progress >= self.end:
            return self.leader
        return min(self.entrants, key=self._turns.__getitem__)

    @property
    def leader(self) -> str:
        """The best so far; the first entrant where nobody has had a turn."""
        return min(self.entrants, key=self._mean)

    def report(self, name: str, error: float) -> None:
        """The mean error of what this entrant has merged; one that is not finite counts as 1."""
        known = error if math.isfinite(error) else 1.0
        self._totals[name] += math.log(max(known, 1e-30))
        self._turns[name] += 1

    def _mean(self, name: str) -> float:
        return self._totals[name] / self._turns[name] if self._turns[name] else math.inf

    def state(self) -> dict[str, Any]:
        return {"totals": dict(self._totals), "turns": dict(self._turns)}

    def restore(self, state: dict[str, Any]) -> None:
        self._totals, self._turns = dict(state["totals"]), dict(state["turns"])
