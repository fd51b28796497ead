"""Attention by similarity: columns hear those that are like them, without query or key nets."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from agents.encoders.base import attend


def similarity_attention(
    columns: Float[Tensor, "B P L d"],
    allowed: Bool[Tensor, "B #P P"],
    sharpness: float,
    agreement_decay: float = 0.0,
) -> Float[Tensor, "B P L d"]:
    """What every level of every column hears from the same level of the others (Hinton 2021,
    "How to represent part-whole hierarchies in a neural network").

    The values of a level are the levels themselves, ``softmax(S_l) X_l`` with
    ``S_l = sharpness * sum_k decay^k X_{l+k} X_{l+k}^T``: columns that agree further up are part
    of the same whole, so they hear more of one another. Without decay, k = 0 alone counts.

    Args:
        columns: anything finite may stand where no column is; nobody hears it.
        allowed: True <--> the column (second axis) may hear this one (last axis).
    """
    levels = columns.transpose(1, 2)  # (B, L, P, d)
    agreeing = levels
    if agreement_decay:
        # One wide vector a level, whose products are the sum over the levels above.
        count, width = levels.shape[1], levels.shape[3]
        wide = levels.new_zeros(*levels.shape[:3], count * width)
        for level in range(count):
            for k in range(count - level):
                part = slice(k * width, (k + 1) * width)
                wide[:, level, :, part] = agreement_decay ** (k / 2) * levels[:, level + k]
        agreeing = wide
    heard = attend(agreeing, agreeing, levels, allowed[:, None], scale=sharpness)
    return heard.transpose(1, 2)


def near(
    centroids: Float[Tensor, "B P T"], active: Bool[Tensor, "B P"], radius: float
) -> Bool[Tensor, "B P P"]:
    """True <--> both are active, and their centroids lie within ``radius`` of each other."""
    both = active[:, :, None] & active[:, None, :]
    distances = (centroids[:, :, None] - centroids[:, None]).square().sum(-1)
    return both & (distances <= radius**2)  # what is not a number is not near
