"""Memory of a process that trains, or steps an environment, for long:
``python -m benchmarks.resident_memory``.

Each row is one process, whose resident memory is read again and again. What a library allocates
once is there after the first minute, or the first tenth of the steps; growth is what is added from
then on. A run draws its first picture after a quarter of its budget, and the caches of the library
that draws fill over the first ten (40 MB), so that as many are drawn before the first reading. A
run's batches grow by default, and memory with them: here they have their largest size at once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

import htm_env  # noqa: F401  # registers the ids
from agents.config.budget import Budget
from agents.learners.reinforce import Reinforce, ReinforceConfig
from agents.runs.progress import every
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


def resident_megabytes() -> float:
    """The memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def row(what: str, amount: str, readings: Sequence[tuple[float, float]]) -> Row:
    """The course of memory: pairs of a share of the course and megabytes.

    Beyond 1 is what comes after it: the last picture and the test scores of a run.
    """
    during = [(share, megabytes) for share, megabytes in readings if SETTLED <= share <= 1.0]
    shares, settled = zip(*during, strict=True)
    tenths = [next(m for share, m in readings if share >= tenth / 10) for tenth in range(1, 10)]
    return {
        "process": what,
        "for": amount,
        "MB, first reading": readings[0][1],
        "MB, after each tenth": " ".join(f"{each:.0f}" for each in tenths),
        "MB at the end": settled[-1],
        "growth after the first tenth, MB": settled[-1] - settled[0],
        "most above it, MB": max(settled) - settled[0],
        "slope, MB in the whole course": float(np.polyfit(shares, settled, 1)[0]),
        "MB, scores and pictures made": readings[-1][1],
    }


def training(seconds: float) -> Row:
    """A whole run with its logs, pictures and checkpoints."""
    torch.set_num_threads(1)
    config = ReinforceConfig(batch_size=ReinforceConfig.max_batch_size)
    learner = Reinforce("HTM-Trees-v0", config)
    for _ in range(PICTURES):
        figure_to_array(learner.figure(learner.task.dataset("validation")))
    began, readings = time.monotonic(), [(0.0, resident_megabytes())]

    def read() -> None:
        readings.append(((time.monotonic() - began) / seconds, resident_megabytes()))

    with tempfile.TemporaryDirectory() as folder, every(seconds / READINGS, read):
        start_run(learner, Budget(seconds), Path(folder) / "run", progress_bar=False)
    read()
    return row("training, reinforce", f"{seconds:g} s", readings)


def stepping(copies: int, steps: int) -> Row:
    """Random legal actions, in one environment or in a batch; ``steps`` are of all copies."""
    torch.set_num_threads(1)
    readings = [(0.0, resident_megabytes())]
    rng = np.random.default_rng(0)
    step: Callable[[], None] = _stepper(copies, rng)
    rounds = -(-steps // copies)
    for number in range(1, rounds + 1):
        step()
        if number % max(1, rounds // READINGS) == 0:
            readings.append((number / rounds, resident_megabytes()))
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
