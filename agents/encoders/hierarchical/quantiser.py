"""A random-projection quantiser: targets that cannot collapse, since nothing of them is learned."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize


class RandomProjectionQuantiser(nn.Module):
    """Names every vector by the nearest row of a random codebook, after a random projection (Chiu
    et al. 2022, "Self-supervised learning with random-projection quantizer for speech
    recognition").

    Both are frozen. Projected vectors and codebook are normalised, so that the nearest is the one
    with the largest cosine.
    """

    projection: Float[Tensor, "W d"]
    codebook: Float[Tensor, "codes d"]

    def __init__(
        self, width: int, codes: int, dimension: int = 16, *, generator: torch.Generator | None
    ) -> None:
        """
        Args:
            width: of the vectors to be quantised; they should have mean 0 (Chiu et al., section 3).
            codes: rows of the codebook.
            dimension: of the space in which the nearest is looked for.
            generator: draws projection and codebook.
        """
        super().__init__()
        for name, value in (("width", width), ("codes", codes), ("dimension", dimension)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        limit = (6 / (width + dimension)) ** 0.5  # Xavier, as in the paper
        uniform = torch.rand(width, dimension, generator=generator)
        self.register_buffer("projection", (2 * uniform - 1) * limit)
        rows = torch.randn(codes, dimension, generator=generator)
        self.register_buffer("codebook", normalize(rows, dim=1))

    @torch.no_grad()
    def forward(self, vectors: Float[Tensor, "*batch W"]) -> Int64[Tensor, "*batch"]:
        """The code of each vector, ``0 .. codes - 1``."""
        projected = normalize(vectors @ self.projection, dim=-1)
        return (projected @ self.codebook.T).argmax(-1)
