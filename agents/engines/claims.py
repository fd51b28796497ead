"""Claims of units in a shared folder: who works on what, without anything that coordinates.

A claim is the folder ``.claim/1`` in the unit's folder. Making a folder succeeds for one process
alone, also on a network's file system. Its owner keeps writing to it; where nothing is written for
long, the owner is dead, and the process that makes the folder of the next number, ``.claim/2``,
takes the unit over. An owner that was only asleep finds the higher number, and stops. Times are
those between readings of one machine, so clocks need not agree.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

CLAIM = ".claim"
"""The folder in a unit's folder."""
BEAT = "owner"
"""The file that the owner of a claim keeps writing."""


@dataclass
class Claim:
    """A unit that this process owns, as long as :meth:`beat` says so."""

    folder: Path
    """Of the unit."""
    number: int
    owner: str
    """Who this is, in few letters."""
    _beats: int = 0

    def beat(self) -> bool:
        """Show that the owner lives; False <--> another process has taken the unit over."""
        own = self.folder / CLAIM / str(self.number)
        self._beats += 1
        try:  # in place: whoever opens a file of a network's file system sees what was written
            (own / BEAT).write_text(f"{self.owner}\n{self._beats}\n")
        except FileNotFoundError:
            return False
        return _highest(self.folder) == self.number

    def release(self) -> None:
        """Let others have the unit, unless one has taken it already."""
        if _highest(self.folder) == self.number:
            discard(self.folder)


@dataclass
class Watch:
    """What this process has observed of others' claims."""

    stale_seconds: float
    """A claim to which nothing was written for so long, while this process watched, is a dead
    owner's."""
    clock: Callable[[], float] = monotonic
    _seen: dict[Path, tuple[tuple[int, str], float]] = field(default_factory=dict)

    def owner(self, folder: Path) -> str | None:
        """The owner of a unit; None where it has none, or a dead one: then it can be claimed."""
        number = _highest(folder)
        if number is None:
            self._seen.pop(folder, None)
            return None
        written = ""
        with suppress(OSError):
            written = (folder / CLAIM / str(number) / BEAT).read_text(errors="replace")
        found = (number, written)
        before, since = self._seen.get(folder, (None, 0.0))
        if before != found:
            since = self.clock()
            self._seen[folder] = (found, since)
        if self.clock() - since > self.stale_seconds:
            return None
        return written.partition("\n")[0] or "another process"

    def claim(self, folder: Path, owner: str) -> Claim | None:
        """Claim a unit that :meth:`owner` says is free; None where another process was faster."""
        before = self._seen.get(folder)
        last = before[0][0] if before else 0
        try:
            if before is None:
                (folder / CLAIM).mkdir()
            (folder / CLAIM / str(last + 1)).mkdir()
        except (FileExistsError, FileNotFoundError):
            return None
        claim = Claim(folder, last + 1, owner)
        return claim if claim.beat() else None


def discard(folder: Path) -> None:
    """Remove the claim of a unit that is done, whoever owned it: a process may have died between
    its result and its release."""
    doomed = folder / f"{CLAIM}.{secrets.token_hex(4)}.tmp"
    with suppress(FileNotFoundError):
        os.replace(folder / CLAIM, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _highest(folder: Path) -> int | None:
    """The number of the claim that counts: 0 while it is being made, None without one."""
    try:
        names = os.listdir(folder / CLAIM)
    except FileNotFoundError:
        return None
    return max((int(name) for name in names if name.isdecimal()), default=0)
