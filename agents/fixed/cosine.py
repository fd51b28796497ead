"""Merges by the embeddings alone: the pair that points most nearly the same way."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.functional import normalize

from agents.fixed.agglomeration import agglomerate
from htm_env.autoencoder import HTMAutoencoder
from htm_env.types import TokenBatch


@torch.no_grad()
def cosine_tree(
    batch: TokenBatch, autoencoder: HTMAutoencoder, generator: torch.Generator
) -> Int64[Tensor, "B M 2"]:
    """At each step the two active embeddings with the largest cosine similarity.

    The order within the pair is random, and drawn here: the parent's embedding depends on it.
    """
    embeddings = autoencoder.lifter(autoencoder.standardise(batch.tokens))  # (B, P, D)
    rows = torch.arange(len(embeddings), device=embeddings.device)
    directions = normalize(embeddings, dim=-1)

    def joined(distances: Tensor, first: Tensor, second: Tensor) -> Tensor:
        pair = torch.cat([embeddings[rows, first], embeddings[rows, second]], dim=-1)
        parent = autoencoder.merger(pair)
        embeddings[rows, first] = parent
        directions[rows, first] = normalize(parent, dim=-1)
        return -torch.einsum("bpd,bd->bp", directions, directions[rows, first])

    similarities = torch.einsum("bpd,bqd->bpq", directions, directions)
    return agglomerate(-similarities, batch, joined, turn=generator)
