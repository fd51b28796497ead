"""The lock of a folder: one process at a time writes there."""

from __future__ import annotations

import fcntl
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agents.config.errors import IN_USE, RunWarning
from htm_env.files import check_name, naming

LOCK = ".lock"
"""The file that is locked; it names who locked it, and is removed at the end."""
NAMED_SECONDS = 0.1
"""Whoever has just got the lock may take so long to write who it is."""


WAIT_SECONDS = 0.2
"""Seconds between two attempts to get a lock that is waited for."""


@contextmanager
def locked(
    folder: str | Path, name: str = LOCK, *, shared: bool = False, waits: bool = False
) -> Iterator[int]:
    """Keep all other processes from writing in a folder; gives a descriptor that holds the lock.

    The folder is made, and removed again, with those above it, where nothing was written to it.
    Where this process is killed, the system ends the lock with the last process that has the
    descriptor: those that inherit it keep the folder locked.

    Args:
        folder: what is locked.
        name: of the file that is locked; locks of other names are other locks.
        shared: with all others that share it, where no process has it alone.
        waits: wait as long as another process has it, instead of raising.

    Raises ``ValueError`` for a file, for a name that is no text, for a lock that is a link or no
    file, and naming the process that has the lock; ``OSError`` where nothing can be written.
    """
    folder = Path(folder)
    check_name(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder, or nothing yet")
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = None
    try:
        while lock is None:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _locked_file(folder / name, shared, waits)
        yield lock
    finally:
        if lock is not None:
            if not shared or _is_last(lock):
                (folder / name).unlink(missing_ok=True)
            os.close(lock)
        with suppress(OSError):  # there is something in it
            for path in new:
                path.rmdir()


def check_own_files(paths: Iterable[Path]) -> None:
    """Raise ``ValueError`` naming the first that is a symbolic link, through which something
    elsewhere would be written or removed, or that is neither a file nor a folder."""
    for path in paths:
        if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):
            raise ValueError(
                f"{path} is a link or a device: what a process writes here are files of its own; "
                "expected a file or a folder, or nothing yet"
            )


def _is_last(lock: int) -> bool:
    """True <--> no other process shares the lock; it is this process's alone then."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _locked_file(path: Path, shared: bool, waits: bool) -> int | None:
    """A descriptor of the locked file; None where it is to be tried again."""
    check_own_files([path])
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        if not path.exists() or not os.path.samestat(os.fstat(lock), path.stat()):
            os.close(lock)
            return None
    except BlockingIOError:
        if waits:
            os.close(lock)
            time.sleep(WAIT_SECONDS)
            return None
        time.sleep(NAMED_SECONDS)
        holder = os.read(lock, 100).decode(errors="replace") or "unknown"
        os.close(lock)
        raise ValueError(
            f"{path.parent} {IN_USE} {holder}, or by one that it started and left; expected a "
            "folder that no other process writes to"
        ) from None
    except OSError as error:  # a file system without locks
        warnings.warn(f"{path.parent} cannot be locked: {error}", RunWarning, stacklevel=4)
    with naming(path):
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}".encode())
    return lock
