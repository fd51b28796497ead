"""``TokenGlom``: a Glom of real tokens, and the losses that train it without labels or merges."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from agents.encoders.base import without_junk
from agents.encoders.config import GlomConfig, GlomTrainingConfig
from agents.encoders.glom.columns import Glom
from agents.encoders.glom.losses import (
    contrastive_loss,
    denoising_loss,
    draw_crops,
    draw_hidden,
    draw_two_regions,
)


class TokenGlom(nn.Module):
    """Columns of tokens of which some coordinates may be hidden, and these restored from them.

    Args:
        coordinates: ``T`` of the tokens, which should be standardised.
    """

    takes = ("tokens", "active")
    """What :meth:`losses` are of."""

    def __init__(self, coordinates: int, config: GlomConfig) -> None:
        super().__init__()
        self.glom = Glom(2 * coordinates, config, coordinates)
        width, hidden = config.levels * config.level_width, 2 * config.level_width
        self.restoring = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, coordinates)
        )

    def forward(
        self,
        tokens: Float[Tensor, "B P T"],
        active: Bool[Tensor, "B P"],
        hidden: Bool[Tensor, "B P T"] | None = None,
        iterations: int | None = None,
        state: Float[Tensor, "B P L d"] | None = None,
        return_all: bool = False,
    ) -> Float[Tensor, "*times B P L d"]:
        """The columns (see :class:`Glom`) of tokens whose ``hidden`` (True) coordinates are zeros,
        and marked as hidden. (A radius still goes by the true places.)"""
        tokens = without_junk(tokens, active)
        hidden = torch.zeros_like(tokens, dtype=torch.bool) if hidden is None else hidden
        seen = torch.cat([tokens.masked_fill(hidden, 0.0), hidden.to(tokens.dtype)], dim=2)
        return self.glom(seen, active, tokens, iterations, state, return_all)

    def restore(self, columns: Float[Tensor, "B P L d"]) -> Float[Tensor, "B P T"]:
        """The tokens, restored from their columns."""
        return self.restoring(columns.flatten(2))

    def losses(
        self,
        tokens: Float[Tensor, "B P T"],
        active: Bool[Tensor, "B P"],
        *,
        training: GlomTrainingConfig,
        generator: torch.Generator,
    ) -> dict[str, Float[Tensor, ""]]:
        """The losses of these scenes by name, weighted; those of weight 0 are left out.

        ``generator`` draws what is hidden, and the crops: regions of the tokens as places, where
        the ``training`` says so.
        """
        losses: dict[str, Tensor] = {}
        tokens = without_junk(tokens, active)
        if training.denoising_weight:
            shares = training.hidden_tokens, training.hidden_coordinates
            places = tokens if training.regions else None
            hidden = draw_hidden(active, tokens.shape[2], *shares, generator, places)
            restored = self.restore(self(tokens, active, hidden))
            loss = denoising_loss(restored, tokens, hidden)
            losses["denoising"] = training.denoising_weight * loss
        if training.contrastive_weight:
            if training.regions:
                drawn = draw_two_regions(tokens, active, training.crop_share, generator)
            else:
                drawn = draw_crops(active, generator)
            crops = torch.stack(drawn)  # (2, B, P)
            tops = self(tokens.repeat(2, 1, 1), crops.flatten(0, 1))[:, :, -1].chunk(2)
            losses["contrastive"] = training.contrastive_weight * contrastive_loss(
                tops[0], crops[0], tops[1], crops[1], training.temperature
            )
        return losses
