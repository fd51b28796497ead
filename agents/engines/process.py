"""A unit in a process of this machine, which ends when its owner does."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from agents.config.errors import IN_USE
from agents.engines.base import Progress, Unit, UnitState
from agents.runs.interruption import OWNER, STOP_SECONDS

RETRIES = 3
"""Times that a unit whose process a signal killed goes on from its checkpoint before it counts as
failed."""
KILLED = "killed by "
"""The beginning of that reason; the signal's name comes behind it."""


class UnitProcess:
    """A unit that runs here, with one thread an operation.

    It holds the reading end of a pipe whose writing end is in this process alone: where this
    process ends in any way, the pipe does, and the unit writes its checkpoint and ends too.

    Args:
        unit: what to run.
        keep_open: descriptors to inherit.
        folder: a copy of the unit's folder to work in; its own if not given.
        place: the working folder of the process, where modules are found; this one's if not given.
    """

    def __init__(
        self,
        unit: Unit,
        keep_open: Sequence[int] = (),
        folder: Path | None = None,
        place: str | None = None,
    ) -> None:
        self.unit = unit
        self.log = (folder or unit.folder) / unit.log.name
        self.log.parent.mkdir(parents=True, exist_ok=True)
        reading, self._owned = os.pipe()
        try:
            with open(self.log, "ab") as log:
                self._log_before = log.tell()
                self._process = subprocess.Popen(
                    unit.command(folder),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Out of the terminal's reach: Ctrl-C comes once, from here, and not twice.
                    start_new_session=True,
                    pass_fds=(*keep_open, reading),
                    cwd=place,
                    env=os.environ | {"OMP_NUM_THREADS": "1", OWNER: str(reading)},
                )
        except BaseException:
            os.close(self._owned)
            raise
        finally:
            os.close(reading)

    @property
    def number(self) -> int:
        """Of the process."""
        return self._process.pid

    def ended(self) -> Progress | None:
        """How it ended; None while it runs."""
        status = self._process.poll()
        if status is None:
            return None
        self._let_go()
        if status == 0:
            return Progress(UnitState.DONE)
        if status < 0:
            return Progress(UnitState.FAILED, f"{KILLED}{_signal_name(-status)}")
        with open(self.log, "rb") as log:
            log.seek(self._log_before)  # what earlier attempts wrote is no reason
            lines = log.read().decode(errors="replace").strip().splitlines()
        said = f": {lines[-1].removeprefix('htm: ')}" if lines else ""
        return Progress(UnitState.FAILED, f"exit status {status}{said}")

    def stop(self) -> None:
        """Ask it for its checkpoint and its end; returns at once."""
        # Not SIGINT: a command started in the background ignores it, and so do its processes.
        self._process.terminate()

    def wait(self, seconds: float) -> None:
        """Wait for its end, so many seconds at most; then it is killed."""
        try:
            self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            pass  # killed below, and resumed from its last checkpoint
        finally:
            self._process.kill()
            self._process.wait()
            self._let_go()

    def _let_go(self) -> None:
        if self._owned >= 0:
            os.close(self._owned)
            self._owned = -1


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most of the real-time signals have no name
        return f"signal {number}"


def blocked(end: Progress) -> bool:
    """True <--> a unit ended because another process had its folder: one whose owner died, and
    which is writing its checkpoint. It can be tried again in a moment."""
    return end.state is UnitState.FAILED and IN_USE in end.reason


def killed(end: Progress, name: str = "") -> bool:
    """True <--> a signal killed the process of a unit; with ``name``, that signal."""
    return end.state is UnitState.FAILED and end.reason.startswith(KILLED + name)


class Retries:
    """Counts which units of this machine were killed, and says which go on."""

    def __init__(self) -> None:
        self._killed: Counter[str] = Counter()

    def again(self, name: str, end: Progress) -> bool:
        """True <--> a unit that ended so is to be run again: another process had its folder, or a
        signal killed it, though not more than :data:`RETRIES` times."""
        self._killed[name] += killed(end)
        return blocked(end) or (killed(end) and self._killed[name] <= RETRIES)


def stop_all(processes: Collection[UnitProcess]) -> None:
    """Stop processes, each with its checkpoint; what takes longer than a minute is killed.

    A second Ctrl-C kills them at once.
    """
    for process in processes:
        process.stop()
    deadline = time.monotonic() + STOP_SECONDS
    waiting = list(processes)
    try:
        while waiting:
            waiting[0].wait(deadline - time.monotonic())
            waiting.pop(0)
    finally:
        for process in waiting:
            process.wait(0.0)
