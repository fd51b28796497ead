"""``Glom``: every token is a column of levels that iterate until they agree (Hinton 2021)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from agents.encoders.base import attend, without_junk
from agents.encoders.config import GlomConfig
from htm_env.checks import at_least


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
    was, the prediction of the level below (of the lowest: of the token), that of the level above,
    and the mean of the same level of the columns that are like it (attention).

    Geoffrey Hinton, 2021, "How to represent part-whole hierarchies in a neural network".

    Args:
        width: ``W`` of the tokens.
    """

    def __init__(self, width: int, config: GlomConfig) -> None:
        super().__init__()
        at_least(1, width=width)
        self.config = config
        levels, size = config.levels, config.level_width
        hidden = config.expansion * size
        self.from_token = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, size)
        )
        self.bottom_up = LevelNetworks(levels - 1, size, hidden)
        self.top_down = LevelNetworks(levels - 1, size, hidden)
        self.fresh = nn.Parameter(torch.randn(levels, size))
        terms = torch.full((levels, 1), 3.0 + config.attention)
        terms[-1] -= 1  # there is no level above the top
        self.register_buffer("terms", terms, persistent=False)
        self.terms: Tensor

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
        at_least(0, iterations=iterations)
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
        terms = columns + below + above
        if self.config.attention:
            terms = terms + similarity_attention(
                columns, allowed, self.config.sharpness, self.config.agreement_decay
            )
        return (terms / self.terms).masked_fill(~active[..., None, None], 0.0)


def similarity_attention(
    columns: Float[Tensor, "B P L d"],
    allowed: Bool[Tensor, "B #P P"],
    sharpness: float,
    agreement_decay: float = 0.0,
) -> Float[Tensor, "B P L d"]:
    """Attention by similarity of every level of every column to the same level of the others
    (Hinton 2021, "How to represent part-whole hierarchies in a neural network").

    The values of a level are the levels themselves, ``softmax(S_l) X_l`` with
    ``S_l = sharpness * sum_k decay^k X_{l+k} X_{l+k}^T``: columns that agree further up are part
    of the same whole, so they attend more to one another. Without decay, k = 0 alone counts.

    Args:
        columns: anything finite where there is no column; it has no weight.
        allowed: True <--> the column (second axis) may attend to this one (last axis).
    """
    levels = columns.transpose(1, 2)  # (B, L, P, d)
    agreeing = levels
    if agreement_decay:
        # One wide vector a level, whose products are the sum over the levels above.
        count, width = levels.shape[1], levels.shape[3]
        wide = levels.new_zeros(*levels.shape[:3], count * width)
        for level in range(count):
            for k in range(count - level):
                part = slice(k * width, (k + 1) * width)
                wide[:, level, :, part] = agreement_decay ** (k / 2) * levels[:, level + k]
        agreeing = wide
    attended = attend(agreeing, agreeing, levels, allowed[:, None], scale=sharpness)
    return attended.transpose(1, 2)


def near(
    centroids: Float[Tensor, "B P T"], active: Bool[Tensor, "B P"], radius: float
) -> Bool[Tensor, "B P P"]:
    """True <--> both are active, and their centroids lie within ``radius`` of each other."""
    both = active[:, :, None] & active[:, None, :]
    distances = (centroids[:, :, None] - centroids[:, None]).square().sum(-1)
    return both & (distances <= radius**2)  # what is not a number is not near
