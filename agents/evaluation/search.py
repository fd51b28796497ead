"""Planners whose greedy trees are searched on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from agents.evaluation.evaluate import Planner
from agents.search import TreeSearch, numbers_of, tree_search
from htm_env.types import TokenBatch


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
        return self.search(batch, merges[:, None], numbers_of(generator, len(merges))).merges


def improved(learner: Any, budget: int) -> Planner:
    """A learner as a planner whose greedy trees are improved (see
    :func:`agents.search.tree_search`)."""
    if not budget:
        planner: Planner = learner
        return planner
    return SearchingPlanner(learner, tree_search(learner.autoencoder, learner.std, budget))
