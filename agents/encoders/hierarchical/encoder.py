"""Hierarchical attention over an ordered population."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agents.encoders.base import Context, ContextEncoder, masked_mean, without_junk
from agents.encoders.config import HierarchicalConfig
from agents.encoders.hierarchical.layers import HierarchicalLayers, norm_before


class HierarchicalEncoder(ContextEncoder):
    """Parallel hierarchies, in both directions, over the tokens in the order that they are given.

    **It depends on the order**: which tokens are neighbours, and which share a coarse vector. It is
    therefore no function of a set, and as good as the order is: the leaf order of the forest, or a
    space-filling curve through the centroids. Renaming the slots changes nothing. The cost grows
    with ``P * window``.
    """

    ordered = True

    def __init__(self, width: int, config: HierarchicalConfig, coordinates: int) -> None:
        """Raises ``ValueError`` where the heads do not share the width."""
        super().__init__()
        self.needs = config.needs
        self.layers = HierarchicalLayers(
            config.hierarchies(width), config.layers, width, causal=False
        )
        self.layers.start_small()
        self.last_norm = norm_before(width, weights=False)

    def forward(
        self,
        tokens: Float[Tensor, "B P W"],
        active: Bool[Tensor, "B P"],
        *,
        order: Int[Tensor, "B P"] | None = None,
        **others: Any,
    ) -> Context:
        """As of every encoder; equal ranks are in the order of their slots."""
        ranks = self.needed("order", order).masked_fill(~active, torch.iinfo(torch.int64).max)
        slots = ranks.argsort(dim=1, stable=True)  # (B, P), empty ones last
        index = slots[..., None].expand_as(tokens)
        ordered = without_junk(tokens, active).gather(1, index)
        ends = self.layers(ordered, active.gather(1, slots)).ends[0]
        placed = torch.zeros_like(ends).scatter(1, index, self.last_norm(ends))
        placed = without_junk(placed, active)
        return Context(placed, masked_mean(placed, active))
