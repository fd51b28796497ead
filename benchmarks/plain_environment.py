"""A plain batched environment: what ours is compared with, and held against in the tests.

All copies go in lockstep. After every merge the whole forest is decoded again, one merge at a time
in the reverse order, where ours decodes only what is new, level by level. All samples have the same
number of tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from benchmarks.plain_reference import legal_table
from htm_env.autoencoder import HTMAutoencoder


class PlainEnvironment:
    """Copies that start and end together."""

    def __init__(self, autoencoder: HTMAutoencoder, reward: str = "incremental") -> None:
        self.autoencoder = autoencoder
        self.reward = reward
        """``incremental`` or ``terminal``."""

    @torch.no_grad()
    def reset(self, tokens: Float[Tensor, "B P T"]) -> None:
        """Start an episode of each sample."""
        batch, size, _ = tokens.shape
        self.standardised = self.autoencoder.standardise(tokens)
        self.slots = self.autoencoder.lifter(self.standardised)  # (B, P, D)
        self.active = torch.ones(batch, size, dtype=torch.bool, device=tokens.device)
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.error = self.start_error = self._error()

    @torch.no_grad()
    def step(self, first: Int64[Tensor, "B"], second: Int64[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Merge two slots of every copy into the first of them; returns the rewards."""
        row = torch.arange(len(first), device=first.device)
        pair = torch.cat([self.slots[row, first], self.slots[row, second]], dim=1)  # (B, 2 D)
        self.slots[row, first] = self.autoencoder.merger(pair)
        self.active[row, second] = False
        self.pairs.append((first, second))
        if self.reward == "terminal":
            return self.start_error - self._error() if self.over else torch.zeros_like(self.error)
        before, self.error = self.error, self._error()
        return before - self.error

    @property
    def over(self) -> bool:
        """Whether every copy has come to its root."""
        return len(self.pairs) == self.active.shape[1] - 1

    def action_masks(self) -> Bool[Tensor, "B P P"]:
        """True <--> legal."""
        return legal_table(self.active)

    def _error(self) -> Float[Tensor, "B"]:
        """Of decoding every active embedding to its leaves, in the autoencoder's units."""
        slots, row = self.slots.clone(), torch.arange(len(self.slots), device=self.slots.device)
        for first, second in reversed(self.pairs):
            left, right = self.autoencoder.unmerger(slots[row, first]).chunk(2, dim=1)
            slots[row, first], slots[row, second] = left, right
        return (self.autoencoder.unlifter(slots) - self.standardised).square().mean((1, 2))
