"""``Glom``: every token is a column of levels that iterate until they agree (Hinton 2021)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from agents.encoders.base import without_junk
from agents.encoders.glom.attention import near, similarity_attention
from agents.encoders.glom.config import GlomConfig


class LevelNetworks(nn.Module):
    """One network with a hidden layer for each level, shared over the columns, in one product.

    Its input is layer-normalised, so that it stays in range over any number of iterations.
    """

    def __init__(self, levels: int, width: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(levels, width, hidden))
        self.first_bias = nn.Parameter(torch.empty(levels, 1, hidden))
        self.second = nn.Parameter(torch.empty(levels, hidden, width))
        self.second_bias = nn.Parameter(torch.empty(levels, 1, width))
        for parameter, inputs in (
            (self.first, width),
            (self.first_bias, width),
            (self.second, hidden),
            (self.second_bias, hidden),
        ):
            nn.init.uniform_(parameter, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))

    def forward(self, columns: Float[Tensor, "B P K d"]) -> Float[Tensor, "B P K d"]:
        levels = nn.functional.layer_norm(columns, columns.shape[-1:])
        levels = levels.permute(2, 0, 1, 3).flatten(1, 2)  # (K, B * P, d)
        hidden = nn.functional.gelu(torch.baddbmm(self.first_bias, levels, self.first))
        made = torch.baddbmm(self.second_bias, hidden, self.second)
        return made.unflatten(1, columns.shape[:2]).permute(1, 2, 0, 3)


class Glom(nn.Module):
    """Columns of ``L`` levels, one a token: at every iteration a level becomes the mean of what it
    was, what the level below says (of the lowest: the token), what the level above says, and what
    it hears from the same level of the columns that are like it.

    Geoffrey Hinton, 2021, "How to represent part-whole hierarchies in a neural network".

    Args:
        width: ``W`` of the tokens.
    """

    def __init__(self, width: int, config: GlomConfig) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"the width is {width}; expected at least 1")
        self.config = config
        levels, size = config.levels, config.level_width
        hidden = config.expansion * size
        self.from_token = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, size)
        )
        self.bottom_up = LevelNetworks(levels - 1, size, hidden)
        self.top_down = LevelNetworks(levels - 1, size, hidden)
        self.fresh = nn.Parameter(torch.randn(levels, size))
        voices = torch.full((levels, 1), 3.0 + config.attention)
        voices[-1] -= 1  # nobody stands above the top
        self.register_buffer("voices", voices, persistent=False)
        self.voices: Tensor

    def forward(
        self,
        tokens: Float[Tensor, "B P W"],
        active: Bool[Tensor, "B P"],
        centroids: Float[Tensor, "B P T"] | None = None,
        iterations: int | None = None,
        state: Float[Tensor, "B P L d"] | None = None,
    ) -> Float[Tensor, "B P L d"]:
        """The columns after so many ``iterations`` (the configuration's if None); zeros where no
        token is.

        They start from ``state``, what an earlier call gave, or else all alike. ``k`` iterations
        and ``m`` more from their columns are ``k + m`` at once, to the last bit.

        Raises ``ValueError`` where a radius is to be kept and ``centroids`` are not given, and for
        a state that is not of these tokens and levels.
        """
        shape = (*active.shape, self.config.levels, self.config.level_width)
        if state is not None and state.shape != shape:
            raise ValueError(f"the state has shape {tuple(state.shape)}; expected {shape}")
        allowed = active[:, None]
        if self.config.radius is not None:
            if centroids is None:
                raise ValueError("a Glom with a radius needs centroids, which were not given")
            allowed = near(centroids, active, self.config.radius)
        start = self.fresh.expand(*active.shape, -1, -1) if state is None else state
        columns = start.masked_fill(~active[..., None, None], 0.0)
        lowest = self.from_token(without_junk(tokens, active))[:, :, None]  # (B, P, 1, d)
        iterations = self.config.iterations if iterations is None else iterations
        if iterations < 0:
            raise ValueError(f"iterations is {iterations}; expected at least 0")
        for _ in range(iterations):
            columns = self._iterate(columns, lowest, active, allowed)
        return columns

    def _iterate(
        self,
        columns: Float[Tensor, "B P L d"],
        lowest: Float[Tensor, "B P 1 d"],
        active: Bool[Tensor, "B P"],
        allowed: Bool[Tensor, "B #P P"],
    ) -> Float[Tensor, "B P L d"]:
        below = torch.cat([lowest, self.bottom_up(columns[:, :, :-1])], dim=2)
        above = nn.functional.pad(self.top_down(columns[:, :, 1:]), (0, 0, 0, 1))
        voices = columns + below + above
        if self.config.attention:
            voices = voices + similarity_attention(
                columns, allowed, self.config.sharpness, self.config.agreement_decay
            )
        return (voices / self.voices).masked_fill(~active[..., None, None], 0.0)
