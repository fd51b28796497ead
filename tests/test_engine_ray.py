"""``ray``, on a cluster of two nodes of this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from units import BEGAN_BYTES, FINISHES, RESUMES, STOPS, unit

pytest.importorskip("agents.engines.on_ray")  # before Ray, which it prepares

from agents.engines import Engine, Site, UnitState, make_engine, run_units
from agents.runs.interruption import Terminated, handled, raise_at_once

ADDRESS = "127.0.0.1"
THREADS = "import os; print(os.environ['OMP_NUM_THREADS'])"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster of two nodes with one core each."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 75 * 2**20, "node_ip_address": ADDRESS}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    cluster.add_node(**node)
    yield cluster.address
    cluster.shutdown()


def engine(folder: Path, address: str, **options) -> Engine:
    return make_engine("ray", Site(folder), {"address": address, **options})


def test_units_are_tasks_and_those_of_killed_workers_go_on(tmp_path, address):
    """Folders are copied to the tasks and back, as if the nodes shared none."""
    units = [
        unit(tmp_path, "fine", f"{THREADS}; {FINISHES}"),
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
    assert units[0].log.read_text() == "1\n"
    assert all(one.done for one in units[:2])
    assert (units[1].folder / "began").stat().st_size == BEGAN_BYTES
    assert len(killed) == 1
    assert not list(tmp_path.rglob(".*"))


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
