"""Progress of runs that train side by side, on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

from rich.console import Console
from rich.live import Live
from rich.table import Table

from agents.comparison.jobs import Job, State
from agents.comparison.results import metrics_points
from agents.config.errors import one_line
from agents.runs.directory import RunDirectory

REFRESH_SECONDS = 1.0
LINE_SECONDS = 30.0
"""Without a terminal, the runs that train are listed as often as this."""
ORDER = [State.RUNNING, State.FAILED, State.DONE, State.WAITING]
"""Sorting of the runs where not all fit on the screen."""


@dataclass(frozen=True)
class Watched:
    """A job that trains in a folder."""

    job: Job
    directory: RunDirectory

    def cells(self) -> list[str]:
        """Name, state, share of the budget, seconds, merges, latest validation score."""
        points = metrics_points(self.directory.metrics_path, ("progress",))
        last = points[-1] if points else None
        found = (
            point.values.get(tag)
            for point in points
            for tag in ("validation/nmse", "validation/return")
        )
        scores = [f"{score:.4g}" for score in found if score is not None]
        return [
            self.job.name,
            self.job.state.value,
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
        self._states = [State.WAITING] * len(self._runs)
        self._next = 0.0
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, auto_refresh=False)
            self._live.start()

    def update(self) -> None:
        """Show what is new; cheap when called often."""
        pairs = zip(self._runs, self._states, strict=True)
        changed = [run for run, before in pairs if run.job.state is not before]
        self._states = [run.job.state for run in self._runs]
        due = monotonic() >= self._next
        if due:
            self._next = monotonic() + (LINE_SECONDS if self._live is None else REFRESH_SECONDS)
        if self._live is None:
            running = [run for run in self._runs if run.job.state is State.RUNNING]
            self._print(changed + [run for run in running if due and run not in changed])
        elif changed or due:
            self._live.update(self._table(), refresh=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def _print(self, runs: list[Watched]) -> None:
        for run in runs:
            name, state, share, seconds, merges, score = run.cells()
            course = f"  {share}  {seconds} s  {merges} merges  validation {score}" if share else ""
            reason = f"  {one_line(run.job.reason)}" if run.job.reason else ""
            print(f"{self._count()}  {name}  {state}{course}{reason}", file=sys.stderr, flush=True)

    def _count(self) -> str:
        ended = sum(run.job.state in (State.DONE, State.FAILED) for run in self._runs)
        return f"[{ended}/{len(self._runs)}]"

    def _table(self) -> Table:
        runs = sorted(self._runs, key=lambda run: ORDER.index(run.job.state))
        shown = max(3, self._console.height - 8)
        table = Table(title=f"{self._title} {self._count()}")
        for name in ("run", "state", "budget", "s", "merges", "validation"):
            table.add_column(name, justify="left" if name in ("run", "state") else "right")
        for run in runs[:shown]:
            table.add_row(*run.cells())
        if len(runs) > shown:
            table.caption = f"... and {len(runs) - shown} more"
        return table
