"""Runs side by side, each in a process of its own; one that dies ends no other."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

POLL_SECONDS = 0.2
STOP_SECONDS = 60.0
"""Seconds that an interrupted run may take for its checkpoint."""


class State(Enum):
    """Progress of a job."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass
class Job:
    """A command in a process of its own."""

    name: str
    command: tuple[str, ...]
    log: Path
    """Receives its output, after that of an earlier attempt."""
    state: State = State.WAITING
    reason: str = ""
    """Why it failed, in one line."""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    watch: Callable[[], None] = lambda: None,
    keep_open: Sequence[int] = (),
) -> None:
    """Run all jobs that wait, ``workers`` at a time, in their order; their states tell the end.

    ``watch`` is called a few times a second. ``keep_open`` are file descriptors that every process
    inherits. Whatever ends this early, Ctrl-C above all, is passed on to the processes as one
    SIGTERM, and they get time to write their checkpoints; a second one kills them.

    Raises ``ValueError`` for less than one worker.
    """
    if workers < 1:
        raise ValueError(f"{workers} jobs at a time; expected at least 1")
    waiting = deque(job for job in jobs if job.state is State.WAITING)
    running: list[Job] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.popleft()
                running.append(job)
                _start(job, keep_open)
            running = [job for job in running if not _ended(job)]
            watch()
            if running:
                time.sleep(POLL_SECONDS)
    finally:
        _stop([job.process for job in running if job.process is not None])


def _start(job: Job, keep_open: Sequence[int]) -> None:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "ab") as log:
        job.process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Out of the terminal's reach: Ctrl-C comes once, from here, and not twice.
            start_new_session=True,
            pass_fds=keep_open,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    job.state = State.RUNNING


def _ended(job: Job) -> bool:
    assert job.process is not None  # it was started
    status = job.process.poll()
    if status is None:
        return False
    job.state = State.DONE if status == 0 else State.FAILED
    if status < 0:
        job.reason = f"killed by {signal.Signals(-status).name}"
    elif status > 0:
        lines = job.log.read_text(errors="replace").strip().splitlines()
        job.reason = f"exit status {status}: {lines[-1].removeprefix('htm: ') if lines else ''}"
    return True


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        # Not SIGINT: a command started in the background ignores it, and so do its processes.
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    try:
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass  # killed below, and resumed from its last checkpoint
    finally:
        for process in processes:
            process.kill()
            process.wait()
