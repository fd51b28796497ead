"""What generation keeps of the tokens so far, so that a new token costs one step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class BlockCache:
    """One block's. Vectors are in the order of their hierarchy, its strands interleaved."""

    keys: Float[Tensor, "B H _ d"] | None = None
    """Already turned to their positions; as many as the window may still reach."""
    values: Float[Tensor, "B H _ d"] | None = None
    before_attention: Float[Tensor, "B _ W"] | None = None
    """What entered the token shift last, one vector a strand."""
    before_feed_forward: Float[Tensor, "B _ W"] | None = None
    count: int = 0
    """Vectors seen so far."""


@dataclass
class Cache:
    """A whole model's."""

    blocks: list[list[BlockCache]]
    """Of each layer and hierarchy."""
    merged: list[list[Tensor]]
    """What each layer's merge was last given by each hierarchy, (B, 1, hidden)."""
    embedded: Float[Tensor, "B _ E"] | None = None
    """The last embedded tokens, as many as the coarsest vector is made of, less one."""
    count: int = 0
    """Tokens seen so far."""


def newest(vectors: Tensor, count: int, dim: int = 1) -> Tensor:
    """The last ``count`` vectors along ``dim``, with zeros before them where there are fewer."""
    length = vectors.shape[dim]
    if length >= count:
        return vectors.narrow(dim, length - count, count)
    shape = list(vectors.shape)
    shape[dim] = count - length
    return torch.cat((vectors.new_zeros(shape), vectors), dim)
