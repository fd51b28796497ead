"""The order within each pair of a given tree: as it is, random, sorted by coordinates, or along a
Hilbert curve."""

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
    return turned(merges, _coins(merges, generator))


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
    pairs = pairs_of_centroids(merges, batch, autoencoder)
    comes = compare(pairs[:, :, 0], pairs[:, :, 1])
    return turned(merges, torch.where(comes == 0, _coins(merges, generator), comes > 0))


def hilbert_order(
    merges: Int64[Tensor, "B M 2"],
    batch: TokenBatch,
    autoencoder: TreeEncoder,
    generator: torch.Generator,
) -> Int64[Tensor, "B M 2"]:
    """The child first whose centroid comes first along a Hilbert curve through the standardised
    coordinates; in sorted order where both are in one cell of the curve.

    Sorted order goes by one coordinate and hardly minds the others, so that near neighbours are far
    apart in it, the more so the more coordinates there are (arXiv:2605.11008).
    """
    pairs = pairs_of_centroids(merges, batch, autoencoder)
    index = hilbert_index(pairs)  # (B, M, 2)
    comes = (index[..., 0] - index[..., 1]).sign()
    comes = torch.where(comes == 0, compare(pairs[:, :, 0], pairs[:, :, 1]), comes)
    return turned(merges, torch.where(comes == 0, _coins(merges, generator), comes > 0))


def pairs_of_centroids(
    merges: Int64[Tensor, "B M 2"], batch: TokenBatch, autoencoder: TreeEncoder
) -> Float[Tensor, "B M 2 T"]:
    """The centroids of both children of every merge, standardised; anything finite in padding."""
    centroids = node_centroids(merges, batch, autoencoder)
    rows = torch.arange(len(merges), device=merges.device)[:, None, None]
    return centroids[rows, merges.clamp(min=0)]


INDEX_BITS = 62
"""Bits of an index along a Hilbert curve, at most."""
LAST = 2**INDEX_BITS
"""An index behind all others."""
REACH = 4.0
"""Half the side of the cube that the curve fills, in standard deviations."""


def hilbert_index(standardised: Float[Tensor, "*rows T"]) -> Int64[Tensor, "*rows"]:
    """The place of each point along a Hilbert curve that fills a cube around the mean.

    All coordinates have the same number of bits, ``62 // T``; of more than 62 coordinates the first
    62 have one each, and the others none. What lies outside of the cube counts as on its side.
    """
    dims = min(standardised.shape[-1], INDEX_BITS)
    bits = INDEX_BITS // dims
    # TIE: a centroid in the middle, up to rounding, is on the same side of it in every sample.
    shares = ((standardised[..., :dims] + TIE + REACH) / (2 * REACH)).clamp(0, 1).nan_to_num()
    return curve_index((shares * 2**bits).long().clamp(max=2**bits - 1), bits)


def curve_index(cells: Int64[Tensor, "*rows K"], bits: int) -> Int64[Tensor, "*rows"]:
    """The place along the Hilbert curve of cells ``0 .. 2**bits - 1`` in ``K`` dimensions.

    After Skilling (2004), "Programming the Hilbert curve": from the highest bits down every cube
    is turned back to the first one's orientation, in which the curve is a Gray code.
    """
    axes = list(cells.unbind(-1))
    for level in range(bits - 1, 0, -1):
        below = (1 << level) - 1
        for axis in range(len(axes)):
            # Where the bit is set the first axis is mirrored below it, else the two are exchanged.
            mirrored = (axes[axis] >> level) & 1 == 1
            change = ((axes[0] ^ axes[axis]) & below).masked_fill(mirrored, 0)
            axes[0] = axes[0] ^ change.masked_fill(mirrored, below)
            axes[axis] = axes[axis] ^ change
    for axis in range(1, len(axes)):
        axes[axis] = axes[axis] ^ axes[axis - 1]
    turned = torch.zeros_like(axes[0])
    for level in range(1, bits):
        turned = turned ^ (((axes[-1] >> level) & 1) * ((1 << level) - 1))
    index = torch.zeros_like(turned)
    for level in range(bits - 1, -1, -1):
        for values in axes:
            index = (index << 1) | (((values ^ turned) >> level) & 1)
    return index


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


def turned(merges: Int64[Tensor, "B M 2"], turn: Bool[Tensor, "B M"]) -> Int64[Tensor, "B M 2"]:
    """The pairs, turned where this is True."""
    return torch.where(turn[..., None], merges.flip(-1), merges)
