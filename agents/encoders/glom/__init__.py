"""GLOM (Hinton 2021): tokens as columns of levels that iterate until they agree."""

from __future__ import annotations

from agents.encoders.glom.attention import similarity_attention
from agents.encoders.glom.columns import Glom
from agents.encoders.glom.config import GlomConfig, GlomEncoderConfig, GlomTrainingConfig
from agents.encoders.glom.encoder import GlomEncoder
from agents.encoders.glom.islands import island_merges
from agents.encoders.glom.losses import (
    contrastive_loss,
    denoising_loss,
    draw_crops,
    draw_hidden,
)
from agents.encoders.glom.tokens import TokenGlom, scene_losses

__all__ = [
    "Glom",
    "GlomConfig",
    "GlomEncoder",
    "GlomEncoderConfig",
    "GlomTrainingConfig",
    "TokenGlom",
    "contrastive_loss",
    "denoising_loss",
    "draw_crops",
    "draw_hidden",
    "island_merges",
    "scene_losses",
    "similarity_attention",
]
