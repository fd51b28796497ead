"""``slurm``, by submitit's own processes on this machine."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from units import FINISHES, RESUMES, STOPS, unit

pytest.importorskip("submitit")

from agents.engines import Engine, Site, UnitState, make_engine, run_units


@pytest.fixture
def engine(tmp_path) -> Engine:
    return make_engine("slurm", Site(tmp_path, 2), {"cluster": "local", "signal_delay_s": 30})


def test_units_are_jobs_that_end_fail_or_are_queued_again(tmp_path, engine):
    """A job that gets Slurm's SIGTERM has its unit write a checkpoint, and is queued again."""
    units = [
        unit(tmp_path, "fine", FINISHES),
        unit(tmp_path, "preempted", RESUMES),
        unit(tmp_path, "failing", "raise SystemExit('htm: no such data')"),
    ]
    signalled = []

    def watch(progress):
        log = units[1].log
        if not signalled and log.exists() and log.read_text() == "ready\n":
            host = progress["preempted"].host
            if host:
                signalled.append(host)
                os.kill(int(host.rpartition(":")[2]), signal.SIGTERM)

    ends = run_units(units, engine, watch)
    assert [end.state.value for end in ends.values()] == ["done", "done", "failed"]
    assert ends["failing"].reason == "exit status 1: no such data"
    assert units[1].log.read_text() == "ready\nsaved\n"
    (kept,) = (tmp_path / "slurm").iterdir()  # with the output of the job that failed
    assert json.loads((kept / "2.json").read_text())["state"] == "failed"


def test_where_jobs_have_no_folder_the_error_is_about_that(tmp_path, engine):
    (tmp_path / "slurm").write_text("a file")
    with pytest.raises(OSError, match="slurm") as error:
        run_units([unit(tmp_path, "one")], engine)
    assert not str(error.value).endswith("stop'")


def test_an_interruption_stops_jobs_with_their_checkpoints(tmp_path, engine):
    units = [unit(tmp_path, str(number), STOPS) for number in range(3)]

    def watch(progress):
        logs = [one.log.read_text() for one in units[:2] if one.log.exists()]
        running = sum(one.state is UnitState.RUNNING for one in progress.values())
        if logs == ["ready\n", "ready\n"] and running == 2:
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_units(units, engine, watch)
    assert [one.log.read_text() for one in units[:2]] == ["ready\nsaved\n"] * 2
    assert not units[2].log.exists()  # there were two places
    assert time.monotonic() - began < 30
