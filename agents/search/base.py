"""What a search takes and gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt64
from torch import Tensor

from htm_env.datasets.base import mix, uniforms
from htm_env.types import TokenBatch

Numbers = Callable[[int], Tensor]
"""``numbers(count)``: the next uniform float64 numbers in [0, 1) of each sample, ``(B, count)``; a
search draws by them."""


class Found(NamedTuple):
    """What a search found for every sample."""

    merges: Int64[Tensor, "B M 2"]
    """The best tree, -1 in padding."""
    errors: Float[Tensor, "B"]
    """Its ``nmse``; of a known merger the cost of its merges."""
    start_errors: Float[Tensor, "B S"]
    """Those of the trees that were given."""


@runtime_checkable
class TreeSearch(Protocol):
    """Improves given trees; none of them ends worse."""

    def __call__(
        self, batch: TokenBatch, starts: Int64[Tensor, "B S M 2"], numbers: Numbers
    ) -> Found:
        """Search from ``S`` whole trees of each sample, the most important ones first; a sample's
        result depends on its own row and numbers alone."""


def numbers_of(generator: torch.Generator, samples: int) -> Numbers:
    """Numbers of one generator for all samples."""

    def drawn(count: int) -> Tensor:
        shape = (samples, count)
        return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)

    return drawn


def numbers_of_seeds(seeds: UInt64[np.ndarray, "B"]) -> Numbers:
    """Numbers that depend on a sample's own seed alone."""
    streams, used = mix(seeds), 0

    def drawn(count: int) -> Tensor:
        nonlocal used
        used += count
        return torch.from_numpy(uniforms(streams, count, used - count))

    return drawn
