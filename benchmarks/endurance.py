"""Runs that are killed and interrupted at random moments: ``python -m benchmarks.endurance``.

Every run is disturbed again and again, each time in a part of its work that is drawn at random, and
continued by the same command until it is done; then everything that it left behind is compared, bit
for bit, with a run that nothing disturbed. The commands run in copies (``fork``) of a process that
has loaded the libraries, which would take most of the time otherwise; every tenth one starts from
nothing. A comparison starts processes of its own: the signal goes to it, to one of them, or to all,
and what a killed comparison leaves running ends by itself or is killed too. At last commands get
Ctrl-C or SIGTERM in their first seconds, before there is anything to continue.

An ending counts as another one where a command does not say, in a line and in its status, that it
was interrupted, or shows a traceback.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from agents.cli import main as htm
from agents.runs.checkpoint import load_state
from agents.runs.interruption import exit_at_once
from agents.runs.loop import ACTIVITIES, Training
from benchmarks.measuring import Row
from benchmarks.table import RESULTS, origin, report

ALGORITHMS = ("reinforce", "rloo", "replay", "ppo", "maskable_ppo", "nearest")
COMPARISON = "compare"
KILLS = 300
STARTS = 40
"""Commands that get Ctrl-C or SIGTERM in their first seconds."""
A_RUN = 12
"""Disturbances of a run at most."""
COMPARED = 0.5
"""The share of a comparison in the disturbances, of that of an algorithm: each takes longer."""
FRESH = 10
"""Every so many commands one is started from nothing."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STATUS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
"""The exit status of a command that was disturbed so."""
TASK = [
    *("--env", "HTM-Trees-v0", "--env-kwargs", '{"heights": [2, 3]}'),
    *("--set", "autoencoder.hidden_dim=8"),
]
LEARNED = ("--policy-hidden-dim", "8", "--batch-size", "4")
OF_COPIES = (*LEARNED[:2], "--n-envs", "4", "--batch-size", "8")
OPTIONS = {"nearest": LEARNED[2:], "ppo": OF_COPIES, "maskable_ppo": OF_COPIES}
"""Options of algorithms that do not take those of :data:`LEARNED`."""
MERGES = {"nearest": 4_000, "compare": 20_000}
"""Budgets; of all others 2,000."""
OTHER = "other"
"""What a run does between the :data:`ACTIVITIES`."""
MOMENTS = (*ACTIVITIES, OTHER)
UNKNOWN = "unknown"
"""The moment of a process whose activity is not known."""
A_RUN_OF_IT = "a run"
TARGETS = ("comparison", A_RUN_OF_IT, "all")
"""What a signal to a comparison goes to."""
PAIR = ("nearest", "random")
"""The algorithms of the comparison, one run each, whose trees are searched on."""
CLOCK = ("seconds", "update_seconds", "spent", "metrics_sha256", "digest", "start_time")
"""Fields that a clock decides, or that are a digest over such."""
LIBRARIES = (
    *("agents.ppo.learner", "agents.learners.replay", "agents.registry", "pytorch_optimizer"),
    *("agents.runs.session", "agents.cli.train", "agents.cli.command", "matplotlib.pyplot"),
    *("htm_env.drawing.rendering", "torch.utils.tensorboard"),
)
"""What the commands import."""
FRESH_SECONDS = 4.0
"""Processor seconds in which a fresh process has loaded its libraries."""
PYTHON_SECONDS = 0.05
"""Those in which Python itself has started: until then it answers to signals as it likes."""
START_SECONDS = 0.8
"""Those in which a copy has read its options and built its learner."""
EARLY = 0.4
"""The share of a whole run's processor time up to which a later part is waited for."""
POLL_SECONDS = 0.001


# ---------------------------------------------------------------- what a run leaves behind


def course_of(folder: Path) -> dict[str, Any]:
    """Everything that a finished run leaves behind, but for the time that it took."""
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return {
        "state": _timeless(load_state(folder / "checkpoint" / "training.safetensors")),
        "autoencoder": (folder / "checkpoint" / "autoencoder.safetensors").read_bytes(),
        "rows": [_timeless(row) for row in rows],
        "result": _timeless(json.loads((folder / "result.json").read_text())),
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob(".*")),
    }


def comparison_of(folder: Path) -> dict[str, Any]:
    """The same of every run of a comparison, and its table."""
    rows = csv.DictReader((folder / "results.csv").read_text().splitlines())
    runs = sorted(path.parent for path in folder.glob("runs/*/*/result.json"))
    return {
        "runs": {str(run.relative_to(folder)): course_of(run) for run in runs},
        "rows": [_timeless(row) for row in rows],
    }


def _timeless(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    if isinstance(value, dict):
        return {
            key: _timeless(item)
            for key, item in value.items()
            if key not in CLOCK and not str(key).startswith("time/")
        }
    return value


# ---------------------------------------------------------------- one command


class Command:
    """A command ``htm ...`` in a process of its own, which says what it is doing.

    Args:
        arguments: of ``htm``.
        log: gets its output.
        fresh: start from nothing, instead of copying this process.
    """

    def __init__(self, arguments: Sequence[str], log: Path, fresh: bool = False) -> None:
        self.fresh = fresh
        self._activity = mmap.mmap(-1, 1)  # shared with the copy
        with open(log, "wb") as output:
            if fresh:
                command = [sys.executable, "-m", "agents.cli", *arguments]
                started = subprocess.Popen(command, stdout=output, stderr=output)
                self.process, started.returncode = started.pid, 0  # it is waited for here
                return
            sys.stdout.flush()
            sys.stderr.flush()
            self.process = os.fork()
            if self.process == 0:
                self._run(arguments, output.fileno())

    def _run(self, arguments: Sequence[str], output: int) -> None:
        """What the copy does; until :func:`agents.cli.main` handles signals, these end it."""
        status = 70
        try:
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, exit_at_once)
            Training.spending = self._said()  # type: ignore[method-assign]
            status = htm(arguments)
        except SystemExit as error:
            status = int(error.code or 0)
        finally:
            sys.stdout.flush()
            os._exit(status)

    def _said(self) -> Any:
        """``Training.spending`` that writes to shared memory what a run is at."""
        spending = Training.spending

        @contextmanager
        def said(training: Training, activity: str) -> Iterator[None]:
            self._activity[0] = MOMENTS.index(activity)
            try:
                with spending(training, activity):
                    yield
            finally:
                self._activity[0] = MOMENTS.index(OTHER)

        return said

    @property
    def moment(self) -> str:
        """What it does now."""
        return UNKNOWN if self.fresh else MOMENTS[self._activity[0]]

    @property
    def seconds(self) -> float:
        """Processor time that it has used, which does not depend on what else runs here."""
        return time.clock_gettime((~self.process << 3) | 2)

    @property
    def runs(self) -> bool:
        return os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait(self) -> int:
        """Its exit status; minus the number of the signal that ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def seconds_to_the_end(self) -> float:
        """The processor time that it takes; raises ``ChildProcessError`` unless all goes well."""
        most = 0.0
        while self.runs:
            with suppress(OSError):
                most = max(most, self.seconds)
            time.sleep(0.01)
        status = self.wait()
        if status != 0:
            raise ChildProcessError(f"an undisturbed command ended with status {status}")
        return most

    def disturb(
        self, how: signal.Signals, moment: str, earliest: float, after: float
    ) -> str | None:
        """Send a signal in the middle of something; returns of what, None if it ended before.

        It is sent so many processor seconds ``after`` the first ``moment`` at ``earliest`` seconds
        from the start or later.
        """
        due = math.inf
        while self.runs:
            with suppress(OSError):  # it has just ended
                seconds = self.seconds
                if due == math.inf and seconds >= earliest and self.moment == moment:
                    due = seconds + after
                if seconds >= due:
                    found = self.moment
                    os.kill(self.process, how)
                    return found
            time.sleep(POLL_SECONDS)
        return None


def arguments_of(algo: str, folder: Path) -> list[str]:
    """The command that starts a run or a comparison, and that continues it."""
    budget = ("--merges", str(MERGES.get(algo, 2_000)))
    if algo == COMPARISON:
        options = {name: {"autoencoder": {"hidden_dim": 8}} for name in PAIR}
        return [
            *("compare", "--envs", "HTM-Trees-v0", "--algos", ",".join(PAIR), "--seeds", "1"),
            *("--env-kwargs", '{"HTM-Trees-v0": {"heights": [2, 3]}}'),
            *("--algo-options", json.dumps(options), *budget, "--jobs", "2"),
            *("--search", "10", "--out", str(folder)),
        ]
    options = OPTIONS.get(algo, LEARNED)
    return ["train", *TASK, "--algo", algo, *options, *budget, "--resume", str(folder)]


# ---------------------------------------------------------------- many disturbances


class Tally:
    """What was done to the runs of an algorithm, and what came of it."""

    def __init__(self, algo: str) -> None:
        self.algo, self.runs, self.identical = algo, 0, 0
        self.signals: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.others: list[str] = []
        """Endings that should not be."""

    @property
    def disturbed(self) -> int:
        return sum(self.signals.values())

    def add(self, how: signal.Signals, moment: str | None, status: int, said: str) -> None:
        """Count a disturbance, and what the command ended with; it may have been just about to.

        ``moment`` is None where it ended before anything disturbed it. A comparison of which one
        run was disturbed says that this run failed, and finishes the others.
        """
        if moment is None:
            if status != 0:
                self.others.append(f"undisturbed it ended with {status}: {said!r}")
            return
        self.signals[how.name] += 1
        self.moments[moment] += 1
        expected, line = STATUS[how], "htm: interrupted"
        if moment == A_RUN_OF_IT:
            expected, line = 1, "htm: 1 of the runs failed"
        told = any(each.startswith(line) for each in said.splitlines())
        if status != 0 and (status != expected or not (told or expected == STATUS[signal.SIGKILL])):
            self.others.append(f"{how.name} at {moment} ended with {status}: {said[-200:]!r}")
        elif "Traceback" in said:
            self.others.append(f"{how.name} at {moment} said {said!r}")

    def row(self, moments: Sequence[str]) -> Row:
        return {
            "algorithm": self.algo,
            "disturbed": self.disturbed,
            **{how.name: self.signals[how.name] for how in SIGNALS},
            **{name: self.moments[name] for name in moments},
            "runs": self.runs,
            "bit for bit": self.identical,
            "other endings": len(self.others),
        }


def endure(algo: str, count: int, folder: Path, rng: random.Random) -> Tally:
    """Disturb runs of an algorithm, or comparisons, ``count`` times, each until it is done."""
    folder.mkdir(parents=True)
    course, disturbed = (
        (comparison_of, disturbed_comparison) if algo == COMPARISON else (course_of, disturbed_run)
    )
    tally, whole = Tally(algo), folder / "whole"
    started = time.monotonic()
    seconds = Command(arguments_of(algo, whole), folder / "whole.log").seconds_to_the_end()
    if algo == COMPARISON:  # most of it is done by others
        seconds = time.monotonic() - started
    expected = course(whole)
    while tally.disturbed < count:
        found = folder / str(tally.runs)
        arguments, log = arguments_of(algo, found), found.with_suffix(".log")
        for _ in range(min(A_RUN, count - tally.disturbed)):
            command = Command(arguments, log, fresh=tally.disturbed % FRESH == FRESH - 1)
            how = rng.choice(SIGNALS)
            moment, status = disturbed(command, how, seconds, rng, found)
            tally.add(how, moment, status, log.read_text(errors="replace"))
            if moment is None and status == 0:
                break  # it was done
        Command(arguments, log).seconds_to_the_end()
        tally.runs += 1
        tally.identical += course(found) == expected
        done = f"{tally.identical} of {tally.runs} bit for bit, {len(tally.others)} other endings"
        print(f"{algo}: {tally.disturbed} of {count}, {done}", file=sys.stderr, flush=True)
    return tally


def disturbed_run(
    command: Command, how: signal.Signals, seconds: float, rng: random.Random, folder: Path
) -> tuple[str | None, int]:
    """The moment of a run at which a signal reached it, None if it ended before, and its status.

    ``seconds`` are those of a run that nothing disturbs.
    """
    moment, earliest = rng.choice(ACTIVITIES), rng.uniform(0.0, EARLY * seconds)
    if command.fresh:
        moment, earliest = UNKNOWN, rng.uniform(0.0, EARLY * seconds + FRESH_SECONDS)
    elif moment == "start_up":
        earliest = rng.uniform(0.0, START_SECONDS)
    found = command.disturb(how, moment, earliest, after=rng.uniform(0.0, 0.05))
    return found, command.wait()


def disturbed_comparison(
    command: Command, how: signal.Signals, seconds: float, rng: random.Random, folder: Path
) -> tuple[str | None, int]:
    """What of a comparison a signal reached, None if it ended before, and its status."""
    target, moment = rng.choice(TARGETS), time.monotonic() + rng.uniform(0.0, seconds)
    while command.runs and time.monotonic() < moment:
        time.sleep(0.01)
    ended, runs = not command.runs, processes_of(folder)
    if not runs:
        target = TARGETS[0]
    hit = {"comparison": [command.process], "a run": runs[:1]}.get(target, [command.process, *runs])
    if not ended:
        _send(how, hit)
    status = command.wait()
    if rng.random() < 0.5:
        _send(signal.SIGKILL, processes_of(folder))
    while processes_of(folder):
        time.sleep(0.05)
    return None if ended else target, status


def _send(how: signal.Signals, processes: Sequence[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, how)


def starts(how: signal.Signals, count: int, folder: Path, rng: random.Random) -> Row:
    """What comes of a signal in the first seconds of a command that starts from nothing."""
    folder.mkdir(parents=True)
    Command(arguments_of("reinforce", folder / "whole"), folder / "log").seconds_to_the_end()
    expected = course_of(folder / "whole")
    outcomes: Counter[str] = Counter()
    for number in range(count):
        found, log = folder / str(number), folder / f"{number}.log"
        arguments = arguments_of("reinforce", found)
        command = Command(arguments, log, fresh=True)
        command.disturb(how, UNKNOWN, rng.uniform(PYTHON_SECONDS, FRESH_SECONDS), after=0.0)
        status, said = command.wait(), log.read_text(errors="replace")
        lines = [line for line in said.splitlines() if line.startswith("htm: interrupted")]
        told = status == STATUS[how] and len(lines) == 1 and "Traceback" not in said
        outcomes["one line and its status"] += told
        outcomes["no folder"] += not found.exists()
        if found.exists():
            Command(arguments, log).seconds_to_the_end()
            outcomes["bit for bit when resumed"] += course_of(found) == expected
        if not told:
            print(f"{how.name}, {status}: {said}", file=sys.stderr)
    columns = ("one line and its status", "no folder", "bit for bit when resumed")
    return {"signal": how.name, "sent": count, **{name: outcomes[name] for name in columns}}


def processes_of(folder: Path) -> list[int]:
    """The runs of a comparison that are alive, by their process."""
    begun = f"\0--resume\0{folder}/".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            if begun in path.read_bytes():
                found.append(int(path.parent.name))
    return sorted(found)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--algorithms", nargs="*", default=[*ALGORITHMS, COMPARISON], help=f"or {COMPARISON}"
    )
    parser.add_argument("--kills", type=int, default=KILLS, help="of all together")
    parser.add_argument("--starts", type=int, default=STARTS, help="interrupted in their start")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(arguments)
    for name in LIBRARIES:
        import_module(name)
    torch.set_num_threads(1)
    shares = {name: COMPARED if name == COMPARISON else 1.0 for name in options.algorithms}
    tallies = []
    with tempfile.TemporaryDirectory() as folder:
        for algo, share in shares.items():
            count = math.ceil(options.kills * share / sum(shares.values()))
            rng = random.Random(f"{options.seed} {algo}")
            tallies.append(endure(algo, count, Path(folder).resolve() / algo, rng))
        started = [
            starts(how, options.starts // 2, Path(folder) / how.name, random.Random(how.name))
            for how in (signal.SIGINT, signal.SIGTERM)
            if options.starts
        ]
    for tally in tallies:
        for line in tally.others:
            print(f"{tally.algo}: {line}", file=sys.stderr)
    made_by = origin("benchmarks.endurance", sys.argv[1:] if arguments is None else arguments)
    runs = [tally for tally in tallies if tally.algo != COMPARISON]
    compared = [tally for tally in tallies if tally.algo == COMPARISON]
    if runs:
        rows = [tally.row((*MOMENTS, UNKNOWN)) for tally in runs]
        report("endurance", rows, options.out, made_by=made_by)
    if compared:
        rows = [tally.row(TARGETS) for tally in compared]
        report("endurance_comparison", rows, options.out, made_by=made_by)
    if started:
        report("endurance_starts", started, options.out, made_by=made_by)


if __name__ == "__main__":
    main()
