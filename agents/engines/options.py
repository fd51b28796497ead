"""The options of every command that brings runs to their end on an engine."""

from __future__ import annotations

from dataclasses import dataclass

from agents.config.errors import as_usage_error, check_at_least
from agents.engines.registry import check_engine


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Where runs run."""

    jobs: int | None = None
    """Runs at a time; one a core if not given, and on a cluster as many as there is place for."""
    engine: str = "local"
    """Where runs run: local, this machine; folder, all machines that give the same command on a
    shared OUT; ray; slurm; module:Class of your own. It may be another one each time."""
    engine_options: str | None = None
    """Options of the engine, such as '{"num_gpus": 0.5}'."""
    address: str | None = None
    """Of a running Ray cluster, such as auto or 10.0.0.1:6379; ray starts one here if not given."""

    def __post_init__(self) -> None:
        check_at_least(1, jobs=self.jobs)
        with as_usage_error("--engine: "):
            check_engine(self.engine)
