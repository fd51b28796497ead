"""How the runs of a folder are brought to their end: an engine, and the locks of the folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.comparison.live_table import LiveTable, Watched
from agents.comparison.plan import PlannedRun
from agents.config.errors import UsageError, as_usage_error, json_object
from agents.engines import Progress, Site, Unit, UnitState, make_engine, run_units
from agents.engines.claims import discard
from agents.engines.options import EngineOptions
from agents.engines.registry import check_options, engine_class
from agents.optim.ranks import Processes
from agents.runs.lock import locked

TURN = ".turn"
"""The lock of what one process at a time does in a folder that several share."""


def check_alone(command: str) -> None:
    """Raise :class:`UsageError` where ``torchrun`` started this process with others."""
    processes = Processes.of_environment()
    if processes is not None:
        raise UsageError(
            f"{command} starts processes of its own, and torchrun started this one as rank "
            f"{processes.index} of {processes.count}; expected the command without torchrun"
        )


@contextmanager
def engine_of(options: EngineOptions, folder: Path) -> Iterator[Workshop]:
    """The engine of a folder, which is locked meanwhile: alone, or with others of the same engine.

    Raises :class:`UsageError` for an engine that does not exist or whose library is missing, and
    for options that it does not have; ``ValueError`` for a folder that is in use.
    """
    given = json_object("--engine-options", options.engine_options)
    if options.address is not None:
        given["address"] = options.address
    with as_usage_error():
        check_options(options.engine, given)
    shared = not engine_class(options.engine).exclusive
    with locked(folder, shared=shared) as lock:
        yield Workshop(options.engine, given, Site(folder.resolve(), options.jobs, (lock,)))


@dataclass(frozen=True)
class Workshop:
    """What brings the runs of a folder to their end."""

    name: str
    """Of the engine."""
    options: dict[str, Any]
    site: Site

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep others that share the folder waiting: what is in the block, one process does."""
        if engine_class(self.name).exclusive:
            yield
        else:
            with locked(self.site.folder, TURN, waits=True):
                yield

    def train(self, runs: Sequence[PlannedRun], title: str) -> list[str]:
        """Bring every run to its end; returns a line for each one that failed."""
        with self.turn():
            watched = [self._prepared(run) for run in runs]
        units = [
            Unit(run.name, run.directory.path.resolve())
            for run in watched
            if not run.progress.state.ended
        ]
        if not units:
            return []
        engine = make_engine(self.name, self.site, self.options)
        table = LiveTable(title, watched)
        try:
            ends = run_units(units, engine, table.update)
        finally:
            table.close()
        return [
            f"{name} ({end.reason})" for name, end in ends.items() if end.state is UnitState.FAILED
        ]

    @staticmethod
    def _prepared(run: PlannedRun) -> Watched:
        """A run that can be started: with its configuration. One that has no checkpoint beside it
        starts from the beginning."""
        run.directory.check_own_files()
        if not run.directory.holds_run:
            run.directory.save_config(run.config)
        state = UnitState.WAITING
        if run.finished:
            state = UnitState.DONE
            discard(run.directory.path)
        return Watched(run.name, run.directory, Progress(state))
