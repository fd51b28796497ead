"""Search for trees of small error by local moves, under any autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.search.base import Found, Numbers
from agents.search.errors import TreeErrors
from agents.search.places import MOVES, merges_in, places_of
from htm_env.autoencoder import TreeEncoder
from htm_env.checks import at_least
from htm_env.types import TokenBatch

PROPOSALS = 8
"""Proposals for each evaluation of the budget, at most: those that are no move take none."""
BLOCK = 64
"""Proposals whose random numbers are drawn together."""


@dataclass(frozen=True)
class LocalMoves:
    """Improves trees by moves that lower the error of their own sample.

    The given trees are evaluated first, in their order, and the best one moves from then on: the
    children of a node are turned, two subtrees exchanged, or one pruned and grafted elsewhere, in
    turn, where the draws say. Only what lowers the error is kept.
    """

    autoencoder: TreeEncoder
    std: Float[Tensor, "T"]
    """Units of the coordinates, in which errors are measured."""
    evaluations: int
    """Trees that are evaluated for each sample, at most: the given ones are the first."""

    def __post_init__(self) -> None:
        at_least(1, evaluations=self.evaluations)

    @torch.no_grad()
    def __call__(
        self, batch: TokenBatch, starts: Int64[Tensor, "B S M 2"], numbers: Numbers
    ) -> Found:
        """Trees no worse than the first ``evaluations`` of the given ones; more evaluations never
        end worse. A sample's result depends on its own row and numbers alone."""
        errors_of = TreeErrors(self.autoencoder, batch, self.std)
        starts = starts[:, : self.evaluations]
        own = torch.arange(len(starts), device=starts.device)
        trees, errors, nodes = [], [], []
        for start in starts.unbind(1):
            trees.append(places_of(start, batch.num_tokens))
            error, embeddings = errors_of.of(trees[-1])
            errors.append(error)
            nodes.append(embeddings)
        every = torch.stack(errors, dim=1)  # (B, S)
        best = every.nan_to_num(nan=torch.inf).argmin(1)
        tree = torch.stack(trees, dim=1)[own, best]
        node = torch.stack(nodes, dim=1)[own, best]
        error = every[own, best]
        left = torch.full_like(own, self.evaluations - starts.shape[1])
        left[batch.num_tokens < 2] = 0
        for proposal in range(PROPOSALS * self.evaluations):
            if proposal % BLOCK == 0:
                drawn = numbers(2 * BLOCK).to(error.device)
            rows = left.nonzero()[:, 0]
            if not len(rows):
                break
            draws = drawn[rows, 2 * (proposal % BLOCK) :][:, :2]
            propose = MOVES[proposal % len(MOVES)]
            before = tree[rows]
            move = propose(before, batch.num_tokens[rows], draws)
            rows, before, move = rows[move.legal], before[move.legal], move.rows(move.legal)
            if not len(rows):
                continue
            after, embeddings = move.applied(before), node[rows]
            found = errors_of.after(after, embeddings, move.changed(embeddings.shape[1]), rows)
            left[rows] -= 1
            kept = found < error[rows]
            rows = rows[kept]
            tree[rows], node[rows], error[rows] = after[kept], embeddings[kept], found[kept]
        return Found(merges_in(tree, batch.num_tokens), error, every)
