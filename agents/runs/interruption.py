"""Ctrl-C and SIGTERM: a training loop stops after its update, anything else at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

AGAIN_SECONDS = 0.05
"""A signal that comes in the middle of an import is sent again after so long."""

STOP_SECONDS = 60.0
"""Seconds that an interrupted run may take for its checkpoint."""
OWNER = "HTM_OWNER"
"""The environment variable that names the descriptor of a pipe: its other end is in the process
that owns this one."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, where Ctrl-C is a ``KeyboardInterrupt``."""


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


def _raised(number: int) -> KeyboardInterrupt:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


def raise_at_once(number: int, frame: FrameType | None) -> None:
    """Handler that raises ``KeyboardInterrupt`` or :class:`Terminated`, but not in an import."""
    if _imports(frame):
        again = threading.Timer(AGAIN_SECONDS, signal.raise_signal, [number])
        again.daemon = True
        again.start()
    else:
        raise _raised(number)


def exit_at_once(number: int, frame: FrameType | None) -> None:
    """Handler that ends the process with one line; for a moment at which nothing is to be undone.

    In the middle of loading libraries an exception may be lost, or become another one.
    """
    os.write(2, b"htm: interrupted\n")
    os._exit(128 + number)


def starting_up() -> AbstractContextManager[None]:
    """End the process at once where a signal comes in this block, in which nothing is written."""
    return handled(exit_at_once, signal.SIGINT, signal.SIGTERM)


def follow_owner() -> None:
    """Get SIGTERM when the process that :data:`OWNER` tells of has ended, in whatever way.

    A process that does not end within :data:`STOP_SECONDS` of it is ended without a checkpoint.
    """
    descriptor = os.environ.pop(OWNER, "")
    if descriptor.isdecimal():
        threading.Thread(target=_follow, args=[int(descriptor)], daemon=True).start()


def _follow(descriptor: int) -> None:
    try:
        os.read(descriptor, 1)  # nothing is ever written: it returns at the end of the pipe
    except OSError:
        return  # the variable was left by another process, and tells of no pipe of this one
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(128 + signal.SIGTERM)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


class StopRequests:
    """True once a signal asked for a stop; a second signal raises."""

    def __init__(self) -> None:
        self._received: int | None = None

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise _raised(number)
        self._received = number

    def __call__(self) -> bool:
        return self._received is not None

    def obey(self, elsewhere: bool = False) -> None:
        """Raise ``KeyboardInterrupt`` or :class:`Terminated` where a stop was asked for, here or
        ``elsewhere``, in a process that runs with this one."""
        if self._received is not None:
            raise _raised(self._received)
        if elsewhere:
            raise Terminated()


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Collect signals instead of raising; a second one raises."""
    requested = StopRequests()
    with handled(requested.receive, signal.SIGINT, signal.SIGTERM):
        yield requested
