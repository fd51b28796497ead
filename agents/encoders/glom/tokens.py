"""``TokenGlom``: a Glom of real tokens, and the losses that train it without labels or merges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from agents.config.dataclasses_json import check_bounds
from agents.encoders.base import without_junk
from agents.encoders.config import GlomConfig
from agents.encoders.glom.columns import Glom
from agents.encoders.glom.losses import contrastive_loss, denoising_loss, draw_crops, draw_hidden


@dataclass(frozen=True)
class GlomTrainingConfig:
    """The losses of a Glom of real tokens."""

    denoising_weight: float = 1.0
    """Weight of restoring hidden coordinates."""
    hidden_tokens: float = 0.3
    """The share of tokens with hidden coordinates."""
    hidden_coordinates: float = 0.5
    """The share of such a token's coordinates that is hidden; 1 hides the whole token."""
    contrastive_weight: float = 0.3
    """Weight of distinguishing scenes."""
    temperature: float = 0.1
    """Temperature of crops' similarities: the lower, the more the nearest scenes count."""

    def __post_init__(self) -> None:
        check_bounds(
            self,
            denoising_weight=0,
            hidden_tokens=(0, 1),
            hidden_coordinates=(0, 1),
            contrastive_weight=0,
            temperature=1e-6,
        )


class TokenGlom(nn.Module):
    """Columns of tokens of which some coordinates may be hidden, and these restored from them.

    Args:
        coordinates: ``T`` of the tokens, which should be standardised.
    """

    def __init__(self, coordinates: int, config: GlomConfig) -> None:
        super().__init__()
        self.glom = Glom(2 * coordinates, config)
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
    ) -> Float[Tensor, "B P L d"]:
        """The columns (see :class:`Glom`) of tokens whose ``hidden`` (True) coordinates are zeros,
        and marked as hidden. (A radius still goes by the true places.)"""
        tokens = without_junk(tokens, active)
        hidden = torch.zeros_like(tokens, dtype=torch.bool) if hidden is None else hidden
        seen = torch.cat([tokens.masked_fill(hidden, 0.0), hidden.to(tokens.dtype)], dim=2)
        return self.glom(seen, active, tokens, iterations, state)

    def restore(self, columns: Float[Tensor, "B P L d"]) -> Float[Tensor, "B P T"]:
        """The tokens, restored from their columns."""
        return self.restoring(columns.flatten(2))


def scene_losses(
    model: TokenGlom,
    tokens: Float[Tensor, "B P T"],
    active: Bool[Tensor, "B P"],
    config: GlomTrainingConfig,
    generator: torch.Generator,
) -> dict[str, Float[Tensor, ""]]:
    """The losses of these scenes by name, weighted; those of weight 0 are left out.

    ``generator`` draws what is hidden, and the crops.
    """
    losses: dict[str, Tensor] = {}
    tokens = without_junk(tokens, active)
    if config.denoising_weight:
        hidden = draw_hidden(
            active, tokens.shape[2], config.hidden_tokens, config.hidden_coordinates, generator
        )
        restored = model.restore(model(tokens, active, hidden))
        losses["denoising"] = config.denoising_weight * denoising_loss(restored, tokens, hidden)
    if config.contrastive_weight:
        crops = torch.stack(draw_crops(active, generator))  # (2, B, P)
        tops = model(tokens.repeat(2, 1, 1), crops.flatten(0, 1))[:, :, -1].chunk(2)
        losses["contrastive"] = config.contrastive_weight * contrastive_loss(
            tops[0], crops[0], tops[1], crops[1], config.temperature
        )
    return losses
