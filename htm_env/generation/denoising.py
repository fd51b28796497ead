"""Reconstructing noisy tokens: how much of the noise does not fit through the root?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from htm_env.autoencoder import HTMAutoencoder
from htm_env.measures.metrics import nmse_per_sample
from htm_env.types import TokenBatch

Plan = Callable[[TokenBatch], Int64[Tensor, "B M 2"]]
"""Whoever makes whole trees of a batch."""


class Denoised(NamedTuple):
    """Noisy token sets, and what an autoencoder makes of them."""

    noisy: Float[Tensor, "B P T"]
    """Raw units; zeros in empty slots."""
    merges: Int64[Tensor, "B M 2"]
    """The trees that were made of the noisy tokens."""
    reconstruction: Float[Tensor, "B P T"]
    """Reconstruction of the noisy tokens, each in its slot; raw units, zeros in empty slots."""
    noisy_error: Float[Tensor, "B"]
    """``nmse`` of the noisy tokens against the clean ones: about the square of the noise."""
    error: Float[Tensor, "B"]
    """``nmse`` of the reconstruction against the clean tokens."""


@torch.no_grad()
def denoise(
    autoencoder: HTMAutoencoder,
    batch: TokenBatch,
    plan: Plan,
    noise_std: float,
    generator: torch.Generator,
) -> Denoised:
    """Add Gaussian noise to tokens, and reconstruct them through their root.

    ``noise_std`` is in units of each coordinate's standard deviation over the training split.

    Raises ``ValueError`` for a noise that is negative or not finite, and for plans that leave
    several trees.
    """
    if not 0 <= noise_std < math.inf:
        raise ValueError(f"noise_std is {noise_std}; expected a finite number of at least 0")
    std, present = autoencoder.token_std, batch.present
    noise = torch.empty_like(batch.tokens).normal_(generator=generator)
    tokens = (batch.tokens + noise_std * std * noise) * present[..., None]
    noisy = batch._replace(tokens=tokens)
    merges = plan(noisy)
    roots = autoencoder.encode(tokens, present, merges).roots
    decoded = autoencoder.decode(roots, merges, present)
    return Denoised(
        tokens,
        merges,
        decoded,
        nmse_per_sample(tokens, batch.tokens, present, std),
        nmse_per_sample(decoded, batch.tokens, present, std),
    )
