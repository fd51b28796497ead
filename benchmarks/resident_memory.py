"""Memory of a process that trains, or steps an environment, for long:
``python -m benchmarks.resident_memory``.

Each row is one process, whose resident memory is read again and again. What a library allocates
once is there after the first minute, or the first tenth of the steps; growth is what is added from
then on. A run draws its first picture after a quarter of its budget, and the caches of the library
that draws fill over the first ten (40 MB), so that as many are drawn before the first reading. A
run's batches grow by default, and memory with them: here they have their largest size at once.

Memory is read between updates, when the allocator has given back the pages that it keeps free: of
these there are more and fewer from update to update, and nothing in them. What it kept is a column.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch

import htm_env  # noqa: F401  # registers the ids
from agents.config.budget import Budget
from agents.learners.reinforce import Reinforce, ReinforceConfig
from agents.runs.session import start_run
from benchmarks.measuring import Row, one_by_one, own_process
from benchmarks.table import RESULTS, origin, report
from htm_env.drawing.rendering import figure_to_array

SECONDS = 600.0
STEPS = 200_000
COPIES = 64
READINGS = 60
"""Of the memory, over the whole course."""
SETTLED = 0.1
"""The share of the course after which nothing should be added: the first minute of ten."""
PICTURES = 10
"""Drawn before training."""
PAGE = 4096 / 2**20
"""Megabytes."""


class Reading(NamedTuple):
    """Memory at a moment."""

    share: float
    """Of the course; 1 and more <--> after it."""
    held: float
    """Megabytes that the process has, without those below."""
    kept: float
    """Megabytes of free pages that the allocator had kept."""


def read(share: float) -> Reading:
    """Give the allocator's free pages back, and read what is left."""
    before = _resident_megabytes()
    with suppress(AttributeError):  # the C library is not glibc
        ctypes.CDLL(None).malloc_trim(0)
    held = _resident_megabytes()
    return Reading(share, held, max(0.0, before - held))


def _resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def row(what: str, amount: str, readings: Sequence[Reading]) -> Row:
    """The course of memory; of a run the last reading is after its last picture and test scores."""
    during = [reading for reading in readings if SETTLED <= reading.share <= 1.0]
    shares, settled = [each.share for each in during], [each.held for each in during]
    tenths = [next(r.held for r in readings if r.share >= tenth / 10) for tenth in range(1, 10)]
    return {
        "process": what,
        "for": amount,
        "MB, first reading": readings[0].held,
        "MB, after each tenth": " ".join(f"{each:.0f}" for each in tenths),
        "MB at the end": settled[-1],
        "growth after the first tenth, MB": settled[-1] - settled[0],
        "most above it, MB": max(settled) - settled[0],
        "slope, MB in the whole course": float(np.polyfit(shares, settled, 1)[0]),
        "kept by the allocator at most, MB": max(each.kept for each in readings),
        "MB, scores and pictures made": readings[-1].held,
    }


class Watched(Reinforce):
    """A learner that reads memory now and then, before an update."""

    readings: list[Reading]

    def update(self, progress: float) -> dict[str, float]:
        if progress * READINGS >= len(self.readings):
            self.readings.append(read(progress))
        return super().update(progress)


def training(seconds: float) -> Row:
    """A whole run with its logs, pictures and checkpoints."""
    torch.set_num_threads(1)
    config = ReinforceConfig(batch_size=ReinforceConfig.max_batch_size)
    learner = Watched("HTM-Trees-v0", config)
    learner.readings = []
    for _ in range(PICTURES):
        figure_to_array(learner.figure(learner.task.dataset("validation")))
    with tempfile.TemporaryDirectory() as folder:
        start_run(learner, Budget(seconds), Path(folder) / "run", progress_bar=False)
    learner.readings.append(read(2.0))
    return row("training, reinforce", f"{seconds:g} s, {learner.updates} updates", learner.readings)


def stepping(copies: int, steps: int) -> Row:
    """Random legal actions, in one environment or in a batch; ``steps`` are of all copies."""
    torch.set_num_threads(1)
    readings = [read(0.0)]
    rng = np.random.default_rng(0)
    step: Callable[[], None] = _stepper(copies, rng)
    rounds = -(-steps // copies)
    for number in range(1, rounds + 1):
        step()
        if number % max(1, rounds // READINGS) == 0:
            readings.append(read(number / rounds))
    return row(f"environment, {copies} in one", f"{rounds * copies} steps", readings)


def _stepper(copies: int, rng: np.random.Generator) -> Callable[[], None]:
    if copies == 1:
        single = gym.make("HTM-Trees-v0")
        _, info = single.reset(seed=0)

        def step_single() -> None:
            nonlocal info
            action = rng.choice(np.flatnonzero(info["action_mask"]))
            *_, terminated, truncated, info = single.step(action)
            if terminated or truncated:
                _, info = single.reset()

        return step_single
    batch = gym.make_vec("HTM-Trees-v0", num_envs=copies)
    _, known = batch.reset(seed=0)

    def step_batch() -> None:
        nonlocal known
        weights = rng.random(known["action_mask"].shape) * known["action_mask"]
        *_, known = batch.step(weights.argmax(1))

    return step_batch


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of training")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each environment, 0: none")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(arguments)
    cases: list[tuple] = [(training, options.seconds)]
    cases += [(stepping, copies, options.steps) for copies in (1, COPIES) if options.steps]
    rows = one_by_one(cases, own_process)
    given = sys.argv[1:] if arguments is None else arguments
    made_by = origin("benchmarks.resident_memory", given)
    report("resident_memory", rows, options.out, made_by=made_by)


if __name__ == "__main__":
    main()
