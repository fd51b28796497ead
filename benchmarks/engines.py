"""The same comparison on every engine: ``python -m benchmarks.engines``.

``engines``: 24 short runs under a budget of merges, on processes of this machine, on a folder that
two commands share, on a Ray cluster of two nodes, and as jobs of submitit's local executor: are the
tables and all weights those of the first, but for seconds and hosts? ``engines_killed``: the same
while a random command (of the shared folder, which is then given again) or a random worker of Ray
is killed every so many seconds: what is left of processes, claims, and copies of run folders?
``engines_overhead``: units that wait ten seconds, two at a time; from the first one's start to the
moment at which the engine says that all are done.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from agents.engines import Site, Unit, make_engine, run_units
from benchmarks.endurance import comparison_of
from benchmarks.measuring import Row
from benchmarks.table import RESULTS, origin, report

ALGORITHMS = ("nearest", "random", "chain", "reinforce")
SMALL = {"autoencoder": {"hidden_dim": 8}, "batch_size": 4}
OPTIONS = dict.fromkeys(ALGORITHMS, SMALL) | {"reinforce": SMALL | {"policy_hidden_dim": 8}}
HOST = ("processor", "torch", "threads", "gigaflops")
"""Columns that may differ."""
CLAIMS = {"beat_seconds": 1.0, "stale_seconds": 10.0}
PLACES = 2
"""Runs at a time, whatever the engine."""
WAITING, UNITS = 10.0, 6
"""Seconds that a unit of the overhead waits, and how many there are."""
WAITS = (
    "import sys, time; folder = sys.argv[1]; "
    "open(folder + '/began', 'w').write(str(time.monotonic())); "
    f"time.sleep({WAITING}); open(folder + '/result.json', 'w').write('{{}}')"
)
ENGINES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "local": ("local", "local", {}),
    "folder": ("folder, two commands", "folder", CLAIMS),
    "ray": ("ray, two nodes", "ray", {}),
    "slurm": ("slurm, local executor", "slurm", {"cluster": "local"}),
    "ray-copies": ("ray, two nodes without a shared folder", "ray", {"shared": False}),
}
"""What is measured: its name in tables, the engine, and its options."""
KILLED = ("folder", "ray-copies", "ray")
TITLES = {"engines": "engines", "killed": "engines_killed", "overhead": "engines_overhead"}
"""Names of the tables."""


class Bench:
    """The engines of this machine, and a folder for what they do.

    Args:
        folder: of everything.
        seeds: runs of each algorithm.
        merges: budget of a run.
    """

    def __init__(self, folder: Path, seeds: int, merges: int) -> None:
        self.folder, self.seeds, self.merges = folder, seeds, merges
        self.copies = folder / "tmp"
        self.copies.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, out: Path, where: dict[str, str]) -> subprocess.Popen[bytes]:
        """Give the command of a comparison on an engine; ``where`` is the Ray cluster."""
        _, engine, options = ENGINES[name]
        options = options | where
        given = {"HTM-Trees-v0": {"heights": [2, 3]}}
        command = [
            *(sys.executable, "-m", "agents.cli", "compare", "--envs", "HTM-Trees-v0"),
            *("--env-kwargs", json.dumps(given), "--embedding-dim", "3"),
            *("--algos", ",".join(ALGORITHMS), "--algo-options", json.dumps(OPTIONS)),
            *("--seeds", str(self.seeds), "--merges", str(self.merges), "--out", str(out)),
            *("--engine", engine, "--engine-options", json.dumps(options)),
        ]
        command += ["--jobs", str(1 if engine == "folder" else PLACES)]
        with open(out.with_suffix(".log"), "ab") as log:
            env = os.environ | temporary(self.copies)
            return subprocess.Popen(command, stdout=log, stderr=log, env=env)

    def compare(self, name: str, out: Path, kill_seconds: float | None = None) -> Row:
        """A comparison to its end; with ``kill_seconds``, something is killed that often."""
        with cluster_of(name, self.copies) as where:
            return self._compare(name, out, kill_seconds, where)

    def _compare(
        self, name: str, out: Path, kill_seconds: float | None, where: dict[str, str]
    ) -> Row:
        began, kills = time.monotonic(), 0
        commands = [
            self.start(name, out, where) for _ in range(2 if name.startswith("folder") else 1)
        ]
        rng, due = random.Random(name), began + (kill_seconds or 0.0)
        while any(command.poll() is None for command in commands):
            time.sleep(0.2)
            if kill_seconds is None or time.monotonic() < due:
                continue
            due = time.monotonic() + kill_seconds
            if name == "folder":
                place = rng.randrange(len(commands))
                if commands[place].poll() is None:
                    commands[place].kill()
                    commands[place].wait()
                    commands[place] = self.start(name, out, where)
                    kills += 1
            else:
                kills += self._kill_worker(rng)
        seconds = time.monotonic() - began
        for command in commands:
            if command.returncode != 0:
                said = out.with_suffix(".log").read_text()[-2000:]
                raise ChildProcessError(f"{name} ended with {command.returncode}: {said}")
        return {"engine": ENGINES[name][0], "seconds": seconds, "killed": kills} | self.left(out)

    def overhead(self, name: str) -> float:
        """Seconds from the start of the first unit to the end of all, as the engine tells it."""
        _, engine, options = ENGINES[name]
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        units = []
        for number in range(UNITS):
            (folder / str(number)).mkdir(parents=True)
            units.append(Unit(str(number), folder / str(number), ("-c", WAITS)))
        over = []

        def watch(progress: Any) -> None:
            if all(one.state.ended for one in progress.values()):
                over.append(time.monotonic())

        with cluster_of(name, self.copies) as where:
            made = make_engine(engine, Site(folder, PLACES), options | where)
            run_units(units, made, watch)
        began = min(float((unit.folder / "began").read_text()) for unit in units)
        return over[0] - began

    def left(self, out: Path) -> Row:
        """Runs that go on, and claims and copies that stay, a few seconds after the end."""
        deadline = time.monotonic() + 10
        while self._processes() and time.monotonic() < deadline:
            time.sleep(0.2)
        return {
            "processes left": len(self._processes()),
            "claims left": len(list(out.rglob(".claim*"))),
            "copies left": len(list(self.copies.glob("htm-*"))),
        }

    def _processes(self) -> list[int]:
        """Runs in this folder, or in a copy of one."""
        begun = f"\0--resume\0{self.folder}/".encode()
        return [number for number, line in _command_lines() if begun in line]

    @staticmethod
    def _kill_worker(rng: random.Random) -> bool:
        """Kill a process of Ray that runs a unit, or that of the desk; False if there is none."""
        busy = (b"ray::HTM-", b"ray::Desk")
        found = [number for number, line in _command_lines() if line.startswith(busy)]
        if found:
            with suppress(ProcessLookupError):
                os.kill(rng.choice(found), signal.SIGKILL)
        return bool(found)


def _command_lines() -> Iterator[tuple[int, bytes]]:
    for path in sorted(Path("/proc").glob("[0-9]*/cmdline")):
        with suppress(OSError):  # it has ended meanwhile
            yield int(path.parent.name), path.read_bytes()


def same(out: Path, expected: Path) -> Row:
    """What two comparisons have in common."""
    tables = []
    for folder in (out, expected):
        rows = csv.DictReader((folder / "results.csv").read_text().splitlines())
        without = (*HOST, "seconds")
        tables.append([{k: v for k, v in row.items() if k not in without} for row in rows])
    mine, other = (comparison_of(folder)["runs"] for folder in (out, expected))
    equal = sum(mine[name]["autoencoder"] == run["autoencoder"] for name, run in other.items())
    states = sum(mine[name]["state"] == run["state"] for name, run in other.items())
    return {
        "runs": len(mine),
        "the table of local": "yes" if tables[0] == tables[1] else "no",
        "weights bit for bit": equal,
        "checkpoints bit for bit": states,
    }


def temporary(folder: Path) -> dict[str, str]:
    """The environment in which temporary files are in a folder, but for those of Ray itself, whose
    names would be too long for sockets."""
    return {"TMPDIR": str(folder), "RAY_TMPDIR": "/tmp"}


@contextmanager
def cluster_of(name: str, copies: Path) -> Iterator[dict[str, str]]:
    """The address of a Ray cluster of two nodes with a core each, both on this machine, for an
    engine that takes one.

    Its tasks make copies of run folders in the folder ``copies``, so that whoever works on one is
    found. They inherit the environment in which the nodes were started, not that of the command.
    """
    if not name.startswith("ray"):
        yield {}
        return
    import agents.engines.on_ray  # noqa: F401, I001  before Ray, which it prepares
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 75 * 2**20, "node_ip_address": "127.0.0.1"}
    before = {name: os.environ.get(name) for name in temporary(copies)}
    os.environ.update(temporary(copies))
    try:
        made = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        made.add_node(**node)
    finally:
        for variable, value in before.items():
            if value is None:
                del os.environ[variable]
            else:
                os.environ[variable] = value
    try:
        yield {"address": made.address}
    finally:
        made.shutdown()


def measured(path: Path, measure: Callable[[], Row]) -> Row:
    """A row, kept in a file: an interrupted benchmark goes on behind the last one."""
    if not path.exists():
        path.write_text(json.dumps(measure()))
    found: Row = json.loads(path.read_text())
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6, help="runs of each of four algorithms")
    parser.add_argument("--merges", type=int, default=600, help="budget of a run")
    parser.add_argument("--kill-seconds", type=float, default=20.0, help="between two kills")
    parser.add_argument("--tables", nargs="*", default=["engines", "killed", "overhead"])
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--folder", type=Path, help="of the runs, to go on after an interruption")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables")
    options = parser.parse_args(arguments)
    made_by = origin("benchmarks.engines", sys.argv[1:] if arguments is None else arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = (options.folder or Path(name)).resolve()
        bench = Bench(folder, options.seeds, options.merges)
        local = folder / "local"
        if {"engines", "killed"} & set(options.tables):
            measured(folder / "local.json", lambda: bench.compare("local", local))

        def compared(engine: str, out: Path, kill_seconds: float | None = None) -> Row:
            row = bench.compare(engine, out, kill_seconds)
            print(row | same(out, local), file=sys.stderr, flush=True)
            return row

        for table, engines in (("engines", tuple(ENGINES)), ("killed", KILLED)):
            chosen = [name for name in engines if name in options.engines]
            if table not in options.tables or not chosen:
                continue
            rows = []
            for name in chosen:
                out = local if name == "local" else folder / f"{table}-{name}"
                often = options.kill_seconds if table == "killed" else None
                path = folder / f"{out.name}.json"
                row = measured(path, partial(compared, name, out, often)) | same(out, local)
                if table == "engines":
                    del row["killed"]
                rows.append(row)
            report(TITLES[table], rows, options.out, made_by=made_by)
        if "overhead" in options.tables:
            rows = []
            for name in ENGINES:
                if name not in options.engines:
                    continue
                seconds = bench.overhead(name)
                print(f"{name}: {seconds:.1f} s", file=sys.stderr, flush=True)
                called = ENGINES[name][0].replace("two commands", "one command")
                rows.append({"engine": called, "seconds": seconds})
                rows[-1]["over local"] = seconds / rows[0]["seconds"] - 1
                rows[-1]["over the waiting"] = seconds / (WAITING * UNITS / PLACES) - 1
            report(TITLES["overhead"], rows, options.out, made_by=made_by)


if __name__ == "__main__":
    main()
