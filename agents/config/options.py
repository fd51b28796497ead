"""Options that several commands share, and their values."""

from dataclasses import dataclass
from typing import Literal

from agents.config.errors import check_at_least

TEST_EPISODES = 1000
"""Held-out episodes of an evaluation; finite data gives each of its rows once at most."""
PictureFormat = Literal["png", "pdf", "svg"]
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Threads:
    """The option of every command that computes."""

    threads: int = 1
    """Threads of one operation; one is fastest for these small networks."""

    def __post_init__(self) -> None:
        check_at_least(1, threads=self.threads)
