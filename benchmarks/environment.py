"""Environment steps per second with random legal actions: ``python -m benchmarks.environment``."""

from __future__ import annotations

import time

import gymnasium as gym
import numpy as np
import torch

import htm_env  # noqa: F401  # registers the ids
from benchmarks.table import report

SECONDS = 5.0
CASES = [
    *(("incremental", (2, 3, 4), copies) for copies in (1, 16, 64, 256, 1024)),
    ("terminal", (2, 3, 4), 256),
    ("incremental", (4,), 256),
]
"""Reward, heights of the trees, copies."""


def random_legal(masks: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A uniformly random legal action a copy; action 0 where an episode has just ended."""
    return (generator.random(masks.shape, dtype=np.float32) * masks).argmax(axis=1)


def steps_per_second(copies: int, **kwargs: object) -> float:
    """Steps per second, the time of choosing actions left out.

    A step in which a copy only starts its next episode counts as one: the copy is reset in it.
    """
    env = gym.make_vec("HTM-Trees-v0", num_envs=copies, autoencoder="untrained", **kwargs)
    generator = np.random.default_rng(0)
    env.reset(seed=0)
    stepping, steps, warm_up = 0.0, 0, 20
    while stepping < SECONDS:
        actions = random_legal(env.unwrapped.action_masks(), generator)
        started = time.perf_counter()
        env.step(actions)
        if warm_up:
            warm_up -= 1
            continue
        stepping += time.perf_counter() - started
        steps += copies
    env.close()
    return steps / stepping


def main() -> None:
    torch.set_num_threads(1)
    rows = [
        {
            "reward": reward,
            "heights": str(heights),
            "copies": copies,
            "steps/s": steps_per_second(copies, reward=reward, heights=heights),
        }
        for reward, heights, copies in CASES
    ]
    report("environment", rows)


if __name__ == "__main__":
    main()
