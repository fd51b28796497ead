"""Every merge sequence of four tokens, with policies, rewards and values that are tables.

Rows are sequences, columns are steps. A state is what was merged so far; whatever belongs to a
state or to an action is the same in all rows that share it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from agents.fixed import all_merge_sequences
from htm_env.trees.merge_tree import MergeTree

SEQUENCES = all_merge_sequences(4)  # (144, 3, 2)
ROWS, STEPS = SEQUENCES.shape[:2]
TREES = [str(MergeTree(sequence.numpy(), 4)) for sequence in SEQUENCES]
"""The ordered tree that each sequence makes."""


@cache
def prefix(row: int, length: int) -> tuple:
    return tuple(map(tuple, SEQUENCES[row, :length].tolist()))


def by_state(number: Callable[[], float]) -> Tensor:
    """A number for every state that a merge is made in."""
    table: dict = defaultdict(number)
    return torch.tensor(
        [[table[prefix(row, step)] for step in range(STEPS)] for row in range(ROWS)],
        dtype=torch.float64,
    )


def by_action(number: Callable[[], float]) -> Tensor:
    """A number for every action in every state."""
    table: dict = defaultdict(number)
    return torch.tensor(
        [[table[prefix(row, step + 1)] for step in range(STEPS)] for row in range(ROWS)],
        dtype=torch.float64,
    )


def normalised(weights: Tensor) -> Tensor:
    """The log-probabilities of a policy that chooses in proportion to these weights of actions."""
    total: dict = defaultdict(dict)
    for row in range(ROWS):
        for step in range(STEPS):
            total[prefix(row, step)][prefix(row, step + 1)] = float(weights[row, step])
    sums = [[sum(total[prefix(r, t)].values()) for t in range(STEPS)] for r in range(ROWS)]
    return (weights / torch.tensor(sums, dtype=torch.float64)).log()


def policy(seed: int) -> Tensor:
    """``(144, 3)`` log-probabilities, some actions several times as likely as others."""
    drawn = np.random.default_rng(seed)
    return normalised(by_action(lambda: drawn.gamma(1.0) + 0.05))


def state_means(log_prob: Tensor, values: Tensor) -> Tensor:
    """The expectation of ``values`` (row, step) under a policy, given the state of that step."""
    result = torch.zeros(ROWS, STEPS, dtype=torch.float64)
    for step in range(STEPS):
        chance = log_prob[:, step:].sum(1).exp()
        sums: dict = defaultdict(float)
        for row in range(ROWS):
            sums[prefix(row, step)] += float(chance[row] * values[row, step])
        means = [sums[prefix(row, step)] for row in range(ROWS)]
        result[:, step] = torch.tensor(means, dtype=torch.float64)
    return result


def expectation(log_prob: Tensor, values: Tensor) -> Tensor:
    """That of ``values (144, ...)``, one for each sequence."""
    return torch.tensordot(log_prob.sum(1).exp(), values, dims=1)


def discounted(rewards: Tensor, gamma: float) -> Tensor:
    """The return that follows every action, by its definition."""
    steps = rewards.shape[1]
    return torch.stack(
        [sum(gamma ** (k - t) * rewards[:, k] for k in range(t, steps)) for t in range(steps)], 1
    )


def true_values(log_prob: Tensor, rewards: Tensor, gamma: float) -> Tensor:
    """``V(s_t)`` of a policy."""
    return state_means(log_prob, discounted(rewards, gamma))
