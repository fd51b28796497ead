"""The parts of an iteration: nets between levels, attention within one, and places in space."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from agents.encoders.base import attend

NEVER = -1e9
"""Agreement with what may not be attended to: below all others, and still finite."""
LONGEST = 8.0
"""Wavelength of the slowest sinusoid, in standardised coordinates: all of a sample is in half."""


class LevelNetworks(nn.Module):
    """One network with a hidden layer for each level, shared over the columns, in one product.

    What it is given should be layer-normalised, so that it stays in range over any number of
    iterations.
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

    def forward(self, levels: Float[Tensor, "K B P d"]) -> Float[Tensor, "K B P d"]:
        hidden = torch.baddbmm(self.first_bias, levels.flatten(1, 2), self.first)
        made = torch.baddbmm(self.second_bias, nn.functional.gelu(hidden), self.second)
        return made.view_as(levels)


class Surroundings(nn.Module):
    """What the bottom-up nets receive of the columns around: of each number of a level its mean
    over them and its slope in every direction of space, each times a weight of its own."""

    def __init__(self, levels: int, width: int, coordinates: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(1 + coordinates, levels, 1, 1, width) / 2)

    def forward(
        self, levels: Float[Tensor, "K B P d"], filters: Float[Tensor, "F B P P"]
    ) -> Float[Tensor, "K B P d"]:
        """``filters`` are those of :func:`neighbour_filters`."""
        parts = zip(filters, self.weights, strict=True)
        return torch.stack([weight * (each @ levels) for each, weight in parts]).sum(dim=0)


def neighbour_filters(
    centroids: Float[Tensor, "B P T"], active: Bool[Tensor, "B P"], reach: float
) -> Float[Tensor, "F B P P"]:
    """The mean over the other columns within ``reach``, and for every axis the mean weighted by the
    way to them along it, in units of ``reach``; zeros where there is none. ``F`` is ``1 + T``."""
    alone = torch.eye(active.shape[1], dtype=torch.bool, device=active.device)
    others = near(centroids, active, reach) & ~alone
    mean = others / others.sum(dim=2, keepdim=True).clamp(min=1)
    centroids = centroids.masked_fill(~active[..., None], 0.0)
    ways = (centroids[:, None] - centroids[:, :, None]) / reach  # (B, P, P, T)
    return torch.cat([mean[None], mean * ways.permute(3, 0, 1, 2)])


def sinusoids(
    centroids: Float[Tensor, "B P T"], active: Bool[Tensor, "B P"], frequencies: int
) -> Float[Tensor, "B P F"]:
    """Sines and cosines of every coordinate, each wave half as long as the one before (Vaswani et
    al. 2017, "Attention is all you need"). ``F`` is ``2 * T * frequencies``."""
    rates = 2 * math.pi / LONGEST * 2.0 ** torch.arange(frequencies, device=centroids.device)
    angles = (centroids.masked_fill(~active[..., None], 0.0)[..., None] * rates).flatten(2)
    return torch.cat([angles.sin(), angles.cos()], dim=2).to(centroids.dtype)


def similarity_attention(
    levels: Float[Tensor, "L B P d"],
    allowed: Bool[Tensor, "#B #P P"] | None,
    sharpness: float,
    agreement_decay: float = 0.0,
) -> Float[Tensor, "L B P d"]:
    """Attention by similarity of every level of every column to the same level of the others
    (Hinton 2021, "How to represent part-whole hierarchies in a neural network").

    The values of a level are the levels themselves, ``softmax(S_l) X_l`` with
    ``S_l = sharpness * sum_k decay^k X_{l+k} X_{l+k}^T``: columns that agree further up are part
    of the same whole, so they attend more to one another. Without decay, k = 0 alone counts.

    Args:
        levels: anything finite where there is no column; it has no weight.
        allowed: True <--> the column (second axis) may attend to this one (last axis); None: all
            may.
    """
    mask = None if allowed is None else allowed[None]
    if not agreement_decay:
        return attend(levels, levels, levels, mask, scale=sharpness)
    agreements = list(sharpness * (levels @ levels.mT))
    for level in reversed(range(len(levels) - 1)):
        agreements[level] = agreements[level] + agreement_decay * agreements[level + 1]
    scores = torch.stack(agreements)  # (L, B, P, P)
    if mask is None:
        return scores.softmax(dim=-1) @ levels
    attended = scores.masked_fill(~mask, NEVER).softmax(dim=-1) @ levels
    return attended.masked_fill(~mask.any(-1, keepdim=True), 0.0)


def near(
    centroids: Float[Tensor, "B P T"], active: Bool[Tensor, "B P"], radius: float
) -> Bool[Tensor, "B P P"]:
    """True <--> both are active, and their centroids lie within ``radius`` of each other."""
    both = active[:, :, None] & active[:, None, :]
    distances = (centroids[:, :, None] - centroids[:, None]).square().sum(-1)
    return both & (distances <= radius**2)  # what is not a number is not near
