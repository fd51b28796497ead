"""Samples with their trees, their roots, and what the roots decode to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.evaluation.evaluate import CHUNK
from htm_env.autoencoder import NOTHING_DECODED, TreeEncoder
from htm_env.measures.metrics import nmse_per_sample
from htm_env.population import merge_costs
from htm_env.types import TokenBatch


@dataclass(frozen=True)
class Encoded:
    """Samples, their trees, and their roots."""

    batch: TokenBatch
    merges: Int64[Tensor, "B M 2"]
    roots: Float[Tensor, "B D"]
    reconstruction: Float[Tensor, "B P T"] | None
    """The tokens that the roots decode to along the same trees, in raw units; None where nothing is
    decoded."""
    costs: Float[Tensor, "B"] | None = None
    """The cost of each tree's merges, where nothing is decoded."""

    @classmethod
    @torch.no_grad()
    def along(
        cls, autoencoder: TreeEncoder, batch: TokenBatch, merges: Int64[Tensor, "B M 2"]
    ) -> Encoded:
        """Samples with given merges."""
        roots, decoded, costs = [], [], []
        for part, trees in zip(batch.parts(CHUNK), merges.split(CHUNK), strict=True):
            encoding = autoencoder.encode(part.tokens, part.present, trees)
            roots.append(encoding.roots)
            if autoencoder.decodes:
                decoded.append(autoencoder.decode(roots[-1], trees, part.present))
            else:
                costs.append(merge_costs(autoencoder, part, trees, encoding.nodes).sum(1))
        if costs:
            return cls(batch, merges, torch.cat(roots), None, torch.cat(costs))
        return cls(batch, merges, torch.cat(roots), torch.cat(decoded))

    def decoded(self) -> Float[Tensor, "B P T"]:
        """The reconstruction; ``ValueError`` where there is none."""
        if self.reconstruction is None:
            raise ValueError(NOTHING_DECODED)
        return self.reconstruction

    def errors(self, std: Float[Tensor, "T"]) -> Float[Tensor, "B"]:
        """The ``nmse`` of every reconstruction; where nothing is decoded the cost of the tree."""
        if self.reconstruction is None:
            assert self.costs is not None
            return self.costs
        return nmse_per_sample(self.reconstruction, self.batch.tokens, self.batch.present, std)
