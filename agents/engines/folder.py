"""``folder``: any number of machines that give the same command on one shared folder.

Each claims units, runs them, and waits for those of others; there is no daemon and no leader. A
machine may join or leave at any time; what a machine that died had begun is taken over from its
last checkpoint.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

from agents.config.dataclasses_json import check_bounds
from agents.engines.base import Engine, Progress, Site, Unit, UnitState
from agents.engines.claims import Claim, Watch, discard
from agents.engines.process import Retries, UnitProcess, stop_all
from agents.runs.interruption import STOP_SECONDS


@dataclass(frozen=True)
class FolderConfig:
    """Times of claims, in seconds."""

    beat_seconds: float = 5.0
    """The owner of a claim writes to it, and reads those of others, as often as this."""
    stale_seconds: float = 60.0
    """A claim to which nothing was written for so long is taken over; far more than the caches of
    the file system and a beat take together."""

    def __post_init__(self) -> None:
        check_bounds(self, beat_seconds=(0.01, 1e6), stale_seconds=(0.02, 1e6))
        if self.stale_seconds < 2 * self.beat_seconds:
            raise ValueError(
                f"stale_seconds is {self.stale_seconds:g}; expected at least twice beat_seconds, "
                f"which is {self.beat_seconds:g}"
            )


class FolderEngine(Engine):
    """Claims units of a shared folder, and runs them in processes of this machine."""

    config_class = FolderConfig
    config: FolderConfig
    exclusive = False

    def __init__(self, site: Site, config: FolderConfig | None = None) -> None:
        super().__init__(site, config)
        self._places = site.jobs or os.cpu_count() or 1
        self._name = f"{platform.node()}:{os.getpid()}"
        self._units: dict[str, Unit] = {}
        self._progress: dict[str, Progress] = {}
        self._watch = Watch(self.config.stale_seconds)
        self._running: dict[str, tuple[UnitProcess, Claim]] = {}
        self._retries = Retries()
        self._next_beat = 0.0
        self._next_look = 0.0

    def submit(self, units: Sequence[Unit]) -> None:
        self._units = {unit.name: unit for unit in units}
        self._progress = {name: Progress() for name in self._units}

    def poll(self) -> Mapping[str, Progress]:
        self._end_own()
        now = monotonic()
        if now >= self._next_beat:
            self._next_beat = now + self.config.beat_seconds
            self._beat()
        if now >= self._next_look or self._places_free:
            look = now >= self._next_look
            if look:
                self._next_look = now + self.config.beat_seconds
            self._visit(look)
        return self._progress

    def cancel(self) -> None:
        try:
            stop_all([process for process, _ in self._running.values()])
        finally:
            for _, claim in self._running.values():
                claim.release()
            self._running.clear()
            for unit in self._units.values():
                if unit.done:
                    discard(unit.folder)

    @property
    def _places_free(self) -> bool:
        return len(self._running) < self._places

    def _end_own(self) -> None:
        for name, (process, claim) in list(self._running.items()):
            end = process.ended()
            if end is None:
                continue
            del self._running[name]
            claim.release()
            if self._retries.again(name, end):
                self._progress[name] = Progress()
            else:
                self._progress[name] = Progress(end.state, end.reason, self._name)

    def _beat(self) -> None:
        for name, (process, claim) in list(self._running.items()):
            if not claim.beat() and not process.unit.done:
                process.stop()
                process.wait(STOP_SECONDS)
                del self._running[name]
                self._progress[name] = Progress()

    def _visit(self, look: bool) -> None:
        """Claim what is free as long as there is place; with ``look``, see what others do too."""
        for name, unit in self._units.items():
            progress = self._progress[name]
            if progress.state.ended or name in self._running:
                continue
            if not look and progress.state is UnitState.RUNNING:
                continue
            owner = self._watch.owner(unit.folder)
            if unit.done:
                self._progress[name] = Progress(UnitState.DONE, host=progress.host)
            elif owner is not None:
                self._progress[name] = Progress(UnitState.RUNNING, host=owner)
            else:
                self._progress[name] = Progress()
                if self._places_free:
                    self._start(unit)

    def _start(self, unit: Unit) -> None:
        claim = self._watch.claim(unit.folder, self._name)
        if claim is None:
            return
        if unit.done:  # by another process, between two looks
            claim.release()
            self._progress[unit.name] = Progress(UnitState.DONE)
            return
        process = UnitProcess(unit, self.site.keep_open)
        self._running[unit.name] = process, claim
        self._progress[unit.name] = Progress(UnitState.RUNNING, host=self._name)
