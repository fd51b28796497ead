"""The progress bar of a run; it moves while an update or an evaluation takes long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from threading import Event as Flag
from threading import RLock, Thread
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from agents.runs.loop import Event, Logged, Position, Scalars, Training, Updated

SHOWN = {
    "train/return": "return",
    "train/nmse": "nmse",
    "validation/nmse": "validation",
    "validation/return": "validation",
    "time/merges_per_second": "merges/s",
}
"""The scalars that are shown, and their names."""
SMOOTHING = 0.95
"""Share of the shown value that an update leaves."""
LINE_SECONDS = 10.0
"""Without a terminal, a line as often as this."""
FIRST_SECONDS = 3.0
"""And the first one after so many, where not even one update is done by then."""
TICK_SECONDS = 1.0
"""A bar is shown again after so many, whether or not there was an event."""


def shown(
    training: Training,
    title: str,
    visible: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """The events of a training until ``stop``, with a progress bar meanwhile if ``visible``."""
    if not visible:
        yield from training.events(stop)
        return
    bar = ProgressBar(title)

    def tick() -> None:
        bar.tick(training.position, training.activity)

    with closing(bar), every(TICK_SECONDS, tick):
        for event in training.events(stop):
            if isinstance(event, Updated):
                bar.update(event.position, event.scalars)
            elif isinstance(event, Logged):
                bar.write(event.position, event.scalars)
            yield event


@contextmanager
def waiting(what: str, visible: bool = True) -> Iterator[None]:
    """A sign of life on standard error, with the seconds so far, while something takes long."""
    if not visible:
        yield
    elif sys.stderr.isatty():
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
            progress.add_task(what)
            yield
    else:
        started = monotonic()

        def line() -> None:
            print(f"{what}  {monotonic() - started:.0f} s", file=sys.stderr, flush=True)

        with every(LINE_SECONDS, line):
            yield


@contextmanager
def every(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Call ``act`` in a thread of its own now and then; not again once the block is left."""
    done = Flag()

    def repeat() -> None:
        while not done.wait(seconds):
            act()

    thread = Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


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
        self._lock = RLock()  # the thread that ticks shows it too
        self._first_line: float | None = clock() + FIRST_SECONDS  # None once there was an update
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

    def tick(self, position: Position, activity: str) -> None:
        """Show where the training is in the middle of an update or an evaluation."""
        with self._lock:
            if self._first_line is not None and self._clock() >= self._first_line:
                self._first_line, self._next_line = None, self._clock()
            self._show(position, activity)

    def update(self, position: Position, scalars: Scalars) -> None:
        """Show one update's scalars, smoothed."""
        self._first_line = None
        for tag, value in scalars.items():
            if tag in SHOWN and value is not None:
                before = self._values.get(tag, value)
                self._values[tag] = SMOOTHING * before + (1 - SMOOTHING) * value
        self._show(position)

    def write(self, position: Position, scalars: Scalars) -> None:
        """Take a row: what single updates do not have."""
        for tag in ("validation/nmse", "validation/return", "time/merges_per_second"):
            value = scalars.get(tag)
            if value is not None:
                self._values[tag] = value
        self._show(position)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _show(self, position: Position, activity: str = "") -> None:
        with self._lock:
            text = "  ".join(filter(None, (self._text(), activity)))
            if self._progress is not None:
                done = min(position.progress, 1.0)
                self._progress.update(self._task, completed=done, values=text)
            elif self._clock() >= self._next_line:
                self._next_line = self._clock() + LINE_SECONDS
                print(
                    f"{self._title}  {position.progress:4.0%}  {position.seconds:.0f} s  "
                    f"{position.merges} merges  {text}",
                    file=self._stream,
                    flush=True,
                )

    def _text(self) -> str:
        return "  ".join(
            f"{name} {self._values[tag]:{',.0f' if tag.startswith('time/') else '.4g'}}"
            for tag, name in SHOWN.items()
            if tag in self._values
        )
