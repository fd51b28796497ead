"""Several processes that learn one model together, each from episodes of its own (data parallel).

They are started by ``torchrun``. :class:`Ranks` is what a learner shares with its copies in the
other processes, and shares nothing where it is alone; :class:`Processes` carries it from one to the
other, by ``torch.distributed``.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables by which ``torchrun`` tells a process which one it is."""
TIMEOUT_SECONDS = 1800.0
"""So long a rank waits for the others: more than the validation takes, for which all wait."""
REPORT_SECONDS = 2.0
"""So long a rank that waited in vain gives the others to say that they wait too."""
AWAKE_SECONDS = 0.005
"""So long a rank asks again and again for a sum before it sleeps until the sum is there: a process
that slept goes on late, and with cold caches."""
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
"""The network interface that no other machine can reach."""


class Processes:
    """The processes of one model, of which this is one.

    Args:
        index: of this process, its *rank*; the first, 0, writes the run.
        count: of all processes.
        store: where they meet; that of ``torchrun``'s environment variables if None.
        timeout: seconds after which a process that waits for the others gives up.

    Every method but ``connect`` and ``close`` has to be called by all of them, and raises
    ``ConnectionError`` naming those that do not answer.
    """

    def __init__(
        self,
        index: int,
        count: int,
        store: dist.Store | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self.index, self.count = index, count
        self.timeout = timedelta(seconds=timeout)
        self._store = store
        self.messages, self.bytes = 0, 0
        """What this process gave to the others so far."""

    @classmethod
    def of_environment(cls, timeout: float = TIMEOUT_SECONDS) -> Processes | None:
        """Those that ``torchrun`` started; None where there is no other process."""
        if not all(os.environ.get(name) for name in VARIABLES):
            return None
        index, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return cls(index, count, None, timeout) if count > 1 else None

    @property
    def command(self) -> str:
        """The beginning of a command that starts as many, on each of as many machines."""
        here = _processes_here(self.count)
        machines = "" if here == self.count else f"--nnodes {self.count // here} "
        return f"torchrun {machines}--nproc-per-node {here} -m agents.cli"

    def connect(self, device: torch.device | None = None) -> None:
        """Wait for the others; the first process says which device all use.

        Where that is ``cuda``, each process of a machine has a GPU of its own, and NCCL carries
        what is on GPUs, if there are enough; gloo carries all else. Raises ``ValueError`` where
        there is none.
        """
        local = _processes_here(self.count)
        if local == self.count:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
        with self._waiting("the start"):
            if self._store is None:
                self._store = next(iter(dist.rendezvous("env://", timeout=self.timeout)))[0]
            self._store.set_timeout(self.timeout)
            if device is not None:
                self._store.set("device", device.type)
            backend = "gloo"
            if self._store.get("device") == b"cuda":
                gpus = torch.cuda.device_count()
                if not gpus:
                    raise ValueError(
                        f"rank {self.index} of {self.count} has no GPU, and rank 0 has; expected "
                        "one on every machine, or --device cpu"
                    )
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", self.index)) % gpus)
                if gpus >= local:
                    backend = "cpu:gloo,cuda:nccl"
            dist.init_process_group(
                backend,
                store=self._store,
                rank=self.index,
                world_size=self.count,
                timeout=self.timeout,
            )

    def close(self) -> None:
        """Leave the others, which needs nothing of them."""
        dist.destroy_process_group()

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor of all processes, the same bits in each; it takes its place."""
        return self.begin_sum(values)()

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin such a sum; what it gives waits for the sum and returns it.

        Until then ``values`` must not be used.
        """
        with self._waiting("a sum"):
            work = dist.all_reduce(values, async_op=True)
        self._count(values)

        def finished() -> Tensor:
            asleep = time.perf_counter() + AWAKE_SECONDS
            with self._waiting("a sum"):
                if values.device.type == "cpu":  # a GPU's sums are waited for on the GPU
                    while not work.is_completed() and time.perf_counter() < asleep:
                        time.sleep(0)
                work.wait()
            return values

        return finished

    def broadcast(self, content: bytes = b"") -> bytes:
        """The first process's bytes."""
        length = int(self._lengths(content)[0])
        message = torch.empty(length, dtype=torch.uint8)
        if self.index == 0:
            message = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        with self._waiting("a message"):
            dist.broadcast(message, 0)
        return message.numpy().tobytes()

    def gather(self, content: bytes) -> list[bytes]:
        """The bytes of all processes, in the first; nothing in the others."""
        lengths = self._lengths(content)
        with self._waiting("a message"):
            if self.index:
                dist.send(torch.frombuffer(bytearray(content), dtype=torch.uint8), 0)
                return []
            messages = [torch.empty(int(length), dtype=torch.uint8) for length in lengths]
            for source in range(1, self.count):
                dist.recv(messages[source], source)
        return [content, *(message.numpy().tobytes() for message in messages[1:])]

    def _lengths(self, content: bytes) -> Tensor:
        lengths = torch.zeros(self.count, dtype=torch.int64)
        lengths[self.index] = len(content)
        return self.sum(lengths)

    def _count(self, values: Tensor) -> None:
        self.messages += 1
        self.bytes += values.numel() * values.element_size()

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        """Name the processes that did not come to ``what`` in time, or that have ended."""
        try:
            yield
        except RuntimeError as error:
            raise ConnectionError(
                f"rank {self.index} of {self.count} waited for {what} in vain: {self._missing()} "
                f"ended, or did not answer within {self.timeout.total_seconds():g} s"
            ) from error

    def _missing(self) -> str:
        """The ranks that do not say that they wait too, after a time to say it."""
        silent = ["0"] if self.index else []  # the first process keeps the store
        if self._store is not None:
            with suppress(RuntimeError):  # the store ended with its process
                self._store.set(f"waits/{self.index}", "1")
                time.sleep(REPORT_SECONDS)
                others = (rank for rank in range(self.count) if rank != self.index)
                silent = [str(rank) for rank in others if not self._store.check([f"waits/{rank}"])]
        return f"rank {', '.join(silent)}" if silent else "another rank"


def _processes_here(count: int) -> int:
    """How many of so many processes are on this machine: all, unless ``torchrun`` says so."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count))


class Ranks:
    """What a learner shares with its copies in other processes; alone until :meth:`join`.

    A *rank* is one of them. All have the same weights and take the same steps, since the gradient
    of a step is the mean of theirs. So that the mean over ranks is the mean over all that their
    batches hold, a loss is weighted by :meth:`balance` wherever ranks have different numbers of
    what it is a mean of. The gradient is then that of one process whose batch is all of theirs.
    """

    def __init__(self) -> None:
        self._processes: Processes | None = None

    def join(self, processes: Processes) -> None:
        """Share with these from now on."""
        self._processes = processes

    @property
    def index(self) -> int:
        """0 for the first, which writes the run."""
        return 0 if self._processes is None else self._processes.index

    @property
    def count(self) -> int:
        return 1 if self._processes is None else self._processes.count

    def diverge(self, generator: torch.Generator) -> None:
        """Give a generator that is seeded alike in all ranks a stream of this rank's own."""
        if self.index:
            text = f"{generator.initial_seed()} of rank {self.index}"
            digest = hashlib.sha256(text.encode()).digest()
            generator.manual_seed(int.from_bytes(digest[:8], "big") >> 2)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks of a tensor, which stays as it is."""
        if self._processes is None:
            return values
        return self._processes.sum(values.detach().clone())

    def mean(self, values: Tensor) -> Tensor:
        """The mean over ranks of a tensor, which stays as it is."""
        return values if self._processes is None else self.sum(values) / self.count

    def begin_mean(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin a mean over ranks of a tensor, which stays as it is; what it gives waits for it."""
        if self._processes is None:
            return lambda: values
        finished = self._processes.begin_sum(values.detach().clone())
        return lambda: finished() / self.count

    def sums(self, *numbers: int | float) -> list[float]:
        """The sum over ranks of each of these numbers."""
        if self._processes is None:
            return [float(number) for number in numbers]
        return self._processes.sum(torch.tensor(numbers, dtype=torch.float64)).tolist()

    def first(self, number: int | float) -> float:
        """The first rank's number, so that all decide alike."""
        return self.sums(number if self.index == 0 else 0.0)[0]

    def balance(self, count: int | float | Tensor) -> float:
        """This rank's number of something, over the mean over ranks; 0 where there is none."""
        if self._processes is None:
            return 1.0
        own = float(count)
        total = self.sums(own)[0]
        return own * self.count / total if total else 0.0

    def gathered(self, values: Tensor) -> Tensor:
        """The values ``(K,)`` of all ranks one after the other; each has a number of its own."""
        if self._processes is None:
            return values
        lengths = torch.zeros(self.count, dtype=torch.float64)
        lengths[self.index] = len(values)
        ends = self._processes.sum(lengths).long().cumsum(0).tolist()
        everything = values.new_zeros(ends[-1])
        everything[ends[self.index] - len(values) : ends[self.index]] = values
        return self._processes.sum(everything)

    def records(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What JSON can hold of every rank, in the first one; nothing in the others."""
        if self._processes is None:
            return [dict(record)]
        return [json.loads(text) for text in self._processes.gather(json.dumps(record).encode())]

    def average(
        self, parameters: Sequence[nn.Parameter], losses: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Let every parameter's gradient be the mean over ranks; returns the mean of the losses.

        All of it is one message. A parameter that has no gradient in some ranks counts as 0 there,
        and stays without one where no rank has any. Ranks need the same names of losses.
        """
        if self._processes is None:
            return dict(losses)
        names = sorted(losses)
        like = parameters[0]
        there = like.new_tensor([one.grad is not None for one in parameters], dtype=like.dtype)
        numbers = [losses[name].detach().to(like).reshape(1) for name in names]
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        bucket = torch.cat([there, *numbers, *(each.flatten() for each in gradients)])
        there, means, rest = self._processes.sum(bucket).split(
            [len(there), len(names), len(bucket) - len(there) - len(names)]
        )
        sizes = [one.numel() for one in parameters]
        for one, has, gradient in zip(
            parameters, there.tolist(), (rest / self.count).split(sizes), strict=True
        ):
            one.grad = gradient.view_as(one) if has else None
        return dict(zip(names, means / self.count, strict=True))
