"""Engines: what fails is said, what is interrupted is stopped, what a dead process left goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from units import DIES, FINISHES, unit

from agents.engines import Engine, Progress, Site, Unit, UnitState, make_engine, run_units
from agents.engines.claims import CLAIM, Claim, Watch
from agents.engines.process import RETRIES, UnitProcess
from agents.runs.lock import locked
from benchmarks.engines import Bench

ROOT = Path(__file__).parent.parent
FAST = {"beat_seconds": 0.1, "stale_seconds": 1.0}
SLOW = f"import time; time.sleep(0.5); {FINISHES}"


def states(ends: dict[str, Progress]) -> list[str]:
    return [end.state.value for end in ends.values()]


@pytest.fixture(params=["local", "folder"])
def engine(request, tmp_path) -> Engine:
    """An engine with one place."""
    return make_engine(request.param, Site(tmp_path, 1), FAST if request.param == "folder" else {})


# ---------------------------------------------------------------- every engine


def test_one_that_fails_says_why_and_the_others_go_on(tmp_path, engine):
    failing = "import sys; print('something'); sys.exit('htm: no such data')"
    units = [
        unit(tmp_path, "killed", f"print('began', flush=True); {DIES}"),
        unit(tmp_path, "failing", failing),
        unit(tmp_path, "fine", f"print('done'); {FINISHES}"),
    ]
    ends = run_units(units, engine)
    assert states(ends) == ["failed", "failed", "done"]
    assert ends["killed"].reason == "killed by SIGKILL"
    assert units[0].log.read_text() == "began\n" * (1 + RETRIES)
    assert units[1].log.read_text().count("something") == 1
    assert ends["failing"].reason == "exit status 1: no such data"
    assert units[2].log.read_text() == "done\n"


def test_one_that_a_signal_killed_goes_on(tmp_path, engine):
    """It is killed as often as it may be, and then done."""
    attempts = (
        "import sys\n"
        "attempts = open(sys.argv[1] + '/attempts', 'a+')\n"
        "print('again', file=attempts, flush=True)\n"
        "attempts.seek(0)\n"
        f"if len(attempts.readlines()) <= {RETRIES}:\n"
        f"    {DIES}\n"
        f"{FINISHES}"
    )
    one = unit(tmp_path, "one", attempts)
    assert states(run_units([one], engine)) == ["done"]
    assert (one.folder / "attempts").read_text() == "again\n" * (1 + RETRIES)


LOCKS = f"""
import sys
from pathlib import Path
from agents.runs.lock import locked
try:
    with locked(sys.argv[1]):
        {FINISHES}
except ValueError as error:
    Path(sys.argv[1], "refused").touch()
    sys.exit(f"htm: {{error}}")
"""


def test_what_a_job_of_a_killed_command_has_is_waited_for(tmp_path, engine):
    """The job is told to stop, whatever the engine is now, and has the run's folder until then."""
    one, stop = unit(tmp_path, "one", LOCKS), tmp_path / "slurm" / "0123abcd" / "stop"
    stop.parent.mkdir(parents=True)

    def job() -> None:
        with locked(one.folder):
            (stop.parent / "works").touch()
            wait_until(lambda: stop.exists() and (one.folder / "refused").exists())

    left = get_context("fork").Process(target=job)
    left.start()
    wait_until((stop.parent / "works").exists)
    assert states(run_units([one], engine)) == ["done"]
    assert status(left) == 0


def test_no_job_is_stopped_through_a_link(tmp_path, engine):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "old").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="slurm/old is a link"):
        run_units([unit(tmp_path, "one")], engine)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_reason_is_of_the_last_attempt(tmp_path, engine):
    """What the log has of an earlier attempt is not given as the reason."""
    units = [
        unit(tmp_path, "silent", "raise SystemExit(3)"),
        unit(tmp_path, "killed", "import os; os.kill(os.getpid(), 40)"),
    ]
    for one in units:
        one.log.write_text("htm: the folder is in use by process 1\n")
    ends = run_units(units, engine)
    assert ends["silent"].reason == "exit status 3"
    assert ends["killed"].reason == "killed by signal 40"


@pytest.mark.parametrize(("name", "options"), [("local", {}), ("folder", FAST)])
def test_as_many_at_a_time_as_there_are_places(tmp_path, name, options):
    units = [unit(tmp_path, str(k), SLOW) for k in range(4)]
    counts = []

    def watch(now):
        counts.append(sum(one.state is UnitState.RUNNING for one in now.values()))

    ends = run_units(units, make_engine(name, Site(tmp_path, 2), options), watch)
    assert max(counts) == 2
    assert set(states(ends)) == {"done"}


def test_an_interruption_is_passed_on_once_and_waited_for(tmp_path, engine):
    """The process needs a moment to write what it has, and gets it."""
    program = (
        "import signal, sys, time\n"
        "def stop(*_):\n"
        "    time.sleep(0.3); print('saved', flush=True); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    one = unit(tmp_path, "one", program)

    def watch(progress):
        if one.log.exists() and one.log.read_text() == "ready\n":
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_units([one], engine, watch)
    assert one.log.read_text() == "ready\nsaved\n"
    assert time.monotonic() - started < 30
    assert not list(one.folder.glob(".*"))  # no claim


OWNED = """
import signal, sys, time
from agents.runs.interruption import follow_owner
def stop(*_):
    print("saved", flush=True); sys.exit(143)
signal.signal(signal.SIGTERM, stop)
follow_owner()
print("ready", flush=True); time.sleep(60)
"""
OWNER = """
import sys, time
from pathlib import Path
from agents.engines import Unit
from agents.engines.process import UnitProcess
process = UnitProcess(Unit("one", Path(sys.argv[1]), ("-c", sys.argv[2])))
print(process.number, flush=True)
time.sleep(60)
"""


def test_what_a_killed_process_owned_writes_its_checkpoint_and_ends(tmp_path):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), OWNED],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    number = int(owner.stdout.readline())
    log = tmp_path / "log.txt"
    wait_until(lambda: log.exists() and log.read_text() == "ready\n")
    owner.kill()
    owner.communicate()
    wait_until(lambda: log.read_text() == "ready\nsaved\n")
    wait_until(lambda: not runs(number))


def runs(number: int) -> bool:
    """True <--> there is such a process, and it is not one that ended and waits for its parent."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(holds, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---------------------------------------------------------------- choosing an engine


class Instant(Engine):
    """Somebody's own engine: it says of everything that it is done."""

    def submit(self, units):
        self.units = units

    def poll(self):
        return {one.name: Progress(UnitState.DONE, host="nowhere") for one in self.units}

    def cancel(self):
        self.units = []


def test_an_engine_of_ones_own(tmp_path):
    made = make_engine(f"{__name__}:Instant", Site(tmp_path))
    ends = run_units([unit(tmp_path, "one", "raise SystemExit(1)")], made)
    assert ends == {"one": Progress(UnitState.DONE, host="nowhere")}


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("loca", {}, "unknown engine 'loca' (did you mean 'local'?)"),
        ("no_such_module:Engine", {}, "there is no module 'no_such_module'"),
        ("pathlib:Path", {}, "expected a class of agents.engines"),
        ("local", {"speed": 3}, "NoOptions has no field 'speed'"),
        ("folder", {"beat_seconds": "x"}, "beat_seconds is"),
        ("folder", {"beat_seconds": 5.0, "stale_seconds": 6.0}, "at least twice beat_seconds"),
    ],
)
def test_what_is_no_engine_is_refused(tmp_path, name, options, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        make_engine(name, Site(tmp_path), options)


@pytest.mark.parametrize(("name", "library"), [("ray", "ray"), ("slurm", "submitit")])
def test_without_its_extra_an_engine_says_what_to_install(tmp_path, monkeypatch, name, library):
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    says = f"the engine {name} needs {library}: pip install 'htm-rl[{name}]'"
    with pytest.raises(ValueError, match=re.escape(says)):
        make_engine(name, Site(tmp_path))


# ---------------------------------------------------------------- claims


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_claim_is_of_one_process(tmp_path):
    clock = Clock()
    first, second = (Watch(10.0, clock) for _ in range(2))
    assert first.owner(tmp_path) is None
    claim = first.claim(tmp_path, "first")
    assert claim is not None
    assert second.claim(tmp_path, "second") is None  # it had seen nothing, and was slower
    assert second.owner(tmp_path) == "first"
    claim.release()
    assert second.owner(tmp_path) is None
    assert second.claim(tmp_path, "second") is not None
    assert first.owner(tmp_path) == "second"


def test_a_claim_to_which_nothing_is_written_is_taken_over_once(tmp_path):
    clock = Clock()
    first, second, third = (Watch(10.0, clock) for _ in range(3))
    old = first.claim(tmp_path, "first")
    assert second.owner(tmp_path) == third.owner(tmp_path) == "first"
    clock.now = 9
    old.beat()
    assert second.owner(tmp_path) == "first"  # it has changed, so the ten seconds begin anew
    clock.now = 18
    assert second.owner(tmp_path) == "first"
    clock.now = 20
    assert second.owner(tmp_path) is None
    assert third.owner(tmp_path) == "first"  # this one has not watched for as long
    clock.now = 31
    assert third.owner(tmp_path) is None
    taken = second.claim(tmp_path, "second")
    assert taken is not None
    assert third.claim(tmp_path, "third") is None
    assert not old.beat()  # it was only asleep, and finds that it is not the owner any more
    old.release()
    assert third.owner(tmp_path) == "second"
    assert taken.beat()
    taken.release()
    assert not list(tmp_path.iterdir())


def test_a_claim_whose_owner_died_while_it_made_it(tmp_path):
    (tmp_path / CLAIM).mkdir()
    clock = Clock()
    watch = Watch(10.0, clock)
    assert watch.owner(tmp_path) == "another process"
    clock.now = 11
    assert watch.owner(tmp_path) is None
    assert watch.claim(tmp_path, "this").number == 1


# ---------------------------------------------------------------- a shared folder


def claimer(units: list[Unit]) -> BaseProcess:
    """A copy of this process that works on the units, one at a time."""

    def work() -> None:
        engine = make_engine("folder", Site(units[0].folder.parent, 1), FAST)
        sys.exit(set(states(run_units(units, engine))) != {"done"})

    process = get_context("fork").Process(target=work)
    process.start()
    return process


def status(process: BaseProcess) -> int | None:
    process.join(60)
    return process.exitcode


WHOSE = "import os, sys; open(sys.argv[1] + '/owners', 'a').write(f'{os.getppid()} ')"
"""A program that writes who owns it."""


def owners(one: Unit) -> list[int]:
    return list(map(int, (one.folder / "owners").read_text().split()))


def test_two_processes_share_the_units_of_a_folder(tmp_path):
    units = [unit(tmp_path, str(k), f"{WHOSE}; {SLOW}") for k in range(6)]
    both = [claimer(units) for _ in range(2)]
    assert [status(one) for one in both] == [0, 0]
    found = [owners(one) for one in units]
    assert all(len(each) == 1 for each in found)  # nothing ran twice
    assert {each[0] for each in found} == {one.pid for one in both}
    assert not list(tmp_path.rglob(f"{CLAIM}*"))


def test_what_a_killed_claimer_had_begun_is_taken_over(tmp_path):
    begins = (
        f"{WHOSE}\n"
        "import time\n"
        "from agents.runs.interruption import follow_owner\n"
        "follow_owner()\n"
        "if len(open(sys.argv[1] + '/owners').read().split()) == 1:\n"
        "    time.sleep(60)\n"
        f"{FINISHES}"
    )
    units = [unit(tmp_path, "begun", begins), unit(tmp_path, "other", f"{WHOSE}; {FINISHES}")]
    doomed = claimer(units)
    wait_until(lambda: (units[0].folder / "owners").exists())
    survivor = claimer(units)
    wait_until(lambda: (units[1].folder / "owners").exists())
    doomed.kill()
    assert status(survivor) == 0
    assert owners(units[0]) == [doomed.pid, survivor.pid]
    assert owners(units[1]) == [survivor.pid]
    assert not list(tmp_path.rglob(f"{CLAIM}*"))


def test_a_claim_whose_owner_died_behind_its_result_is_removed(tmp_path):
    units = [unit(tmp_path, name) for name in ("done", "left")]
    Watch(10.0, Clock()).claim(units[0].folder, "a dead process")
    (units[0].folder / "result.json").write_text("{}")
    ends = run_units(units, make_engine("folder", Site(tmp_path, 1), FAST))
    assert states(ends) == ["done", "done"]
    assert not units[0].log.exists()
    assert not list(tmp_path.rglob(f"{CLAIM}*"))


def test_an_owner_that_slept_stops_what_was_taken_from_it(tmp_path):
    sleeping = "import time; time.sleep(60)"
    one = unit(tmp_path, "one", sleeping)
    engine = make_engine("folder", Site(tmp_path, 1), FAST)
    engine.submit([one])
    try:
        assert engine.poll()["one"].state is UnitState.RUNNING
        (one.folder / CLAIM / "2").mkdir()
        taken = Claim(one.folder, 2, "node8:1")
        taken.beat()
        time.sleep(0.15)
        engine.poll()
        assert engine.poll()["one"] == Progress(UnitState.RUNNING, host="node8:1")
        (one.folder / "result.json").write_text("{}")
        taken.release()
        wait_until(lambda: engine.poll()["one"].state is UnitState.DONE)
    finally:
        engine.cancel()


# ---------------------------------------------------------------- locks that are shared


def test_a_shared_lock_keeps_out_whoever_wants_it_alone(tmp_path):
    folder = tmp_path / "out"

    def refused(**how) -> bool:
        with pytest.raises(ValueError, match="is in use by process"), locked(folder, **how):
            pass
        return True

    with locked(folder, shared=True):
        with locked(folder, shared=True), locked(folder, "other"):
            pass
        assert refused()
    assert not folder.exists()
    with locked(folder):
        assert refused(shared=True)


def test_a_lock_can_be_waited_for(tmp_path):
    def hold() -> None:
        with locked(tmp_path):
            (tmp_path / "held").touch()
            time.sleep(0.5)
            (tmp_path / "held").unlink()

    other = get_context("fork").Process(target=hold)
    other.start()
    wait_until((tmp_path / "held").exists)
    with locked(tmp_path, waits=True):
        assert not (tmp_path / "held").exists()
    assert status(other) == 0


def test_a_process_that_does_not_end_is_killed(tmp_path):
    deaf = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = UnitProcess(unit(tmp_path, "deaf", deaf))
    wait_until(lambda: process.log.read_text() == "ready\n")
    process.stop()
    process.wait(0.1)
    assert process.ended() == Progress(UnitState.FAILED, f"killed by {signal.SIGKILL.name}")


def test_the_benchmark_counts_what_is_left(tmp_path):
    bench = Bench(tmp_path, seeds=1, merges=1)
    out = tmp_path / "out"
    assert bench.left(out) == {"processes left": 0, "claims left": 0, "copies left": 0}
    (out / "one" / CLAIM).mkdir(parents=True)
    for copy in ("htm-0123-a", "htm-4567-b"):
        (bench.copies / copy).mkdir()
    assert bench.left(out) == {"processes left": 0, "claims left": 1, "copies left": 2}
