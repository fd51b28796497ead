"""Ctrl-C and SIGTERM: a training loop stops after its update, anything else at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def handled(
    handler: Callable[[int, FrameType | None], object], *signals: signal.Signals
) -> Iterator[None]:
    """Let ``handler`` receive these signals for the length of this block.

    Python lets only the main thread handle signals; elsewhere the context does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.signal(name, handler) for name in signals}
    try:
        yield
    finally:
        for name, handler_before in before.items():
            signal.signal(name, handler_before)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Gives a function that is true once a signal asked for a stop; a second signal raises."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    with handled(handle, signal.SIGINT, signal.SIGTERM):
        yield lambda: bool(received)
