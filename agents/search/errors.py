"""Errors of many trees over the same samples, one changed tree after the other.

A tree that differs from another in two or three places has the same embeddings but on the ways from
there to its root, which alone are encoded again. What its root decodes to is another thing
everywhere.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from agents.search.places import Places
from htm_env.autoencoder import TreeEncoder
from htm_env.forest import descend
from htm_env.population import error_units, token_errors
from htm_env.types import TokenBatch

AT_ONCE = 2**14
"""Tokens of the trees that are encoded and decoded together, about: what lies between two layers
then stays in a processor's cache."""


class TreeErrors:
    """The ``nmse`` of whole trees over samples, decoded from their roots alone."""

    @torch.no_grad()
    def __init__(
        self, autoencoder: TreeEncoder, batch: TokenBatch, std: Float[Tensor, "T"]
    ) -> None:
        self.autoencoder, self.std = autoencoder.decoding(), std
        self.batch = batch._replace(clades=batch.clades[:, :0], merges=batch.merges[:, :0])
        self.units = error_units(autoencoder, batch)
        lifted = autoencoder.lifter(autoencoder.standardise(batch.tokens))
        slots = batch.present.shape[1]
        self._leaves = lifted.new_zeros(len(lifted), 2 * slots - 1, lifted.shape[2])
        self._leaves[:, :slots] = lifted

    @torch.no_grad()
    def of(
        self, trees: Places, rows: Int64[Tensor, "R"] | None = None
    ) -> tuple[Float[Tensor, "R"], Float[Tensor, "R N D"]]:
        """The errors of whole trees over the samples ``rows``, all if None, and the embeddings of
        their nodes."""
        nodes = self._leaves.clone() if rows is None else self._leaves[rows]
        changed = torch.ones_like(nodes[..., 0], dtype=torch.bool)
        return self.after(trees, nodes, changed, rows), nodes

    @torch.no_grad()
    def after(
        self,
        trees: Places,
        nodes: Float[Tensor, "R N D"],
        changed: Bool[Tensor, "R N"],
        rows: Int64[Tensor, "R"] | None = None,
    ) -> Float[Tensor, "R"]:
        """The errors of trees whose ``changed`` nodes have other children than when the ``nodes``
        were encoded; these, and those above them, are encoded again, in place."""
        batch = self.batch if rows is None else self.batch.rows(rows)
        units = self.units if rows is None else self.units[rows]
        size = max(1, AT_ONCE // batch.present.shape[1])
        parts = zip(
            batch.parts(size),
            trees.split(size),
            nodes.split(size),
            changed.split(size),
            strict=True,
        )
        return torch.cat([self._summed(*part) for part in parts]) / units

    def _summed(
        self,
        batch: TokenBatch,
        trees: Places,
        nodes: Float[Tensor, "R N D"],
        changed: Bool[Tensor, "R N"],
    ) -> Float[Tensor, "R"]:
        """The squared errors of every tree's tokens."""
        num_nodes, model = nodes.shape[1], self.autoencoder
        first = torch.arange(len(trees), device=trees.device) * num_nodes
        children = trees[:, :-1].unflatten(1, (-1, 2))
        levels = descend(children, trees[:, -1] + first)
        flat = (children + first[:, None, None]).flatten(0, 1)
        states = nodes.view(-1, nodes.shape[2])  # what is written here is written to the argument
        stale = changed.flatten().clone()
        for level in reversed(levels):
            parents = level.nodes[level.internal]
            below = flat[parents]
            parents = parents[stale[parents] | stale[below].any(1)]
            if len(parents):
                stale[parents] = True
                states[parents] = model.merger(states[flat[parents]].flatten(1))
        decoded = model.decode_levels(states[levels[0].nodes], levels)
        leaves = torch.cat([level.nodes[level.leaves] for level in levels])
        embeddings = [state[level.leaves] for state, level in zip(decoded, levels, strict=True)]
        errors = token_errors(model, torch.cat(embeddings), leaves, batch, self.std)
        return errors.new_zeros(len(trees)).index_add_(0, leaves // num_nodes, errors)
