"""Progress of runs that train side by side, on whatever machines, on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

from rich.console import Console
from rich.live import Live
from rich.table import Table

from agents.comparison.results import metrics_points
from agents.config.errors import one_line
from agents.engines import Progress, UnitState
from agents.runs.directory import RunDirectory

REFRESH_SECONDS = 1.0
LINE_SECONDS = 30.0
"""Without a terminal, the runs that train are listed as often as this."""
ORDER = [UnitState.RUNNING, UnitState.FAILED, UnitState.DONE, UnitState.WAITING]
"""Sorting of the runs where not all fit on the screen."""


@dataclass
class Watched:
    """A run as the table shows it."""

    name: str
    directory: RunDirectory
    progress: Progress = field(default_factory=Progress)

    def cells(self) -> list[str]:
        """Name, state, host, share of the budget, seconds, merges, latest validation score."""
        points = metrics_points(self.directory.metrics_path, ("progress",))
        last = points[-1] if points else None
        found = (
            point.values.get(tag)
            for point in points
            for tag in ("validation/nmse", "validation/return")
        )
        scores = [f"{score:.4g}" for score in found if score is not None]
        return [
            self.name,
            self.progress.state.value,
            self.progress.host,
            f"{last.progress:.0%}" if last else "",
            f"{last.seconds:.0f}" if last else "",
            f"{last.merges:,}" if last else "",
            scores[-1] if scores else "",
        ]


class LiveTable:
    """A table of all runs that stays up to date; lines as runs start and end without a terminal.

    It goes to standard error.
    """

    def __init__(self, title: str, runs: Sequence[Watched]) -> None:
        self._title, self._runs = title, list(runs)
        self._console = Console(file=sys.stderr)
        self._shown = [(run.progress.state, run.progress.host) for run in self._runs]
        self._next = 0.0
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, auto_refresh=False)
            self._live.start()

    def update(self, progress: Mapping[str, Progress]) -> None:
        """Show what is new of the runs by name; cheap when called often."""
        for run in self._runs:
            run.progress = progress.get(run.name, run.progress)
        now = [(run.progress.state, run.progress.host) for run in self._runs]
        changed = [
            run
            for run, *both in zip(self._runs, self._shown, now, strict=True)
            if both[0] != both[1]
        ]
        self._shown = now
        due = monotonic() >= self._next
        if due:
            self._next = monotonic() + (LINE_SECONDS if self._live is None else REFRESH_SECONDS)
        if self._live is None:
            running = [run for run in self._runs if run.progress.state is UnitState.RUNNING]
            self._print(changed + [run for run in running if due and run not in changed])
        elif changed or due:
            self._live.update(self._table(), refresh=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def _print(self, runs: list[Watched]) -> None:
        for run in runs:
            name, state, host, share, seconds, merges, score = run.cells()
            course = f"  {share}  {seconds} s  {merges} merges  validation {score}" if share else ""
            reason = f"  {one_line(run.progress.reason)}" if run.progress.reason else ""
            where = f"  on {one_line(host)}" if host else ""
            line = f"{self._count()}  {name}  {state}{where}{course}{reason}"
            print(line, file=sys.stderr, flush=True)

    def _count(self) -> str:
        ended = sum(run.progress.state.ended for run in self._runs)
        return f"[{ended}/{len(self._runs)}]"

    def _table(self) -> Table:
        runs = sorted(self._runs, key=lambda run: ORDER.index(run.progress.state))
        shown = max(3, self._console.height - 8)
        table = Table(title=f"{self._title} {self._count()}")
        elsewhere = any(run.progress.host for run in runs)
        for name in ("run", "state", *["host"] * elsewhere, "budget", "s", "merges", "validation"):
            table.add_column(name, justify="left" if name in ("run", "state", "host") else "right")
        for run in runs[:shown]:
            name, state, host, *others = run.cells()
            table.add_row(name, state, *[one_line(host)] * elsewhere, *others)
        if len(runs) > shown:
            table.caption = f"... and {len(runs) - shown} more"
        return table
