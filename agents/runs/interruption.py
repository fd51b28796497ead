"""Ctrl-C and SIGTERM: a training loop stops after its update, anything else at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While this context is entered, the first signal only sets ``requested``; the second raises.

    Python lets only the main thread handle signals; elsewhere the context does nothing.
    """

    def __init__(self) -> None:
        self._requested = False
        self._before: dict[signal.Signals, Any] = {}

    def requested(self) -> bool:
        """True <--> a signal asked for a stop at the next good moment."""
        return self._requested

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {name: signal.signal(name, self._handle) for name in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Make SIGTERM do what Ctrl-C does: raise ``KeyboardInterrupt``."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
