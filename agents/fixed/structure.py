"""The data's own hierarchy."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from htm_env.autoencoder import HTMAutoencoder
from htm_env.types import TokenBatch


def structure_tree(
    batch: TokenBatch, autoencoder: HTMAutoencoder, generator: torch.Generator
) -> Int64[Tensor, "B M 2"]:
    """The merges that come with the samples, in the data's canonical order.

    Raises ``ValueError`` naming the first sample that has no complete hierarchy.
    """
    return given_merges(
        batch,
        "the structure policies expected a complete hierarchy, which generated Trees and Crosses "
        "have",
    )


def given_merges(batch: TokenBatch, expected: str) -> Int64[Tensor, "B M 2"]:
    """The merges that come with the samples.

    Raises ``ValueError`` naming the first sample that has no complete hierarchy, and ending with
    what was ``expected``.
    """
    given = (batch.merges[..., 0] >= 0).sum(dim=1)
    missing = given != (batch.num_tokens - 1).clamp(min=0)
    if missing.any():
        row = int(missing.nonzero()[0])
        raise ValueError(
            f"sample {row} of this data comes with {int(given[row])} merges over its "
            f"{int(batch.num_tokens[row])} tokens; {expected}"
        )
    return batch.merges
