"""Search for better trees of single samples, at inference.

What fits the model searches: hill climbing where an autoencoder's error is the cost of a tree, and
annealing (``annealing.py``) where the merger is known, and so the cost of every merge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt64
from torch import Tensor

from agents.evaluation.evaluate import Numbers, Planner, root_errors
from htm_env.autoencoder import TreeEncoder
from htm_env.datasets.base import mix, uniforms
from htm_env.types import TokenBatch


@runtime_checkable
class TreeSearch(Protocol):
    """Improves given trees; none of them ends worse."""

    def __call__(
        self, batch: TokenBatch, merges: Int64[Tensor, "B M 2"], numbers: Numbers
    ) -> Int64[Tensor, "B M 2"]:
        """A sample's result depends on its own row and numbers alone."""


def tree_search(model: TreeEncoder, std: Float[Tensor, "T"], budget: int) -> TreeSearch:
    """The search that fits a model.

    ``budget``: for each sample, the merges whose cost is evaluated where the merger is known, else
    the proposals (see :func:`hill_climbed`). ``std`` are the units of the coordinates, by which an
    autoencoder's errors are measured.
    """
    if not model.costs_known:
        raise ValueError(
            "trees are searched by what merges cost, and this merger's reward has no of_merges; "
            "expected no search"
        )
    if model.merge_costs is None:
        return HillClimbing(model, std, budget)
    from agents.evaluation.annealing import Annealing  # nothing that learns needs it

    return Annealing(model, budget)


@dataclass(frozen=True)
class SearchingPlanner:
    """A planner whose greedy trees are those of another, improved."""

    planner: Planner
    search: TreeSearch

    def plan(
        self, batch: TokenBatch, generator: torch.Generator, *, greedy: bool
    ) -> Int64[Tensor, "B M 2"]:
        merges = self.planner.plan(batch, generator, greedy=greedy)
        if not greedy:
            return merges
        return self.search(batch, merges, numbers_of(generator, len(merges)))


def improved(learner: Any, budget: int) -> Planner:
    """A learner as a planner whose greedy trees are improved (see :func:`tree_search`)."""
    if not budget:
        planner: Planner = learner
        return planner
    return SearchingPlanner(learner, tree_search(learner.autoencoder, learner.std, budget))


def numbers_of(generator: torch.Generator, samples: int) -> Numbers:
    """Numbers of one generator for all samples."""

    def drawn(count: int) -> Tensor:
        shape = (samples, count)
        return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)

    return drawn


def numbers_of_seeds(seeds: UInt64[np.ndarray, "B"]) -> Numbers:
    """Numbers that depend on a sample's own seed alone."""
    streams, used = mix(seeds), 0

    def drawn(count: int) -> Tensor:
        nonlocal used
        used += count
        return torch.from_numpy(uniforms(streams, count, used - count))

    return drawn


# ---------------------------------------------------------------- without known costs


@dataclass(frozen=True)
class HillClimbing:
    """Exchanges of subtrees that lower a sample's own error (see :func:`hill_climbed`)."""

    autoencoder: TreeEncoder
    std: Float[Tensor, "T"]
    proposals: int

    def __call__(
        self, batch: TokenBatch, merges: Int64[Tensor, "B M 2"], numbers: Numbers
    ) -> Int64[Tensor, "B M 2"]:
        draws = numbers(2 * self.proposals).view(len(merges), self.proposals, 2)
        return hill_climbed(self.autoencoder, batch, merges, self.std, draws.to(merges.device))


@torch.no_grad()
def hill_climbed(
    autoencoder: TreeEncoder,
    batch: TokenBatch,
    merges: Int64[Tensor, "B M 2"],
    std: Float[Tensor, "T"],
    draws: Float[Tensor, "B S 2"],
) -> Int64[Tensor, "B M 2"]:
    """Trees after ``S`` proposals for each sample, none of them worse than the one given.

    A proposal is an exchange of two subtrees, or of the two things of a pair, and is kept only
    where the sample's ``nmse`` falls. Each costs one encoding and decoding. ``draws`` are uniform
    in [0, 1); a sample's result depends on its own row alone.
    """
    merges = merges.clone()
    errors = root_errors(autoencoder, batch, merges, std)
    for drawn in draws.unbind(1):
        proposed = exchanged(merges, batch.num_tokens, drawn)
        rows = (proposed != merges).flatten(1).any(1).nonzero()[:, 0]
        if not len(rows):
            continue
        found = root_errors(autoencoder, batch.rows(rows), proposed[rows], std)
        better = found < errors[rows]
        rows = rows[better]
        merges[rows], errors[rows] = proposed[rows], found[better]
    return merges


def exchanged(
    merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"], draws: Float[Tensor, "B 2"]
) -> Int64[Tensor, "B M 2"]:
    """Whole trees with two of their nodes in each other's places, as ``draws`` in [0, 1) say.

    A tree is as it was where one node is over the other, or where a merge would come before what
    it merges.
    """
    if not merges.shape[1]:
        return merges
    rows = torch.arange(len(merges), device=merges.device)
    below_root = 2 * num_leaves - 2
    first = (draws[:, 0] * below_root).long()
    second = (draws[:, 1] * (below_root - 1)).long()
    second = second + (second >= first)
    flat = merges.flatten(1).clone()  # every node but the root once, -1 behind them
    at_first = (flat == first[:, None]).int().argmax(1)
    at_second = (flat == second[:, None]).int().argmax(1)
    # A node's number is below its parent's, so this also excludes a node under the other.
    legal = first < num_leaves + at_second // 2
    legal &= second < num_leaves + at_first // 2
    legal &= below_root > 1
    here, there = flat[rows, at_first], flat[rows, at_second]
    flat[rows, at_first] = torch.where(legal, there, here)
    flat[rows, at_second] = torch.where(legal, here, there)
    return flat.view_as(merges)
