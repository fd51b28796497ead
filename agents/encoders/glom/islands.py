"""Islands of agreement: columns that are nearly equal at a level, read as a parse tree."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from agents.fixed.linkage import agglomerate
from htm_env.checks import at_least

FAR = 1e6
"""Added for one level further up: far above any distance relative to the mean one."""


class Islands(NamedTuple):
    """The islands of every level, and the tree that they give."""

    labels: Int64[Tensor, "B L P"]
    """The island that each column is on, numbered from 0 in the order of their first slots; -1
    where no column is."""
    sizes: Int64[Tensor, "B L P"]
    """Columns on each island, by its number; 0 where there are fewer islands."""
    merges: Int64[Tensor, "B M 2"]
    """See :func:`island_merges`."""

    @property
    def counts(self) -> Int64[Tensor, "B L"]:
        """Islands of each level."""
        return (self.sizes > 0).sum(dim=2)


def find_islands(
    columns: Float[Tensor, "B P L d"], present: Bool[Tensor, "B P"], tolerance: float
) -> Islands:
    """The islands of agreement: at every level, columns joined by steps from one to another that is
    nearly equal there, as :func:`island_merges` has it.

    ``present``: True <--> a token is here.

    Raises ``ValueError`` for columns that are not finite where a token is, for shapes that do not
    fit, and for a tolerance below 0.
    """
    at_least(0, tolerance=tolerance)
    if columns.ndim != 4 or present.shape != columns.shape[:2] or present.dtype != torch.bool:
        raise ValueError(
            f"columns have shape {tuple(columns.shape)} and present {tuple(present.shape)} of "
            f"{present.dtype}; expected (B, P, L, d) and (B, P) of truth values"
        )
    if not columns[present].isfinite().all():
        raise ValueError("columns hold numbers that are not finite; expected finite ones")
    pairs = (present[:, :, None] & present[:, None])[:, None]
    distances = relative_distances(columns, present)
    joined = (distances <= tolerance) & pairs  # (B, L, P, P)
    for _ in range((present.shape[1] - 1).bit_length()):  # steps of twice the length
        joined = (joined.float() @ joined.float()) > 0
    first = joined.int().argmax(dim=3)  # the first slot of a column's island
    begins = present[:, None] & (first == torch.arange(first.shape[2], device=first.device))
    labels = (begins.cumsum(dim=2) - 1).gather(2, first).masked_fill(~present[:, None], -1)
    numbers = torch.arange(labels.shape[2], device=labels.device)
    sizes = (labels[..., None] == numbers).sum(dim=2)
    return Islands(labels, sizes, _merges(distances, present, tolerance))


def island_merges(
    columns: Float[Tensor, "B P L d"], present: Bool[Tensor, "B P"], tolerance: float
) -> Int64[Tensor, "B M 2"]:
    """The parse tree of the columns, one complete tree a sample, in node ids; -1 pads.

    Two columns are nearly equal at a level when their squared distance there is at most
    ``tolerance`` times the mean over all pairs of the sample. From the bottom level to the top, the
    islands of a level, nearest first, are merged into one node each before the next level joins
    them; two islands are as far apart as their columns are on average. What no level joins, the
    distances at the top do. The pairs are in no order that means anything. (Islands of agreement as
    parse trees: Hinton 2021.)

    ``present``: True <--> a token is here. The leaves are the columns that are, numbered from 0 in
    the order of their slots.
    """
    return _merges(relative_distances(columns, present), present, tolerance)


def _merges(
    distances: Float64[Tensor, "B L P P"], present: Bool[Tensor, "B P"], tolerance: float
) -> Int64[Tensor, "B M 2"]:
    """The tree of these distances, which are used up."""
    rows = torch.arange(len(distances), device=distances.device)
    counts = present.double()

    def joined(current: Tensor, first: Tensor, second: Tensor) -> Tensor:
        share = counts[rows, first] / (counts[rows, first] + counts[rows, second])
        to_first, to_second = distances[rows, :, first], distances[rows, :, second]  # (B, L, P)
        new = torch.lerp(to_second, to_first, share[:, None, None])
        distances[rows, :, first], distances[rows, :, :, first] = new, new
        counts[rows, first] += counts[rows, second]
        return _ranked(new, tolerance)

    return agglomerate(_ranked(distances, tolerance), present, joined)


def relative_distances(
    columns: Float[Tensor, "B P L d"], present: Bool[Tensor, "B P"]
) -> Float[Tensor, "B L P P"]:
    """Squared distances at every level, as shares of their mean over the sample's pairs.

    0 where all columns of a sample are equal. In double precision.
    """
    columns = columns.double().masked_fill(~present[..., None, None], 0.0)
    levels = columns.transpose(1, 2)  # (B, L, P, d)
    # Not by products, which would leave equal columns a little apart.
    exact = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(levels, levels, compute_mode=exact).square()
    pairs = present[:, None, :, None] & present[:, None, None, :]
    distances = distances.masked_fill(~pairs, 0.0)
    count = present.sum(dim=1)
    number = (count * (count - 1)).clamp(min=1)[:, None]
    mean = distances.sum(dim=(2, 3)) / number
    return distances / mean.clamp(min=torch.finfo(mean.dtype).tiny)[..., None, None]


def _ranked(distances: Float[Tensor, "B L *pairs"], tolerance: float) -> Float[Tensor, "B *pairs"]:
    """Rank pairs by how soon they merge: by the first level where each is nearly equal, then its
    distance there; behind them all the pairs that no level calls so, by distance at the top."""
    near = distances <= tolerance
    level = torch.where(near.any(dim=1), near.int().argmax(dim=1), distances.shape[1])
    there = distances.gather(1, level.clamp(max=distances.shape[1] - 1)[:, None]).squeeze(1)
    return FAR * level + there
