"""The progress bar of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agents.runs.loop import Event, Logged, Position, Scalars, Training, Updated

SHOWN = {
    "train/return": "return",
    "train/nmse": "nmse",
    "validation/nmse": "validation",
    "time/merges_per_second": "merges/s",
}
"""The scalars that are shown, and their names."""
SMOOTHING = 0.95
"""Share of the shown value that an update leaves."""
LINE_SECONDS = 10.0
"""Without a terminal, a line as often as this."""


def shown(
    training: Training,
    title: str,
    visible: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """The events of a training until ``stop``, with a progress bar meanwhile if ``visible``."""
    with closing(ProgressBar(title)) if visible else nullcontext() as bar:
        for event in training.events(stop):
            if bar is not None and isinstance(event, Updated):
                bar.update(event.position, event.scalars)
            elif bar is not None and isinstance(event, Logged):
                bar.write(event.position, event.scalars)
            yield event


class ProgressBar:
    """A bar with live reward, error and speed; plain lines now and then without a terminal.

    It goes to standard error.

    Args:
        title: what is being trained, in a few words.
        clock: seconds of wall time.
    """

    def __init__(self, title: str, clock: Callable[[], float] = monotonic) -> None:
        self._stream = sys.stderr
        self._title, self._clock = title, clock
        self._values: dict[str, float] = {}
        self._next_line = clock() + LINE_SECONDS
        self._progress: Progress | None = None
        if self._stream.isatty():
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.percentage:3.0f}%"),
                TextColumn("{task.fields[values]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
            )
            self._task = self._progress.add_task(title, total=1.0, values="")
            self._progress.start()

    def update(self, position: Position, scalars: Scalars) -> None:
        """Show one update's scalars, smoothed."""
        for tag, value in scalars.items():
            if tag in SHOWN and value is not None:
                before = self._values.get(tag, value)
                self._values[tag] = SMOOTHING * before + (1 - SMOOTHING) * value
        self._show(position)

    def write(self, position: Position, scalars: Scalars) -> None:
        """Take a row: what single updates do not have."""
        for tag in ("validation/nmse", "time/merges_per_second"):
            value = scalars.get(tag)
            if value is not None:
                self._values[tag] = value
        self._show(position)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _show(self, position: Position) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=position.progress, values=self._text())
        elif self._clock() >= self._next_line:
            self._next_line = self._clock() + LINE_SECONDS
            print(
                f"{self._title}  {position.progress:4.0%}  {position.seconds:.0f} s  "
                f"{position.merges} merges  {self._text()}",
                file=self._stream,
                flush=True,
            )

    def _text(self) -> str:
        return "  ".join(
            f"{name} {self._values[tag]:{',.0f' if tag.startswith('time/') else '.4g'}}"
            for tag, name in SHOWN.items()
            if tag in self._values
        )
