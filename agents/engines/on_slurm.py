"""``slurm``: one job of a Slurm array a unit, through submitit.

The folder of the comparison has to be on a file system that all machines share. Slurm's signal
before a time limit or a preemption makes a unit write its checkpoint, and its job is queued again.
submitit keeps the jobs that it submits as pickles in its folder, and only the jobs themselves load
them: what this process reads of a job is text.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import signal
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import submitit

from agents.config.dataclasses_json import check_bounds
from agents.engines.base import POLL_SECONDS, Engine, Progress, Site, Unit, UnitState
from agents.engines.process import UnitProcess, blocked
from agents.engines.stops import FOLDER, STOP
from agents.runs.interruption import STOP_SECONDS

SILENT_LOOKS = 10
"""Looks after which a job that is over, and whose report has no end, has failed."""
LOOK_SECONDS = 1.0
"""Jobs look for the file that stops them, and this process for the reports of jobs on other
machines, as often as this."""
STOPPED = Progress(UnitState.FAILED, "stopped")


@dataclass(frozen=True)
class SlurmConfig:
    """What a job asks Slurm for."""

    cluster: Literal["slurm", "local"] = "slurm"
    """local: submitit's processes on this machine, to try it without Slurm."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    timeout_min: int = 240
    """Minutes until a job is stopped with its checkpoint, and queued again."""
    cpus_per_task: int = 1
    mem_gb: float = 4.0
    gpus_per_node: int = 0
    signal_delay_s: int = 120
    """Seconds between Slurm's signal and the end of the job; a checkpoint takes up to 60."""
    max_timeouts: int = 100
    """Times that a job is queued again after its time was over."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """More parameters of submitit's executor, by their names there."""

    def __post_init__(self) -> None:
        check_bounds(self, timeout_min=1, cpus_per_task=1, mem_gb=0.01, gpus_per_node=0)
        check_bounds(self, signal_delay_s=1, max_timeouts=0)


class SlurmEngine(Engine):
    """Submits all units as one array, of which ``--jobs`` run at a time."""

    config_class = SlurmConfig
    config: SlurmConfig

    def __init__(self, site: Site, config: SlurmConfig | None = None) -> None:
        super().__init__(site, config)
        self._folder = site.folder / FOLDER / secrets.token_hex(4)
        self._progress: dict[str, Progress] = {}
        self._executor: Any = None
        self._waiting: deque[tuple[str, UnitJob]] = deque()
        self._jobs: dict[str, Any] = {}
        self._reports: dict[str, Path] = {}
        self._silent: Counter[str] = Counter()
        self._next_look = 0.0

    def submit(self, units: Sequence[Unit]) -> None:
        self._folder.mkdir(parents=True)
        self._executor = self._made_executor()
        self._progress = {unit.name: Progress() for unit in units}
        self._reports = {
            unit.name: self._folder / f"{number}.json" for number, unit in enumerate(units)
        }
        jobs = [UnitJob(unit, self._reports[unit.name], os.getcwd()) for unit in units]
        if self.config.cluster == "local":  # where everything would start at once
            self._waiting.extend(zip(self._progress, jobs, strict=True))
        else:
            submitted = self._executor.submit_array(jobs)
            self._jobs = dict(zip(self._progress, submitted, strict=True))

    def poll(self) -> Mapping[str, Progress]:
        while self._waiting and len(self._jobs) < (self.site.jobs or os.cpu_count() or 1):
            name, unit_job = self._waiting.popleft()
            self._jobs[name] = self._executor.submit(unit_job)
        if time.monotonic() >= self._next_look:
            here = self.config.cluster == "local"
            self._next_look = time.monotonic() + (POLL_SECONDS if here else LOOK_SECONDS)
            for name, job in list(self._jobs.items()):
                self._look(name, job)
        return self._progress

    def cancel(self) -> None:
        if not self._folder.is_dir():
            return  # nothing was submitted
        (self._folder / STOP).touch()
        self._waiting.clear()
        try:
            for name, job in list(self._jobs.items()):
                if self._progress[name].state is UnitState.WAITING:
                    job.cancel(check=False)
                    del self._jobs[name]
            deadline = time.monotonic() + STOP_SECONDS + 2 * LOOK_SECONDS
            while self._jobs and time.monotonic() < deadline:
                for name, job in list(self._jobs.items()):
                    self._look(name, job)
                time.sleep(POLL_SECONDS)
        finally:
            for job in self._jobs.values():
                job.cancel(check=False)
        if not any(one.state is UnitState.FAILED for one in self._progress.values()):
            shutil.rmtree(self._folder, ignore_errors=True)

    def _look(self, name: str, job: Any) -> None:
        """Take a job's report; one that is over without its end has failed."""
        over = job.done()
        found = _read_report(self._reports[name])
        if found.state.ended:
            del self._jobs[name]
        elif over:
            self._silent[name] += 1
            if self._silent[name] < SILENT_LOOKS:
                return  # the file system may show the report a moment later
            del self._jobs[name]
            reason = f"its job {job.job_id} ended as {job.state}; see {job.paths.stderr}"
            found = Progress(UnitState.FAILED, reason, found.host)
        self._progress[name] = found

    def _made_executor(self) -> Any:
        config = self.config
        options: dict[str, Any] = {}
        if config.cluster == "slurm":
            options["slurm_max_num_timeout"] = config.max_timeouts
        try:
            executor = submitit.AutoExecutor(self._folder, cluster=config.cluster, **options)
        except RuntimeError as error:
            raise ValueError(f"no Slurm here: {error}") from None
        given: dict[str, Any] = {
            "name": "htm",
            "timeout_min": config.timeout_min,
            "cpus_per_task": config.cpus_per_task,
            "mem_gb": config.mem_gb,
            "gpus_per_node": config.gpus_per_node,
        }
        for name in ("partition", "account", "qos", "constraint", "signal_delay_s"):
            given[f"slurm_{name}"] = getattr(config, name)
        if self.site.jobs is not None:
            given["slurm_array_parallelism"] = self.site.jobs
        given |= config.parameters
        executor.update_parameters(**{k: v for k, v in given.items() if v is not None})
        return executor


class UnitJob:
    """What a job runs: a unit, until its end, a signal of Slurm, or the file :data:`STOP`.

    Args:
        unit: its folder has to be there on the machine of the job too.
        report: the file in which the job tells its progress.
        place: the working folder of the command.
    """

    def __init__(self, unit: Unit, report: Path, place: str) -> None:
        self.unit, self.report, self.place = unit, report, place
        self._process: UnitProcess | None = None

    def __call__(self) -> None:
        host = f"{platform.node()}:{os.getpid()}"
        if not self.unit.folder.is_dir():
            reason = f"{self.unit.folder} is not on {platform.node()}: slurm needs a shared folder"
            self._tell(Progress(UnitState.FAILED, reason, host))
            return
        # Slurm sends SIGTERM where it preempts, which submitit passes over; its own signal has the
        # checkpoint written and the job queued again.
        handler = signal.getsignal(signal.SIGUSR2)
        if callable(handler):
            signal.signal(signal.SIGTERM, handler)
        self._tell(Progress(UnitState.RUNNING, host=host))
        while True:
            end = self._run()
            if not blocked(end):
                break
            time.sleep(LOOK_SECONDS)  # what an earlier job has left ends soon
        self._tell(Progress(end.state, end.reason, host))

    def checkpoint(self) -> submitit.helpers.DelayedSubmission | None:
        """Called by submitit when Slurm takes the machine away; the job is queued again, unless it
        was told to stop."""
        if self._process is not None:
            self._process.stop()
            self._process.wait(STOP_SECONDS)
        if (self.report.parent / STOP).exists():
            self._tell(STOPPED)
            return None
        self._tell(Progress())
        again = UnitJob(self.unit, self.report, self.place)
        return submitit.helpers.DelayedSubmission(again)

    def _run(self) -> Progress:
        place = self.place if os.path.isdir(self.place) else None
        self._process = process = UnitProcess(self.unit, place=place)
        next_look = 0.0
        while (end := process.ended()) is None:
            time.sleep(POLL_SECONDS)
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + LOOK_SECONDS
                if (self.report.parent / STOP).exists():
                    process.stop()
                    process.wait(STOP_SECONDS)
                    return STOPPED
        return end

    def _tell(self, progress: Progress) -> None:
        told = {"state": progress.state.value, "reason": progress.reason, "host": progress.host}
        coming = self.report.with_suffix(".tmp")
        coming.write_text(json.dumps(told))
        os.replace(coming, self.report)


def _read_report(path: Path) -> Progress:
    try:
        told = json.loads(path.read_text())
        return Progress(UnitState(told["state"]), str(told["reason"]), str(told["host"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Progress()
