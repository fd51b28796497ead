"""What a language model's hierarchies are trained for beside the next token."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from agents.encoders.hierarchical.config import HierarchicalTransformerConfig
from agents.encoders.hierarchical.layers import Hierarchies
from agents.encoders.hierarchical.losses import (
    NO_TOKEN,
    covered_tokens,
    next_code_loss,
    next_vector_loss,
    token_loss,
)
from agents.encoders.hierarchical.quantiser import RandomProjectionQuantiser

FEATURES = 16
"""Random features that stand for a token when what a vector is made of is quantised."""


class Objectives(nn.Module):
    """Heads and losses: each hierarchy's next vector (itself or its code), and the tokens that a
    coarse vector is made of.

    Next means the first that shares no token with the own one. Codes are made of tokens by frozen
    projections, so that they stay what they are; a vector itself is learned, and could become easy
    to predict by saying less.
    """

    def __init__(
        self, config: HierarchicalTransformerConfig, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.config = config
        hierarchies = config.hierarchies if config.next_weight else ()
        self.next = nn.ModuleList(
            nn.Linear(each.width, config.codes or each.width) for each in hierarchies
        )
        self.quantisers = nn.ModuleList()
        self.features: Tensor
        if config.codes and config.next_weight:
            features = torch.randn(config.vocabulary + 1, FEATURES, generator=generator)
            features[NO_TOKEN] = 0.0
            self.register_buffer("features", features)
            self.quantisers.extend(
                RandomProjectionQuantiser(each.rate * FEATURES, config.codes, generator=generator)
                for each in hierarchies
            )
        coarse = config.hierarchies[1:] if config.reconstruction_weight else ()
        self.reconstruct = nn.ModuleList(
            nn.Linear(each.width, each.rate * config.vocabulary) for each in coarse
        )

    def forward(
        self, tokens: Int64[Tensor, "B L"], hierarchies: Hierarchies
    ) -> dict[str, Float[Tensor, ""]]:
        losses = {}
        for index, head in enumerate(self.next):
            config, predicted = self.config.hierarchies[index], head(hierarchies.ends[index])
            if self.config.codes:
                codes = self.codes(tokens, index)
                loss = next_code_loss(predicted, codes, config.strands)
            else:
                loss = next_vector_loss(predicted, hierarchies.starts[index], config.strands)
            losses[f"next_{config.rate}"] = self.config.next_weight * loss
        for index, head in enumerate(self.reconstruct, start=1):
            config = self.config.hierarchies[index]
            logits = head(hierarchies.starts[index])
            targets = covered_tokens(tokens, config.rate, config.stride)
            loss = token_loss(
                logits.unflatten(2, (config.rate, -1)).flatten(1, 2), targets.flatten(1)
            )
            losses[f"reconstruction_{config.rate}"] = self.config.reconstruction_weight * loss
        return losses

    def codes(self, tokens: Int64[Tensor, "B L"], index: int) -> Int64[Tensor, "B _"]:
        """The code of the tokens that each vector of hierarchy ``index`` is made of."""
        config = self.config.hierarchies[index]
        targets = covered_tokens(tokens, config.rate, config.stride)
        return self.quantisers[index](self.features[targets].flatten(2))
