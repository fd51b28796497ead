"""``ray``: one task of a Ray cluster a unit.

Ray Core alone: planning, checkpoints, resuming and reports are this project's. A task supervises a
process as every engine does, and an actor on the machine of the command, the desk, tells tasks to
stop and hands out and takes in files where machines share none. Whatever dies, the unit goes on
from its last checkpoint in another task.

Ray gives its jobs no authentication unless it is told to: whoever reaches its ports can run code.
Without an address it listens on 127.0.0.1 alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Otherwise Ray takes 127.0.0.1 for the address of this machine in the network.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Otherwise the workers of a Ray that is started here run behind everything else on the machine.
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from agents.config.dataclasses_json import check_bounds
from agents.config.errors import one_line
from agents.engines.base import POLL_SECONDS, Engine, Progress, Site, Unit, UnitState
from agents.engines.process import UnitProcess, blocked, killed
from agents.runs.interruption import STOP_SECONDS

LOOPBACK = "127.0.0.1"
OBJECT_STORE_BYTES = 75 * 2**20
"""The least that Ray takes; pieces of files are all that goes through it."""
PIECE_BYTES = 4 * 2**20
"""Files travel in pieces of so many bytes, of each unit one at a time."""
BEAT_SECONDS = 1.0
"""A task asks the desk whether to stop as often as this."""
SEND_SECONDS = 5.0
"""A task whose folder is a copy sends what has changed as often as this."""
COPY = "htm-"
"""The name of a copy of a run folder begins so, in the folder of temporary files."""
FIRST_MEMORY = 2**30
"""Bytes that a unit without ``memory`` is taken to have needed when it ran out."""
COMPARED = ("htm-rl", "torch")
"""Packages whose versions have to be those of the machine of the command; and Python's."""


@dataclass(frozen=True)
class RayConfig:
    """A cluster, and what a unit needs of it."""

    address: str | None = None
    """``host:port`` of a running cluster, or ``auto``; the command runs on one of its machines.
    Not given: Ray is started on this machine, and ends with the command."""
    num_cpus: float = 1.0
    """Cores that a unit takes."""
    memory: int | None = None
    """Bytes that a unit takes; not given: Ray counts none."""
    num_gpus: float = 0.0
    """GPUs that a unit takes; a share lets several have one."""
    retries: int = 10
    """Times that a unit goes on elsewhere after its worker or its machine died."""
    memory_growth: float = 2.0
    """A unit that ran out of memory, or that the kernel killed while it had asked for some, asks
    for so many times as much the next time."""
    scales: bool = False
    """True <--> the cluster makes nodes as they are needed: a unit for which none is large enough
    waits for one. Otherwise it fails."""
    shared: bool | None = None
    """True <--> all machines see the run folders under the same path; not given: each unit
    tests it. Where they do not, its files are copied there and back."""

    def __post_init__(self) -> None:
        check_bounds(self, num_cpus=0, num_gpus=0, retries=0, memory_growth=1)
        if self.memory is not None:
            check_bounds(self, memory=1)


class RayEngine(Engine):
    """Submits every unit as a task, ``--jobs`` of them at most, and those of dead workers again."""

    config_class = RayConfig
    config: RayConfig

    def __init__(self, site: Site, config: RayConfig | None = None) -> None:
        super().__init__(site, config)
        self._units: dict[str, Unit] = {}
        self._progress: dict[str, Progress] = {}
        self._waiting: deque[str] = deque()
        self._tasks: dict[Any, str] = {}
        self._attempts: dict[str, int] = {}
        self._memory: dict[str, int | None] = {}
        self._nodes: dict[str, dict[str, float]] = {}  # all that were seen: what died may return
        self._work = ray.remote(_work)  # once: each is sent to the cluster
        self._desk: Any = None
        self._hosts: Any = None  # the desk's answer that is due
        self._next_hosts = 0.0
        self._probe = site.folder / f".ray-{secrets.token_hex(8)}"

    def submit(self, units: Sequence[Unit]) -> None:
        self._units = {unit.name: unit for unit in units}
        self._progress = {name: Progress() for name in self._units}
        self._attempts = dict.fromkeys(self._units, 0)
        self._memory = dict.fromkeys(self._units, self.config.memory)
        self._waiting.extend(self._units)
        self._probe.touch()
        _connect(self.config.address, self.site.jobs)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        desk = ray.remote(Desk).options(
            num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
        )
        self._desk = desk.remote(str(self.site.folder))

    def poll(self) -> Mapping[str, Progress]:
        while self._waiting and (self.site.jobs is None or len(self._tasks) < self.site.jobs):
            self._start(self._waiting.popleft())
        if self._tasks:
            tasks = list(self._tasks)
            for task in ray.wait(tasks, num_returns=len(tasks), timeout=0)[0]:
                self._end(self._tasks.pop(task), task)
        self._read_hosts()
        return self._progress

    def cancel(self) -> None:
        try:
            if self._tasks:
                self._stop()
        finally:
            if ray.is_initialized():
                ray.shutdown()
            self._probe.unlink(missing_ok=True)

    def _start(self, name: str) -> None:
        reason = "" if self.config.scales else self._too_large(name)
        if reason:
            self._progress[name] = Progress(UnitState.FAILED, reason)
            return
        work = self._work.options(
            name=name,
            num_cpus=self.config.num_cpus,
            num_gpus=self.config.num_gpus,
            memory=self._memory[name],
            max_retries=0,  # the same task again would have the same memory
        )
        shared = str(self._probe) if self.config.shared is None else self.config.shared
        place = os.getcwd()
        task = work.remote(self._units[name], place, shared, _versions(), self._desk)
        self._tasks[task] = name
        self._progress[name] = Progress()

    def _too_large(self, name: str) -> str:
        """Why no node can ever run a unit, in one line; empty where one can."""
        needs = {
            "CPU": float(self.config.num_cpus),
            "GPU": float(self.config.num_gpus),
            "memory": float(self._memory[name] or 0),
        }
        if not too_large(needs, self._nodes.values()):
            return ""
        alive = [node for node in ray.nodes() if node["Alive"]]
        self._nodes |= {node["NodeID"]: node["Resources"] for node in alive}
        reason = too_large(needs, self._nodes.values())
        grown = self._memory[name] != self.config.memory
        return f"{reason}; with less it ran out of memory" if reason and grown else reason

    def _end(self, name: str, task: Any) -> None:
        host, out_of_memory = self._progress[name].host, False
        try:
            state, reason, retry = ray.get(task)
            if state == UnitState.WAITING.value:  # it stopped, since its desk did not answer
                state, reason, retry = UnitState.FAILED.value, "the command did not answer", True
            killed_here = killed(Progress(UnitState(state), reason), signal.SIGKILL.name)
            out_of_memory = killed_here and self._memory[name] is not None
        except RayTaskError as error:
            state, reason, retry = UnitState.FAILED.value, one_line(str(error.cause)), False
        except RayError as error:
            state, reason, retry = UnitState.FAILED.value, _first_line(error), True
            out_of_memory = isinstance(error, OutOfMemoryError)
        if out_of_memory:
            needed = self._memory[name] or FIRST_MEMORY
            self._memory[name] = int(needed * self.config.memory_growth)
        if retry and self._attempts[name] < self.config.retries:
            self._attempts[name] += 1
            self._waiting.append(name)
            self._progress[name] = Progress()
        else:
            self._progress[name] = Progress(UnitState(state), reason, host)

    def _read_hosts(self) -> None:
        """Ask the desk from time to time, without waiting for it, what runs where."""
        if self._hosts is None:
            if time.monotonic() >= self._next_hosts:
                self._next_hosts = time.monotonic() + BEAT_SECONDS
                self._hosts = self._desk.hosts.remote()
            return
        if ray.wait([self._hosts], timeout=0)[0]:
            hosts: dict[str, str] = {}
            with suppress(RayError):
                hosts = ray.get(self._hosts)
            self._hosts = None
            for name in self._tasks.values():
                if name in hosts:
                    self._progress[name] = Progress(UnitState.RUNNING, host=hosts[name])

    def _stop(self) -> None:
        """Stop all tasks: those that wait at once, those that run with their checkpoints."""
        with suppress(RayError):
            self._desk.stop.remote()
            for task, name in self._tasks.items():
                if self._progress[name].state is UnitState.WAITING:
                    ray.cancel(task, force=False)
            deadline = time.monotonic() + STOP_SECONDS + 2 * BEAT_SECONDS
            tasks = list(self._tasks)
            while tasks and time.monotonic() < deadline:
                tasks = ray.wait(tasks, num_returns=len(tasks), timeout=POLL_SECONDS)[1]
        self._tasks.clear()


def _connect(address: str | None, jobs: int | None) -> None:
    """Join a cluster, or start one on this machine; raises ``ConnectionError`` in one line."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            ray.init(
                address="local",
                num_cpus=jobs or os.cpu_count() or 1,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                _node_ip_address=LOOPBACK,
                **quiet,
            )
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "on this machine" if address is None else f"at {address}"
        raise ConnectionError(f"no Ray {where}: {_first_line(error)}") from None
    finally:
        # Ray's own ends this process without stopping units.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _versions() -> dict[str, str]:
    return {"Python": platform.python_version()} | {name: version(name) for name in COMPARED}


def too_large(needs: Mapping[str, float], nodes: Iterable[Mapping[str, float]]) -> str:
    """Why none of these nodes has what a unit needs, in one line; empty where one has.

    Both are in Ray's words: CPU, GPU, and memory in bytes. The node that is named has most of it.
    """
    asked = {name: amount for name, amount in needs.items() if amount > 0}

    def nearness(node: Mapping[str, float]) -> float:
        return sum(min(1.0, node.get(name, 0.0) / amount) for name, amount in asked.items())

    most = max(nodes, key=nearness, default={})
    if nearness(most) == len(asked):
        return ""
    has = {name: most.get(name, 0.0) for name in asked}
    return f"it asks for {_amounts(asked)}; the largest node of the cluster has {_amounts(has)}"


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(
        f"{amount / 2**30:.3g} GiB of memory" if name == "memory" else f"{amount:g} {name}"
        for name, amount in resources.items()
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return one_line(lines[0]) if lines else type(error).__name__


# ---------------------------------------------------------------- on the machine of the command


class Desk:
    """An actor on the machine of the command.

    Its state is what tasks tell it every second, and whether to stop: where it dies, Ray starts it
    again and no task notices. A stop that is forgotten ends with the command, as all tasks do.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._running: dict[str, str] = {}
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def beat(self, name: str, host: str) -> bool:
        """A unit runs on a host; True <--> it has to stop."""
        self._running[name] = host
        return self._stopped

    def hosts(self) -> dict[str, str]:
        return self._running

    def files(self, folder: str) -> list[tuple[str, int]]:
        """The files of a run folder, with their sizes."""
        return _files(self._inside(folder))

    def read(self, folder: str, name: str, offset: int) -> bytes:
        """A piece of a file."""
        with open(self._inside(f"{folder}/{name}"), "rb") as file:
            file.seek(offset)
            return file.read(PIECE_BYTES)

    def write(self, folder: str, name: str, offset: int, piece: bytes, last: bool) -> None:
        """Take a piece of a file, which takes its name with the last one."""
        path = self._inside(f"{folder}/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        coming = path.with_name(f".{path.name}.coming.tmp")
        with open(coming, "wb" if offset == 0 else "r+b") as file:
            file.seek(offset)
            file.write(piece)
        if last:
            os.replace(coming, path)

    def _inside(self, name: str) -> Path:
        path = Path(name)
        if not path.is_relative_to(self._folder) or ".." in path.parts:
            raise ValueError(f"{path} is not in {self._folder}")
        return path


# ---------------------------------------------------------------- on any machine of the cluster


def _work(
    unit: Unit, place: str, shared: bool | str, versions: Mapping[str, str], desk: Any
) -> tuple[str, str, bool]:
    """Run a unit on the machine of this task.

    Ray sets threads by the cores that a task takes; the process of the unit has its own.

    Args:
        unit: what to run.
        place: the working folder of the command.
        shared: True <--> its folder can be used here; or a file that exists where it can.
        versions: those that Python and packages have to have here.
        desk: the actor.

    Returns:
        The state at the end, the reason of a failure, and whether another attempt may help.
    """
    here = _versions()
    for name, wanted in versions.items():
        if here[name] != wanted:
            reason = f"{name} is {here[name]} on {platform.node()}; expected {wanted}"
            return UnitState.FAILED.value, reason, False
    host = f"{platform.node()}:{os.getpid()}"
    if _answer(desk.beat.remote(unit.name, host)):
        return UnitState.WAITING.value, "", False
    is_shared = Path(shared).exists() if isinstance(shared, str) else shared
    with _folder(unit, is_shared, desk) as (folder, send, keep_open):
        while True:
            end = _supervise(unit, folder, place, desk, host, send, keep_open)
            if not blocked(end):
                break
            time.sleep(BEAT_SECONDS)  # a task that died has left a process that ends soon
    return end.state.value, end.reason, killed(end)


def _supervise(
    unit: Unit,
    folder: Path,
    place: str,
    desk: Any,
    host: str,
    send: Any,
    keep_open: Sequence[int],
) -> Progress:
    """Run the process of a unit to its end, or until the desk says stop."""
    where = place if os.path.isdir(place) else None
    process = UnitProcess(unit, keep_open, folder, where)
    beat, next_beat, next_send = None, 0.0, time.monotonic() + SEND_SECONDS
    try:
        while (end := process.ended()) is None:
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            if beat is None and now >= next_beat:
                beat = desk.beat.remote(unit.name, host).future()
                next_beat = now + BEAT_SECONDS
            elif beat is not None and beat.done():
                stopped, beat = _told(beat), None
                if stopped:
                    process.stop()
                    process.wait(STOP_SECONDS)
                    return Progress()
            if now >= next_send:
                send()
                next_send = time.monotonic() + SEND_SECONDS
    finally:
        process.stop()
        process.wait(STOP_SECONDS)
        send()
    return end


def _told(beat: Future[bool]) -> bool:
    """What the desk said; to stop, where there is no desk any more."""
    try:
        return beat.result()
    except RayError:
        return True


def _answer(call: Any) -> Any:
    """The result of an actor's method.

    By a future: a task that asks Ray itself for what is not there yet, were it for no time at all,
    gives its cores to another task meanwhile.
    """
    return call.future().result()


@contextmanager
def _folder(unit: Unit, shared: bool, desk: Any) -> Iterator[tuple[Path, Any, tuple[int, ...]]]:
    """The folder to work in, a function that brings home what has changed in it, and descriptors
    that the unit's process inherits."""
    if shared:
        yield unit.folder, lambda: None, ()
        return
    home, sent = str(unit.folder), {}
    with copy_of(home) as (copy, lock):
        for name, size in _answer(desk.files.remote(home)):
            path = copy / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                for offset in range(0, max(size, 1), PIECE_BYTES):
                    file.write(_answer(desk.read.remote(home, name, offset)))
            sent[name] = _mark(path)

        def send() -> None:
            # The result comes last: it says that the run is done.
            names = [name for name, _ in _files(copy)]
            for name in sorted(names, key=lambda name: name == "result.json"):
                with suppress(FileNotFoundError):  # replaced at this moment, and sent next time
                    mark = _mark(copy / name)
                    if sent.get(name) != mark:
                        _send(copy / name, desk, home, name)
                        sent[name] = mark

        yield copy, send, (lock,)


@contextmanager
def copy_of(home: str) -> Iterator[tuple[Path, int]]:
    """An empty folder for a copy of the run folder ``home``, and a descriptor that locks it.

    A task that is killed leaves its copy, in which the unit's process, which inherits the
    descriptor, may go on for a moment. The unit's next task on this machine removes it, at its
    beginning or at its end.
    """
    prefix = f"{COPY}{hashlib.sha256(home.encode()).hexdigest()[:16]}-"
    _remove_left(prefix)
    copy = Path(tempfile.mkdtemp(prefix=prefix))
    lock = os.open(copy, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: nothing that is left is removed
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield copy, lock
    finally:
        shutil.rmtree(copy, ignore_errors=True)
        os.close(lock)
        _remove_left(prefix)


def _remove_left(prefix: str) -> None:
    """Remove the copies that no process has locked."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):  # it is locked, or another user's
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(lock)


def _send(path: Path, desk: Any, home: str, name: str) -> None:
    with open(path, "rb") as file:
        offset, piece = 0, file.read(PIECE_BYTES)
        while True:
            following = file.read(PIECE_BYTES)
            _answer(desk.write.remote(home, name, offset, piece, not following))
            if not following:
                return
            offset, piece = offset + len(piece), following


def _files(folder: Path) -> list[tuple[str, int]]:
    """The files in a folder by their names from it, without those that are being written."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not any(part.startswith(".") for part in name.parts) and path.is_file():
            found.append((name.as_posix(), path.stat().st_size))
    return found


def _mark(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_mtime_ns, about.st_size
