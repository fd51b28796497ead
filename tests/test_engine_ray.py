"""``ray``, on a cluster of two nodes of this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_engines import ROOT, runs, wait_until
from units import BEGAN_BYTES, DIES, FINISHES, RESUMES, STOPS, unit

pytest.importorskip("agents.engines.on_ray")  # before Ray, which it prepares

from agents.engines import Engine, Site, UnitState, make_engine, on_ray, run_units
from agents.runs.interruption import Terminated, handled, raise_at_once
from benchmarks.engines import cluster_of

THREADS = "import os; print(os.environ['OMP_NUM_THREADS'], os.path.dirname(sys.argv[1]))"
GIB = 2.0**30


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> Path:
    """Where tasks make copies of run folders."""
    return tmp_path_factory.mktemp("copies")


@pytest.fixture(scope="module")
def address(copies) -> Iterator[str]:
    """Of the benchmarks' cluster: two nodes with one core each."""
    before = os.environ.get("TMPDIR")
    with cluster_of("ray", copies) as where:
        assert os.environ.get("TMPDIR") == before
        yield where["address"]


def engine(folder: Path, address: str, **options) -> Engine:
    return make_engine("ray", Site(folder), {"address": address, **options})


def test_units_are_tasks_and_those_of_killed_workers_go_on(tmp_path, address, copies):
    """Folders are copied to the tasks and back, as if the nodes shared none."""
    units = [
        unit(tmp_path, "fine", f"{FINISHES}; {THREADS}"),
        unit(tmp_path, "killed", RESUMES),
        unit(tmp_path, "failing", "raise SystemExit('htm: no such data')"),
    ]
    killed = []

    def watch(progress):
        began = units[1].folder / "began"
        host = progress["killed"].host
        if not killed and host and began.exists() and began.stat().st_size:
            killed.append(host)
            os.kill(int(host.rpartition(":")[2]), signal.SIGKILL)

    ends = run_units(units, engine(tmp_path, address, shared=False), watch)
    assert [end.state.value for end in ends.values()] == ["done", "done", "failed"]
    assert ends["failing"].reason == "exit status 1: no such data"
    assert units[0].log.read_text() == f"1 {copies}\n"
    assert all(one.done for one in units[:2])
    assert (units[1].folder / "began").stat().st_size == BEGAN_BYTES
    assert len(killed) == 1
    assert not list(tmp_path.rglob(".*"))
    assert not list(copies.glob("htm-*"))


KILLED_TASK = f"""
import sys
from pathlib import Path
from agents.engines import Unit
from agents.engines.on_ray import copy_of
from agents.engines.process import UnitProcess
with copy_of("shared/one") as (copy, lock):
    process = UnitProcess(Unit("one", copy, ("-c", "import time; time.sleep(20)")), (lock,))
    print(copy, process.number, flush=True)
    {DIES}
"""


def test_the_copy_of_a_killed_task_is_removed_once_no_process_works_in_it(tmp_path, monkeypatch):
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED_TASK]
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert ended.returncode == -signal.SIGKILL
    left, number = Path(ended.stdout.split()[0]), int(ended.stdout.split()[1])
    assert left.parent == tmp_path
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    try:
        with on_ray.copy_of("shared/one") as (copy, _):
            assert copy != left
        assert left.is_dir()
        assert not copy.exists()
    finally:
        os.kill(number, signal.SIGKILL)
    wait_until(lambda: not runs(number))
    with on_ray.copy_of("shared/other"):
        assert left.is_dir()
    with on_ray.copy_of("shared/one"):
        assert not left.exists()
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- what a unit asks for


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        ({"CPU": 8.0, "GPU": 0.0, "memory": 4 * GIB}, ""),
        ({"CPU": 1.0, "GPU": 0.5, "memory": 0.0}, ""),
        ({"CPU": 0.0, "GPU": 0.0, "memory": 0.0}, ""),
        ({"CPU": 9.0, "GPU": 0.0}, "asks for 9 CPU; the largest node of the cluster has 8 CPU"),
        ({"CPU": 1.0, "memory": 8 * GIB}, "1 CPU, 8 GiB of memory; .* has 8 CPU, 4 GiB of memory"),
        ({"CPU": 4.0, "GPU": 1.0}, "4 CPU, 1 GPU; .* has 2 CPU, 1 GPU"),  # on one node
    ],
)
def test_a_unit_is_too_large_where_no_node_has_what_it_asks_for(needs, says):
    nodes = [{"CPU": 8.0, "memory": 4 * GIB}, {"CPU": 2.0, "GPU": 1.0, "memory": GIB}]
    found = on_ray.too_large(needs, nodes)
    assert re.search(f"{says}$", found)
    assert bool(found) == bool(says)


def test_a_unit_that_no_node_can_ever_run_fails_at_once(tmp_path, address):
    one = unit(tmp_path, "one")
    ends = run_units([one], engine(tmp_path, address, num_cpus=2))
    assert ends["one"].reason == "it asks for 2 CPU; the largest node of the cluster has 1 CPU"
    assert not one.log.exists()


def test_a_unit_that_the_kernel_kills_asks_for_more_memory_up_to_that_of_a_node(tmp_path, address):
    one = unit(tmp_path, "one", f"print('began', flush=True); {DIES}")
    ends = run_units([one], engine(tmp_path, address, memory=2**20, memory_growth=2.0**30))
    assert ends["one"].state is UnitState.FAILED
    assert ends["one"].reason.startswith("it asks for 1 CPU, 1.05e+06 GiB of memory; the largest")
    assert ends["one"].reason.endswith("with less it ran out of memory")
    assert one.log.read_text() == "began\n"


def test_an_interruption_stops_tasks_with_their_checkpoints(tmp_path, address):
    units = [unit(tmp_path, str(number), STOPS) for number in range(3)]

    def watch(progress):
        running = [one.state is UnitState.RUNNING for one in progress.values()]
        logs = [one.log.read_text() for one in units if one.log.exists()]
        assert len(logs) <= 2  # there are two cores
        if sum(running) == 2 and logs == ["ready\n", "ready\n"]:
            os.kill(os.getpid(), signal.SIGTERM)

    # Ray has a handler of its own for that signal, and is not to put it in the place of ours.
    with handled(raise_at_once, signal.SIGTERM), pytest.raises(Terminated):
        run_units(units, engine(tmp_path, address), watch)
    logs = [one.log.read_text() for one in units if one.log.exists()]
    assert logs == ["ready\nsaved\n"] * 2


def test_where_there_is_no_cluster_one_line_says_so(tmp_path):
    with pytest.raises(ConnectionError, match="no Ray at nowhere: "):
        run_units([unit(tmp_path, "one", FINISHES)], engine(tmp_path, "nowhere"))
