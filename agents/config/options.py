"""Options that several commands share, and their values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from agents.config.budget import Budget
from agents.config.errors import as_usage_error, check_at_least, did_you_mean
from agents.config.plug_ins import check_module, names_object

ENVIRONMENTS = (
    "HTM-Trees-v0",
    "HTM-Crosses-v0",
    "HTM-Digits-v0",
    "HTM-Keys-v0",
    "HTM-Jets-v0",
    "HTM-Kanji-v0",
    "HTM-v0",
)
"""The environment ids; their data is in :mod:`htm_env.datasets`, whose import loads torch."""
OWN_DATA = "HTM-v0"
"""The id of data that a user gives."""
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


def check_environment(name: str, problems: tuple[str, ...] = ()) -> str:
    """The name without ``htm_env:``.

    ``module:Id-v0`` is an id that the module registers; here only the module is looked for. Raises
    ``ValueError`` for a name that is no environment id and no problem.
    """
    env_id = name.removeprefix("htm_env:")
    if env_id in ENVIRONMENTS or name in problems:
        return env_id
    if names_object(env_id):
        check_module(env_id, "environment")
        return env_id
    also = f"; or one of the problems {', '.join(problems)}" if problems else ""
    raise ValueError(
        f"unknown id {name!r}{did_you_mean(env_id, ENVIRONMENTS + problems)}: expected one of "
        f"{', '.join(ENVIRONMENTS)}{also}; or module:Id-v0 of your own"
    )


@dataclass(frozen=True, kw_only=True)
class Threads:
    """The option of every command that computes."""

    threads: int = 1
    """Of one operation; one is fastest for networks this small."""

    least: ClassVar[dict[str, int]] = {}
    """The least values of other options."""

    def __post_init__(self) -> None:
        for name, least in {"threads": 1, **self.least}.items():
            check_at_least(least, **{name: getattr(self, name)})


@dataclass(frozen=True)
class OfRun(Threads):
    """The options of every command that opens a run."""

    directory: tyro.conf.Positional[Path]
    """Folder of the run."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Data to use instead of the run's, or the same data at its new place."""
    search: int = 0
    """Trees that are evaluated for each sample to find a better one than the greedy tree: others of
    the policy, and local changes of the best. Where the merger is known: merges whose reward is
    evaluated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, search=self.search)
