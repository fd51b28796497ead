"""Units of work that end, and units that have to be stopped, for the tests of every engine."""

from __future__ import annotations

from pathlib import Path

from agents.engines import Unit

FINISHES = "import sys; open(sys.argv[1] + '/result.json', 'w').write('{}')"
"""A program that makes a unit done."""
STOPS = """
import signal, sys, time
from agents.runs.interruption import follow_owner
def stop(*_):
    print("saved", flush=True); sys.exit(143)
signal.signal(signal.SIGTERM, stop)
follow_owner()
print("ready", flush=True)
time.sleep(60)
"""
"""It writes that it is ready, and, when it is stopped, that it has saved."""
DIES = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
"""A program that the kernel kills, as one for which there is no memory."""
BEGAN_BYTES = 5 * 2**20
"""More than an engine that copies files sends at once."""
RESUMES = f"""
import os, sys
if os.path.exists(sys.argv[1] + "/began"):
    {FINISHES}
    sys.exit()
open(sys.argv[1] + "/began", "w").write("x" * {BEGAN_BYTES})
{STOPS}
"""
"""It has to be stopped once; what it writes before takes several pieces to copy."""


def unit(folder: Path, name: str, program: str = FINISHES) -> Unit:
    """A unit in a new folder, which runs a program of Python."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    return Unit(name, folder / name, ("-c", program))
