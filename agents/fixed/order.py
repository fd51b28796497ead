"""The order within each pair of a given tree: as it is, random, or sorted by coordinates."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.autoencoder import TreeEncoder
from htm_env.types import TokenBatch

TIE = 1e-5
"""Centroids nearer than this in a coordinate, in its standard deviations, differ by rounding."""


def given_order(
    merges: Int64[Tensor, "B M 2"],
    batch: TokenBatch,
    autoencoder: TreeEncoder,
    generator: torch.Generator,
) -> Int64[Tensor, "B M 2"]:
    """The pairs as they are: the data's canonical order, or one that the policy chose itself."""
    return merges


def random_order(
    merges: Int64[Tensor, "B M 2"],
    batch: TokenBatch,
    autoencoder: TreeEncoder,
    generator: torch.Generator,
) -> Int64[Tensor, "B M 2"]:
    """Each pair turned with probability 1/2."""
    return _turned(merges, _coins(merges, generator))


def sorted_order(
    merges: Int64[Tensor, "B M 2"],
    batch: TokenBatch,
    autoencoder: TreeEncoder,
    generator: torch.Generator,
) -> Int64[Tensor, "B M 2"]:
    """The child with the smaller centroid first, by its first coordinate, then the next.

    Where all coordinates tie, a coin decides: the order that the merges came in may tell more than
    the coordinates do.
    """
    centroids = node_centroids(merges, batch, autoencoder)
    rows = torch.arange(len(merges), device=merges.device)[:, None, None]
    pairs = centroids[rows, merges.clamp(min=0)]  # (B, M, 2, T)
    comes = compare(pairs[:, :, 0], pairs[:, :, 1])
    return _turned(merges, torch.where(comes == 0, _coins(merges, generator), comes > 0))


def compare(
    first: Float[Tensor, "*pairs T"], second: Float[Tensor, "*pairs T"]
) -> Float[Tensor, "*pairs"]:
    """-1 where ``first`` comes first in sorted order, 1 where ``second`` does, 0 where all tie."""
    difference = first - second
    differs = difference.abs() > TIE
    deciding = differs.int().argmax(dim=-1, keepdim=True)  # the first coordinate that differs
    return difference.gather(-1, deciding).squeeze(-1).sign() * differs.any(-1)


def node_centroids(
    merges: Int64[Tensor, "B M 2"], batch: TokenBatch, autoencoder: TreeEncoder
) -> Float[Tensor, "B N T"]:
    """The mean of the standardised coordinates of every node's tokens; zeros where none is."""
    samples, steps, _ = merges.shape
    standardised = autoencoder.standardise(batch.tokens).double()
    counted = torch.cat([standardised, torch.ones_like(standardised[..., :1])], dim=-1)
    counted = counted.masked_fill(~batch.present[..., None], 0.0)  # (B, P, T + 1): the last counts
    sums = torch.cat([counted, torch.zeros_like(counted[:, :-1])], dim=1)  # (B, N, T + 1)
    rows, num_leaves = torch.arange(samples, device=merges.device), batch.num_tokens
    for step in range(steps):
        first, second = merges[:, step].unbind(-1)
        real = (first >= 0)[:, None]
        parent = sums[rows, first.clamp(min=0)] + sums[rows, second.clamp(min=0)]
        sums[rows, num_leaves + step] = parent.where(real, 0.0)
    return sums[..., :-1] / sums[..., -1:].clamp(min=1)


def _coins(merges: Tensor, generator: torch.Generator) -> Bool[Tensor, "B M"]:
    drawn = torch.rand(merges.shape[:2], generator=generator, device=generator.device)
    return (drawn < 0.5).to(merges.device)


def _turned(merges: Int64[Tensor, "B M 2"], turn: Bool[Tensor, "B M"]) -> Int64[Tensor, "B M 2"]:
    return torch.where(turn[..., None], merges.flip(-1), merges)
