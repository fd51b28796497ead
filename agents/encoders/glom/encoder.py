"""``GlomEncoder``: the columns of a population as the context of its tokens."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from agents.encoders.base import Context, ContextEncoder, masked_mean, without_junk
from agents.encoders.config import GlomEncoderConfig
from agents.encoders.glom.columns import Glom
from agents.encoders.glom.losses import contrastive_loss, denoising_loss, draw_crops, draw_hidden


class GlomEncoder(ContextEncoder):
    """Tokens in context are read from all levels of their columns, the summary from the top level
    of all columns together: attention by similarity misses what is unlike everything else, a mean
    does not.

    The ``state`` is the columns (B, P, L, d). With ``continued_iterations`` policies go on from it
    after a merge: the parent starts from the mean of its children's columns.
    """

    def __init__(self, width: int, config: GlomEncoderConfig, coordinates: int) -> None:
        super().__init__()
        self.config, self.needs = config, config.needs
        self.carries = config.continued_iterations > 0
        self.has_losses = bool(config.denoising_weight or config.contrastive_weight)
        self.glom = Glom(width, config.glom, coordinates)
        levels, size = config.glom.levels, config.glom.level_width
        self.read_out = nn.Sequential(nn.LayerNorm(levels * size), nn.Linear(levels * size, width))
        self.summarise = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, width), nn.GELU(), nn.Linear(width, width)
        )
        if config.denoising_weight:
            self.hidden_token = nn.Parameter(torch.randn(width))
            self.restore = nn.Linear(levels * size, width)

    def forward(
        self,
        tokens: Float[Tensor, "B P W"],
        active: Bool[Tensor, "B P"],
        *,
        centroids: Float[Tensor, "B P T"] | None = None,
        state: Any = None,
        generator: torch.Generator | None = None,
        **others: Any,
    ) -> Context:
        config = self.config
        iterations = config.glom.iterations
        if state is not None and config.continued_iterations:
            iterations = config.continued_iterations
        columns = self.glom(tokens, active, centroids, iterations, state)
        read = without_junk(self.read_out(columns.flatten(2)), active)
        # A network before the mean as well as after the columns: one token in many has to count
        # among the others.
        summary = masked_mean(self.summarise(columns[:, :, -1]), active)
        losses: dict[str, Tensor] = {}
        if generator is not None and self.has_losses:
            losses = self._losses(without_junk(tokens, active), active, centroids, generator)
        return Context(read, summary, columns, losses)

    def _losses(
        self,
        tokens: Float[Tensor, "B P W"],
        active: Bool[Tensor, "B P"],
        centroids: Float[Tensor, "B P T"] | None,
        generator: torch.Generator,
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses of the columns beside the policy's, from fresh columns."""
        config, losses = self.config, {}
        if config.denoising_weight:
            # A hidden token is hidden whole, since an embedding's numbers predict one another.
            hidden = draw_hidden(active, 1, config.hidden_tokens, 1.0, generator)
            seen = torch.where(hidden, self.hidden_token, tokens)
            restored = self.restore(self.glom(seen, active, centroids).flatten(2))
            target = nn.functional.layer_norm(tokens.detach(), tokens.shape[-1:])
            losses["denoising"] = config.denoising_weight * denoising_loss(
                restored, target, hidden.expand_as(tokens)
            )
        if config.contrastive_weight:
            first, second = draw_crops(active, generator)
            losses["contrastive"] = config.contrastive_weight * contrastive_loss(
                self.glom(tokens, first, centroids)[:, :, -1],
                first,
                self.glom(tokens, second, centroids)[:, :, -1],
                second,
                config.temperature,
            )
        return losses
