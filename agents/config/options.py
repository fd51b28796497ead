"""Options that several commands share, and their values."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from agents.config.budget import Budget
from agents.config.errors import as_usage_error, check_at_least

TEST_EPISODES = 1000
"""Held-out episodes of an evaluation; finite data gives each of its rows once at most."""
PictureFormat = Literal["png", "pdf", "svg"]
Split = Literal["train", "validation", "test"]


def given_budget(seconds: float | None, merges: int | None) -> Budget | None:
    """The budget of two flags; None where neither is given.

    Raises :class:`UsageError` for both, and for one that is not above 0.
    """
    if seconds is None and merges is None:
        return None
    with as_usage_error():
        return Budget(seconds, merges)


@dataclass(frozen=True, kw_only=True)
class Threads:
    """The option of every command that computes."""

    threads: int = 1
    """Threads of one operation; one is fastest for these small networks."""

    least: ClassVar[dict[str, int]] = {}
    """The least values of other options."""

    def __post_init__(self) -> None:
        for name, least in {"threads": 1, **self.least}.items():
            check_at_least(least, **{name: getattr(self, name)})
