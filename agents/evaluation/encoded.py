"""Samples with their trees, their roots, and what the roots decode to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.evaluation.evaluate import CHUNK
from htm_env.autoencoder import TreeEncoder
from htm_env.measures.metrics import nmse_per_sample
from htm_env.types import TokenBatch


@dataclass(frozen=True)
class Encoded:
    """Samples, their trees, and their roots."""

    batch: TokenBatch
    merges: Int64[Tensor, "B M 2"]
    roots: Float[Tensor, "B D"]
    reconstruction: Float[Tensor, "B P T"]
    """The tokens that the roots decode to along the same trees, in raw units."""

    @classmethod
    @torch.no_grad()
    def along(
        cls, autoencoder: TreeEncoder, batch: TokenBatch, merges: Int64[Tensor, "B M 2"]
    ) -> Encoded:
        """Samples with given merges."""
        roots, decoded = [], []
        for part, trees in zip(batch.parts(CHUNK), merges.split(CHUNK), strict=True):
            roots.append(autoencoder.encode(part.tokens, part.present, trees).roots)
            decoded.append(autoencoder.decode(roots[-1], trees, part.present))
        return cls(batch, merges, torch.cat(roots), torch.cat(decoded))

    def errors(self, std: Float[Tensor, "T"]) -> Float[Tensor, "B"]:
        """The ``nmse`` of every reconstruction."""
        return nmse_per_sample(self.reconstruction, self.batch.tokens, self.batch.present, std)
