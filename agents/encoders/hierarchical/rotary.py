"""Rotary positions, which attention sees as distances."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rotate(vectors: Float[Tensor, "B H K d"], start: int = 0) -> Float[Tensor, "B H K d"]:
    """Turn the queries or keys of positions ``start``, ``start + 1``, ... (Su et al. 2021,
    "RoFormer: Enhanced Transformer with Rotary Position Embedding").

    A product of two turned vectors depends on the distance of their positions, not on ``start``.
    """
    length, half = vectors.shape[2], vectors.shape[3] // 2
    positions = torch.arange(start, start + length, device=vectors.device, dtype=vectors.dtype)
    exponents = torch.arange(half, device=vectors.device, dtype=vectors.dtype) / half
    angles = positions[:, None] * 10_000.0**-exponents  # (K, d / 2)
    cosine, sine = angles.cos(), angles.sin()
    first, second = vectors.chunk(2, dim=3)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), 3)
