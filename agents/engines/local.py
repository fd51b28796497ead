"""``local``: processes of this machine, each of its own; one that dies ends no other."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from agents.engines.base import Engine, Progress, Site, Unit, UnitState
from agents.engines.process import Retries, UnitProcess, stop_all


class LocalEngine(Engine):
    """As many processes at a time as the site says, or as there are cores, in the units' order."""

    def __init__(self, site: Site, config: Any = None) -> None:
        super().__init__(site, config)
        self._places = site.jobs or os.cpu_count() or 1
        self._progress: dict[str, Progress] = {}
        self._waiting: deque[Unit] = deque()
        self._running: dict[str, UnitProcess] = {}
        self._retries = Retries()

    def submit(self, units: Sequence[Unit]) -> None:
        self._progress = {unit.name: Progress() for unit in units}
        self._waiting.extend(units)

    def poll(self) -> Mapping[str, Progress]:
        for name, process in list(self._running.items()):
            end = process.ended()
            if end is None:
                continue
            del self._running[name]
            if self._retries.again(name, end):
                self._progress[name] = Progress()
                self._waiting.append(process.unit)
            else:
                self._progress[name] = end
        while self._waiting and len(self._running) < self._places:
            unit = self._waiting.popleft()
            self._running[unit.name] = UnitProcess(unit, self.site.keep_open)
            self._progress[unit.name] = Progress(UnitState.RUNNING)
        return self._progress

    def cancel(self) -> None:
        stop_all(self._running.values())
        self._running.clear()
