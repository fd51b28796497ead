"""Planners whose greedy trees are searched on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from agents.evaluation.evaluate import Planner
from agents.search import Numbers, TreeSearch, numbers_of, tree_search
from htm_env.types import TokenBatch

Others = Callable[[TokenBatch, Int64[Tensor, "B"]], Int64[Tensor, "B S M 2"]]
"""``others(batch, seeds)``: more trees to start from, which the seed of each sample draws."""
SHARE = 10
"""One in so many of the trees that are evaluated is another one of the policy's. Of 100, a third
gained up to 3 % on a tenth on validation data (Trees, Crosses and Digits), but a tree of the policy
takes as long as twenty changed trees."""


@dataclass(frozen=True)
class SearchingPlanner:
    """A planner whose greedy trees are those of another, improved."""

    planner: Planner
    search: TreeSearch
    others: Others | None = None

    def plan(
        self, batch: TokenBatch, generator: torch.Generator, *, greedy: bool
    ) -> Int64[Tensor, "B M 2"]:
        merges = self.planner.plan(batch, generator, greedy=greedy)
        return self.improve(batch, merges, numbers_of(generator, len(merges))) if greedy else merges

    def improve(
        self, batch: TokenBatch, merges: Int64[Tensor, "B M 2"], numbers: Numbers
    ) -> Int64[Tensor, "B M 2"]:
        """Trees no worse than these; a sample's result depends on its own row and numbers alone."""
        starts = merges[:, None]
        if self.others is not None:
            seeds = (numbers(1)[:, 0] * 2.0**62).long().to(merges.device)
            starts = torch.cat([starts, self.others(batch, seeds)], dim=1)
        return self.search(batch, starts, numbers).merges


def searching(learner: Any, budget: int) -> SearchingPlanner:
    """A learner as a planner whose greedy trees are improved (see
    :func:`agents.search.tree_search`), from other trees of its policy too where it has one."""
    model, others = learner.autoencoder, None
    count = budget // SHARE if model.decodes else 0
    if count:
        others = partial(learner.other_trees, count)
    return SearchingPlanner(learner, tree_search(model, learner.std, budget), others)


def improved(learner: Any, budget: int) -> Planner:
    """The same, or the learner itself where there is no budget."""
    planner: Planner = searching(learner, budget) if budget else learner
    return planner
