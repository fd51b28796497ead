"""Structure given from outside, level by level."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from agents.fixed.structure import given_merges
from htm_env.autoencoder import HTMAutoencoder
from htm_env.types import TokenBatch


def spans_tree(
    batch: TokenBatch, autoencoder: HTMAutoencoder, generator: torch.Generator
) -> Int64[Tensor, "B M 2"]:
    """The trees of spans that were given with the data, in the order in which they were given.

    All spans of a level come before those of the next, and the things of a span are joined
    neighbour to neighbour (see ``htm_env.datasets.span_hierarchy``). Generated Trees and Crosses
    give theirs as merges: there this is ``structure_canonical``.

    Raises ``ValueError`` naming the first sample that comes without any.
    """
    return given_merges(
        batch,
        "the spans policy expected levels of spans, which HTM-v0 takes as 'spans' and "
        "'span_counts' of an .npz or as spans= beside an array",
    )
