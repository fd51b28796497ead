"""Processes side by side: what fails is said, what is interrupted is stopped."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from agents.comparison.jobs import Job, State, run_jobs


def job(folder: Path, name: str, program: str) -> Job:
    return Job(name, (sys.executable, "-c", program), folder / f"{name}.txt")


def test_one_that_fails_says_why_and_the_others_go_on(tmp_path):
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    failing = "import sys; print('something'); sys.exit('htm: no such data')"
    jobs = [
        job(tmp_path, "killed", killed),
        job(tmp_path, "failing", failing),
        job(tmp_path, "fine", "print('done')"),
    ]
    run_jobs(jobs, 1)
    assert [one.state for one in jobs] == [State.FAILED, State.FAILED, State.DONE]
    assert jobs[0].reason == "killed by SIGKILL"
    assert jobs[1].reason == "exit status 1: no such data"
    assert (tmp_path / "fine.txt").read_text() == "done\n"


def test_as_many_at_a_time_as_allowed(tmp_path):
    jobs = [job(tmp_path, str(k), "import time; time.sleep(0.3)") for k in range(4)]
    most = 0

    def watch() -> None:
        nonlocal most
        most = max(most, sum(one.state is State.RUNNING for one in jobs))

    run_jobs(jobs, 2, watch)
    assert most == 2
    assert all(one.state is State.DONE for one in jobs)
    with pytest.raises(ValueError, match="0 jobs at a time"):
        run_jobs(jobs, 0)


def test_what_is_done_is_not_started_again(tmp_path):
    done = job(tmp_path, "done", "raise SystemExit(1)")
    done.state = State.DONE
    run_jobs([done], 1)
    assert done.process is None
    assert not done.log.exists()


def test_an_interruption_is_passed_on_once_and_waited_for(tmp_path):
    """The process needs a moment to write what it has, and gets it."""
    program = (
        "import signal, sys, time\n"
        "def stop(*_):\n"
        "    time.sleep(0.3); print('saved', flush=True); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    one = job(tmp_path, "one", program)

    def watch() -> None:
        if one.log.read_text() == "ready\n":
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_jobs([one], 1, watch)
    assert one.log.read_text() == "ready\nsaved\n"
    assert one.process is not None and one.process.returncode == 130
    assert time.monotonic() - started < 30
