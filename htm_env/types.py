"""The words and shapes that every module shares.

Legend of the shapes, everywhere in this project:

    B  batch            P  token slots (the largest population)
    T  token dimension  D  embedding dimension
    n  tokens of one sample, ``n <= P``
    M  merges stored per sample, ``P - 1``, padded with -1
    N  node slots per sample, ``2 P - 1``
    C  clades stored per sample

Nodes are numbered as in scipy's linkage: the leaves of a sample are nodes ``0 .. n-1`` (its tokens
in slot order) and merge ``t`` makes node ``n + t``.

Masks and sentinels, everywhere: a mask is ``True`` where something *is* (a token is present, a slot
is active, an action is legal); the index ``-1`` means "none".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

NONE = -1
"""The node id that pads merges and empty slots."""


class TokenBatch(NamedTuple):
    """A batch of token sets, padded to ``P`` slots, with the hierarchy that the data itself has.

    The order of the tokens carries no information: every dataset shuffles the tokens of a sample,
    and ``clades`` and ``merges`` name the shuffled slots.
    """

    tokens: Float[Tensor, "B P T"]
    """Raw coordinates in the data's own units; zeros in empty slots."""
    present: Bool[Tensor, "B P"]
    """True <--> a token is here; the tokens of a sample fill its slots ``0 .. n-1``."""
    clades: Bool[Tensor, "B C P"]
    """The data's own clades, one leaf set a row; an all-False row pads."""
    merges: Int64[Tensor, "B M 2"]
    """The data's own hierarchy in the generator's canonical order; -1 pads, or has no hierarchy."""

    @property
    def num_tokens(self) -> Int64[Tensor, "B"]:
        """How many tokens each sample has."""
        return self.present.sum(dim=1)

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        return TokenBatch(*(tensor.to(device) for tensor in self))

    def rows(self, index: Tensor | slice) -> TokenBatch:
        """The samples that ``index`` selects along the batch axis."""
        return TokenBatch(*(tensor[index] for tensor in self))

    def parts(self, size: int) -> Iterator[TokenBatch]:
        """The samples in order, at most ``size`` at a time."""
        for start in range(0, len(self.tokens), size):
            yield self.rows(slice(start, start + size))
