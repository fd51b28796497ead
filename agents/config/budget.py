"""Budgets of training runs."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """A number of seconds or of merges; exactly one of the two.

    Raises ``ValueError`` for both, for neither, and for one that is not a number above 0.
    """

    seconds: float | None = None
    """Wall time of the training loop, evaluations included; it goes on counting after a resume."""
    merges: int | None = None
    """Merges made in the environment for learning."""

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.merges is None):
            found = "no budget, seconds or" if self.seconds is None else "two budgets, seconds and"
            raise ValueError(f"{found} merges; expected one of them")
        for name, limit in [("seconds", self.seconds), ("merges", self.merges)]:
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise ValueError(f"the budget is {limit} {name}; expected a number above 0")

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"{self.seconds:g} seconds"
        return f"{self.merges} merges"

    def progress(self, seconds: float, merges: int) -> float:
        """The share of the budget that is used, from 0 to 1."""
        if self.seconds is not None:
            return min(seconds / self.seconds, 1.0)
        assert self.merges is not None  # __post_init__ has seen to it
        return min(merges / self.merges, 1.0)
