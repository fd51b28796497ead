"""One training of a hierarchical transformer on bytes, by whatever package this Python has.

``python -m benchmarks.hierarchical_training JOB``, a :class:`Job` in JSON, prints its result as one
line of JSON. It imports PyTorch and the class alone, so that the original package can train in an
environment of its own.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LENGTH, BATCH = 256, 8


@dataclass(frozen=True)
class Job:
    """What is trained, and how."""

    package: str
    """The module that has ``HierarchicalTransformer``."""
    code: str
    """Its version or commit, which names the result."""
    words: dict[str, Any] = field(default_factory=dict)
    """The options of the model."""
    steps: int = 300
    """Updates; 0 counts the parameters and does nothing else."""
    learning_rate: float = 3e-3
    """Of Adam, the same throughout."""
    seed: int = 0
    """Of the first weights and of the batches."""
    written: int = 0
    """Bytes to write after training, a prompt of 64 being there."""


def main() -> None:
    torch.set_num_threads(1)
    job = Job(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(job) | outcome(job, *content())))


def outcome(job: Job, fit: Tensor, held_out: Tensor) -> dict[str, float]:
    """What comes of the job on these bytes."""
    torch.manual_seed(job.seed)
    model = importlib.import_module(job.package).HierarchicalTransformer(**job.words)
    found = {"parameters": sum(each.numel() for each in model.parameters())}
    if job.steps:
        seconds = train(model, fit, job)
        found |= {"seconds": seconds, "bits": bits(model, held_out)}
    if job.written:
        start = time.process_time()
        model.generate(held_out[None, :64], job.written)
        found |= {"seconds of writing": time.process_time() - start}
    return found


def content() -> tuple[Tensor, Tensor]:
    """The bytes of the standard library's ``pydoc_data/topics.py``, the last tenth apart."""
    from pydoc_data import topics

    everything = torch.tensor(list(Path(topics.__file__).read_bytes()))
    first = len(everything) * 9 // 10
    return everything[:first], everything[first:]


def train(model: nn.Module, fit: Tensor, job: Job) -> float:
    """Fit windows drawn at random; the seconds of processor time."""
    generator = torch.Generator().manual_seed(job.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=job.learning_rate)
    start = time.process_time()
    for _ in range(job.steps):
        starts = torch.randint(len(fit) - LENGTH, (BATCH,), generator=generator)
        loss, _ = model(fit[starts[:, None] + torch.arange(LENGTH + 1)], return_loss=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.process_time() - start


@torch.no_grad()
def bits(model: nn.Module, held_out: Tensor) -> float:
    """Held-out cross-entropy a byte; every byte but the first of a window is scored once."""
    windows = held_out.unfold(0, LENGTH + 1, LENGTH)
    total = 0.0
    for part in windows.split(32):
        log_probs = model(part[:, :-1]).log_softmax(2).gather(2, part[:, 1:, None])
        total -= log_probs.sum().item()
    return total / (len(windows) * LENGTH) / math.log(2)


if __name__ == "__main__":
    main()
