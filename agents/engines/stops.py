"""The file that stops Slurm jobs, which every engine's call writes for those of a killed one."""

from __future__ import annotations

from pathlib import Path

from agents.runs.lock import check_own_files

FOLDER = "slurm"
"""Of jobs, in that of all units; every call of the engine has a folder of its own in it."""
STOP = "stop"
"""The file that tells the jobs beside it to stop with their checkpoints."""


def stop_jobs(folder: Path) -> None:
    """Stop the jobs of earlier calls, which may still work on units of this folder.

    Raises ``ValueError`` for links, through which something elsewhere would be written.
    """
    jobs = folder / FOLDER
    check_own_files([jobs])
    for old in jobs.glob("*/"):
        check_own_files([old, old / STOP])
        (old / STOP).touch()
