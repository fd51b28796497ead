"""Units of work, and what an engine has to do with them.

A unit is a command and a run folder: the command can be given again and again, continues from the
folder's checkpoint, and is done when ``result.json`` is there. An engine decides where units run.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

POLL_SECONDS = 0.2
TRAIN = ("-m", "agents.cli", "train", "--calibrate", "--resume")
"""What Python runs to bring a run to its end; the folder comes behind it."""


class UnitState(Enum):
    """Progress of a unit."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in (UnitState.DONE, UnitState.FAILED)


@dataclass(frozen=True)
class Progress:
    """The state of a unit as an engine tells it."""

    state: UnitState = UnitState.WAITING
    reason: str = ""
    """Why it failed, in one line."""
    host: str = ""
    """Where it runs or ran, in few letters; empty for this machine."""


@dataclass(frozen=True)
class Unit:
    """A command and the run folder that it works in."""

    name: str
    folder: Path
    """Absolute; it exists and has a ``config.json``."""
    program: tuple[str, ...] = TRAIN
    """Arguments of Python; the folder comes behind them."""

    def command(self, folder: Path | None = None) -> list[str]:
        """The command, perhaps for a copy of the folder at another place."""
        return [sys.executable, *self.program, str(folder or self.folder)]

    @property
    def done(self) -> bool:
        """True <--> its result is there."""
        return (self.folder / "result.json").exists()

    @property
    def log(self) -> Path:
        """Receives the output of the command, after that of earlier attempts."""
        return self.folder / "log.txt"


@dataclass(frozen=True)
class Site:
    """What every engine is given beside its own options."""

    folder: Path
    """Of all units together; an engine may keep files in a folder of its own name there."""
    jobs: int | None = None
    """Units at a time, at least 1; None: as many as fit."""
    keep_open: tuple[int, ...] = ()
    """Descriptors that processes of this machine inherit, so that the folder stays locked."""


@dataclass(frozen=True)
class NoOptions:
    """The configuration of an engine without options."""


class Engine(ABC):
    """Where units run. :func:`run_units` drives it: submit, poll until all ended, cancel.

    Args:
        site: folder and number of units at a time.
        config: options, of ``config_class``.
    """

    config_class: ClassVar[type] = NoOptions
    """A frozen dataclass: the options of ``--engine-options``."""
    exclusive: ClassVar[bool] = True
    """False <--> several processes, each with an engine of its own, work on one folder."""

    def __init__(self, site: Site, config: Any = None) -> None:
        self.site = site
        self.config = self.config_class() if config is None else config

    @abstractmethod
    def submit(self, units: Sequence[Unit]) -> None:
        """Take charge of units; returns at once. Called once, before the first ``poll``."""

    @abstractmethod
    def poll(self) -> Mapping[str, Progress]:
        """The progress of every submitted unit by name; called a few times a second.

        What the engine has to do meanwhile, such as starting the next unit, it does here.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Stop what still runs, each unit with its checkpoint, and let go of everything.

        Called once at the end, whether or not all units ended.
        """


def run_units(
    units: Sequence[Unit],
    engine: Engine,
    watch: Callable[[Mapping[str, Progress]], None] = lambda progress: None,
) -> dict[str, Progress]:
    """Bring units to their end on an engine; returns the progress of each by name.

    ``watch`` gets the progress a few times a second. Whatever ends this early, Ctrl-C above all,
    stops the units with their checkpoints. Slurm jobs that an earlier call left are stopped first,
    whatever the engine is now.
    """
    from agents.engines.stops import stop_jobs  # no command that is misspelt should load PyTorch

    stop_jobs(engine.site.folder)
    try:
        engine.submit(units)
        while True:
            progress = engine.poll()
            watch(progress)
            if all(one.state.ended for one in progress.values()):
                return dict(progress)
            time.sleep(POLL_SECONDS)
    finally:
        engine.cancel()
