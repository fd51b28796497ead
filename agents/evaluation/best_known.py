"""Scores against the best trees known, and the search for better ones."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from agents.config.options import TEST_EPISODES
from agents.evaluation.evaluate import CHUNK, EVALUATION_SEED, Planner, planned, root_errors
from agents.fixed import FIXED_POLICIES, fixed_policy
from agents.fixed.exact import LARGEST as MOST_BY_SUBSETS
from agents.search import numbers_of, tree_search
from agents.search.exhaustive import LARGEST as MOST_BY_ALL
from agents.search.exhaustive import best_of_all
from htm_env.autoencoder import TreeEncoder
from htm_env.best_known import BestKnown
from htm_env.datasets import Dataset
from htm_env.types import TokenBatch

BETTER = 1e-7
"""Share of an error by which another tree has to be better; less is rounding."""


@torch.no_grad()
def exact_errors(
    model: TreeEncoder,
    batch: TokenBatch,
    merges: Int64[Tensor, "B M 2"],
    std: Float[Tensor, "T"],
) -> Float64[Tensor, "B"]:
    """The errors of whole trees in double precision, which are the same on every machine but for
    what lies far below the differences between trees."""
    exact = copy.deepcopy(model).double()
    batch = batch._replace(tokens=batch.tokens.double())
    parts = zip(batch.parts(CHUNK), merges.split(CHUNK), strict=True)
    return torch.cat([root_errors(exact, part, trees, std.double()) for part, trees in parts])


class Improvement:
    """The best trees known of an environment's test episodes, while better ones are searched.

    Args:
        env: the environment's id.
        model: its shipped autoencoder, or its known merger.
        dataset: its test split.
        known: the best trees so far; random merges if None.
        source: who searches: the ``command`` and its ``version``.
        seed: of the random numbers of the search.
    """

    def __init__(
        self,
        env: str,
        model: TreeEncoder,
        dataset: Dataset,
        known: BestKnown | None,
        source: dict[str, str],
        seed: int = 0,
    ) -> None:
        self.model, self.std, self.dataset = model, dataset.std, dataset
        self.batch = dataset.fixed(TEST_EPISODES)
        self._generator = torch.Generator().manual_seed(seed)
        if known is None:
            random = fixed_policy("random", model)
            merges = self.planned_by(random)
            errors = exact_errors(model, self.batch, merges, self.std)
            nothing = torch.zeros_like(self.batch.num_tokens)
            known = BestKnown(
                env,
                model.weights_hash(),
                merges,
                errors,
                nothing.bool(),
                errors,
                nothing,
                (source,),
            )
        self.known = known
        self._source = source

    @property
    def open(self) -> Int64[Tensor, "R"]:
        """The episodes whose tree may not be the best one."""
        return (~self.known.proven).nonzero()[:, 0]

    def planned_by(self, planner: Planner) -> Int64[Tensor, "E M 2"]:
        """The greedy trees of all episodes, as ``htm evaluate`` makes them."""
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        parts = self.batch.parts(CHUNK)
        return torch.cat([planned(planner, part, generator, greedy=True) for part in parts])

    def offer(self, rows: Int64[Tensor, "R"], merges: Int64[Tensor, "R M 2"]) -> int:
        """Take these trees of some episodes where they are better; returns how many are."""
        known = self.known
        if not len(rows):
            return 0
        errors = exact_errors(self.model, self.batch.rows(rows), merges, self.std)
        before = known.errors[rows]
        better = errors < before - BETTER * before.abs()
        rows = rows[better]
        if not len(rows):
            return 0
        sources = known.sources
        if self._source not in sources:
            sources = (*sources, self._source)
        which = torch.full_like(rows, sources.index(self._source))
        self.known = replace(
            known,
            merges=known.merges.index_copy(0, rows, merges[better]),
            errors=known.errors.index_copy(0, rows, errors[better]),
            source=known.source.index_copy(0, rows, which),
            sources=sources,
        )
        return len(rows)

    def prove(self) -> int:
        """Take the best of all trees of every episode of few tokens; returns how many are new."""
        model, std = self.model, self.std
        most = MOST_BY_ALL if model.decodes else MOST_BY_SUBSETS
        if not model.decodes and not FIXED_POLICIES["exact"].suits(self.dataset, model):
            return 0
        rows = self.open[self.batch.num_tokens[self.open] <= most]
        for some in rows.split(CHUNK) if len(rows) else ():
            batch = self.batch.rows(some)._replace(sample=None)
            if model.decodes:
                best = best_of_all(model, batch, std)
            else:
                best = fixed_policy("exact", model).plan(batch, self._generator)
            self.offer(some, best)
            proven = self.known.proven.index_fill(0, some, True)
            self.known = replace(self.known, proven=proven)
        return len(rows)

    @property
    def mean(self) -> float:
        """The mean error of the best trees known."""
        return float(self.known.errors.mean())

    def take(self, merges: Int64[Tensor, "E M 2"]) -> int:
        """Take trees of all open episodes as they are; returns how many are better than known."""
        return self.offer(self.open, merges[self.open])

    def search(self, starts: Int64[Tensor, "E M 2"] | None, evaluations: int) -> int:
        """Search on from a tree of every open episode, the best known one if None; returns how
        many are better than known."""
        improve, found = tree_search(self.model, self.std, evaluations), 0
        trees = self.known.merges if starts is None else starts
        for some in self.open.split(CHUNK):
            batch = self.batch.rows(some)._replace(sample=None)
            numbers = numbers_of(self._generator, len(some))
            found += self.offer(some, improve(batch, trees[some, None], numbers).merges)
        return found
