"""How soon ours is as good as the published recipe: ``python -m benchmarks.time_to_error``.

``original`` is trained for all of the seconds, and the held-out ``nmse`` that it then has is to be
reached; its own time is the first at which it was. The others are given the same seconds, so that
their schedules are those of a run of this length, and stop as soon as they are there. All are
evaluated equally often, and the time of evaluations is not counted.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator

import torch

from agents.comparison.problems import PROBLEMS, Problem
from agents.learners.base import Learner
from agents.registry import algorithm
from benchmarks.measuring import Row, add_device, own_process, settle
from benchmarks.table import report

SECONDS = 100.0
EPISODES = 500
"""Held-out samples."""
EVALUATIONS = 100
"""In all of the seconds."""
ORIGINAL = "original"
ALGORITHMS = ("reinforce", "replay", "ppo")
NAMES = ("trees7", "crosses10", "trees15", "digits")


def learner(problem: Problem, algo: str, seed: int, device: str = "cpu") -> Learner:
    """As it is shipped."""
    known = algorithm(algo)
    return known.learner(
        problem.env,
        known.config,
        env_kwargs=problem.env_kwargs,
        embedding_dim=problem.embedding_dim,
        seed=seed,
        device=device,
    )


def measure(
    name: str, algo: str, seed: int, seconds: float, enough: float | None, device: str = "cpu"
) -> Row:
    """One row of a learner as it is shipped."""
    torch.set_num_threads(1)
    problem = PROBLEMS[name]
    reached = reach(learner(problem, algo, seed, device), seconds, enough)
    return {"data": problem.title, "algo": algo, "seed": seed, **reached}


def reach(
    made: Learner,
    seconds: float,
    enough: float | None,
    clock: Callable[[], float] = time.perf_counter,
) -> Row:
    """Train until the held-out error is ``enough``, or for all of the seconds of ``clock``."""
    held_out = made.task.dataset("test")
    course = []
    for taken in evaluations(made, seconds, clock):
        error = made.evaluate(held_out, EPISODES, sampled=False)["nmse"]
        course.append((taken, math.inf if error is None else error))
        if enough is not None and course[-1][1] <= enough:
            break
    last = course[-1][1]
    goal = last if enough is None else enough
    return {
        "held-out nmse": last,
        "to reach": enough,
        "seconds": next((taken for taken, error in course if error <= goal), None),
        "merges": made.merges_made,
    }


def evaluations(made: Learner, seconds: float, clock: Callable[[], float]) -> Iterator[float]:
    """Train, and yield the seconds of training so far, :data:`EVALUATIONS` times and at the end."""
    taken, seen = 0.0, 0
    while taken < seconds:
        started = clock()
        made.update(min(1.0, taken / seconds))
        settle(made.device.type)
        taken += clock() - started
        if taken >= seconds or int(EVALUATIONS * taken / seconds) > seen:
            seen = int(EVALUATIONS * taken / seconds)
            yield taken


def rows_of(
    name: str,
    seed: int,
    seconds: float,
    device: str = "cpu",
    *,
    run: Callable[..., Row] = own_process,
) -> list[Row]:
    """The published recipe, and ours until they are as good; ``run`` measures a row."""
    rows = [run(measure, name, ORIGINAL, seed, seconds, None, device)]
    enough = rows[0]["held-out nmse"]
    rows += [run(measure, name, algo, seed, seconds, enough, device) for algo in ALGORITHMS]
    for row in rows:
        there = row["seconds"]
        row["times as fast"] = None if there is None else rows[0]["seconds"] / there
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the published recipe")
    parser.add_argument("--seed", type=int, default=0, help="of all runs")
    parser.add_argument("--problems", nargs="+", default=NAMES, choices=NAMES, help="which data")
    add_device(parser)
    options = parser.parse_args(arguments)
    asked = options.seed, options.seconds, options.device
    rows = [row for name in options.problems for row in rows_of(name, *asked)]
    report("time_to_error", rows, device=options.device)


if __name__ == "__main__":
    main()
