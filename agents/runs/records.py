"""What the files of a run hold beside its configuration, with the types that they have to have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agents.config.dataclasses_json import check_bounds
from agents.runs.host import Host

Scores = dict[str, float | None]
"""Scores by name; None where one is not finite, or does not exist for the data."""


@dataclass(frozen=True)
class RunResult:
    """The content of ``result.json``."""

    env: str
    env_kwargs: dict[str, Any]
    algo: str
    seed: int
    seconds: float
    merges: int
    updates: int
    test: Scores
    validation: Scores
    mode: str
    embedding_dim: int
    weights_hash: str
    """Of the autoencoder that the scores are of."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds by activity (see ``agents.runs.loop.ACTIVITIES``); none in older runs."""
    too_few_updates: str | None = None
    """A sentence where there were too few for the schedules of the algorithm."""
    metrics_sha256: str | None = None
    """Of ``metrics.csv`` when the run ended; None in older runs."""
    ranks: int = 1
    """Processes that learned the model together."""

    def __post_init__(self) -> None:
        check_bounds(self, seed=0, seconds=0, merges=0, updates=0, embedding_dim=1)
        _check_finite("the run", {"seconds": self.seconds})
        _check_finite("spent", self.spent)
        for name, scores in (("test", self.test), ("validation", self.validation)):
            if not {"nmse", "return"} & scores.keys():
                raise ValueError(f"{name} has {sorted(scores)}; expected nmse or return among them")
            _check_finite(name, scores)


def _check_finite(name: str, values: Mapping[str, float | None]) -> None:
    """Raise ``ValueError`` naming the first number that is not finite; None is none."""
    for key, value in values.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{key} of {name} is {value}; expected a finite number")


@dataclass(frozen=True)
class TreeCourse:
    """The content of ``trees.json``: what a policy makes of the same few samples over its
    training, as nested lists."""

    merges: tuple[int, ...] = ()
    """Merges of the run before each row."""
    lists: tuple[tuple[str, ...], ...] = ()
    """A row's nested lists, one a sample."""

    def __post_init__(self) -> None:
        if len(self.merges) != len(self.lists):
            raise ValueError(f"lists has {len(self.lists)} rows; expected {len(self.merges)}")

    def until(self, merges: int) -> TreeCourse:
        """The rows up to so many merges."""
        count = sum(made <= merges for made in self.merges)
        return TreeCourse(self.merges[:count], self.lists[:count])

    def then(self, merges: int, lists: Sequence[str]) -> TreeCourse:
        """One row more; it takes the place of one after as many merges."""
        before = self.until(merges - 1)
        return TreeCourse((*before.merges, merges), (*before.lists, tuple(lists)))


@dataclass(frozen=True)
class HostCourse:
    """The content of ``hosts.json``."""

    hosts: tuple[Host, ...] = ()


@dataclass(frozen=True)
class DataRecord:
    """What ``config.json`` records of finite data."""

    sha256: str
    rows: int
    tokens: int
    token_dim: int
    name: str
    kind: str = "vectors"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    earlier: tuple[dict[str, Any], ...] = ()
    """Records of other data that the run was trained on before."""

    def __post_init__(self) -> None:
        check_bounds(self, rows=1, tokens=1, token_dim=1)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, self.token_dim):
                raise ValueError(f"{name} has {len(values)} numbers; expected {self.token_dim}")


@dataclass(frozen=True)
class RunRecord:
    """What ``config.json`` holds beside the configuration."""

    versions: dict[str, str] = field(default_factory=dict)
    data: DataRecord | None = None
    ranks: int | None = None
    """Processes that learn the model together; None for one, and in older runs."""


@dataclass(frozen=True)
class CheckpointRecord:
    """The content of a checkpoint."""

    learner: dict[str, Any]
    training: dict[str, int | float | dict[str, int | float]] | None
    """State of the loop; None for an agent that was saved without a run."""
    rows: tuple[dict[str, int | float | None], ...]
    """Those of ``metrics.csv`` by then; whole numbers stay so, and are written again as they were.
    """
    run: dict[str, Any] = field(default_factory=dict)
    """Fields of the configuration that tell which run this is; none in older checkpoints."""
    ranks: tuple[dict[str, Any], ...] = ()
    """Where several processes learn together, what differs in the others from this state, the
    first's (see ``agents.runs.together``)."""
