"""Distances between lines: of the points, segments and strokes that tokens stand for."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def polyline_distances(lines: Float[Tensor, "B P K C"]) -> Float[Tensor, "B P P"]:
    """The least distance between any two of the polylines of a sample, exact: points in any space,
    lines of two points or more in the plane, where those that cross are at 0.

    Of two pieces that do not cross, an end of one is nearest to the other.
    """
    pieces = max(1, lines.shape[2] - 1)
    starts, ends = lines[:, :, :pieces], lines[:, :, -pieces:]
    along = (ends - starts)[:, None, :, None]  # (B, 1, P, 1, K - 1, C)
    to_corner = lines[:, :, None, :, None] - starts[:, None, :, None]  # (B, P, P, K, K - 1, C)
    length = along.square().sum(-1).clamp(min=1e-300)
    share = ((to_corner * along).sum(-1) / length).clamp(0, 1)
    squared = (to_corner - share[..., None] * along).square().sum(-1).amin(dim=(3, 4))  # (B, P, P)
    distances = squared.minimum(squared.mT).sqrt()
    if lines.shape[2] > 1:
        side = along[..., 0] * to_corner[..., 1] - along[..., 1] * to_corner[..., 0]
        # (B, P, P, K - 1, K - 1): the ends of a piece of the first lie on two sides of the second's
        parted = side[:, :, :, 1:] * side[:, :, :, :-1] < 0
        crossing = (parted & parted.transpose(1, 2).mT).any(-1).any(-1)
        distances = distances.masked_fill(crossing, 0.0)
    return distances
