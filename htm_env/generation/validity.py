"""Validity of token sets: agreement with the rules that made the data.

All tolerances are shares. Real samples, which obey exactly, are always valid: where the numbers of
a geometry are so small that float32 coordinates round them away, what rounding does is forgiven.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import networkx
import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.spatial import KDTree

from htm_env.datasets import CrossesDataset, CrossesGeometry, Dataset, TreesDataset, TreesGeometry
from htm_env.generation.search import ROUNDING, find_trees, forests

TOLERANCE = 0.1
PLAUSIBLE = (1.0, 99.0)
"""Percentiles of the training strokes' lengths between which a length is plausible."""
NEAR = 95.0
"""Percentile of the training strokes' distances to each other within which a stroke is plausible.
"""


class Validity(NamedTuple):
    """The checks of every sample; True <--> it holds."""

    valid: Bool[np.ndarray, "B"]
    token_count: Bool[np.ndarray, "B"]
    """The number of tokens is one that the data can have; a condition of ``valid``."""
    undecided: Bool[np.ndarray, "B"]
    """The search for a valid reading gave up, and the sample counts as not valid."""
    valid_with_angles: Bool[np.ndarray, "B"]
    """Crosses: valid with pairs that meet at angles of the data as well, which ``valid`` does not
    ask; a segment that lies on its partner is not. Trees: ``valid``, which checks all angles."""


def check_validity(
    dataset: Dataset,
    tokens: Float[np.ndarray, "B P T"],
    present: Bool[np.ndarray, "B P"],
    tolerance: float = TOLERANCE,
) -> Validity | None:
    """Validity of samples (raw units) under the dataset's geometry; None for data
    without such rules. See :func:`is_crosses` and :func:`is_trees`.

    Raises ``ValueError`` for a tolerance outside [0, 1).
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}; expected a share of at least 0 and below 1")
    rule = _RULES.get(type(dataset))
    if rule is None:
        return None
    found = [
        rule(sample[here].astype(np.float64), dataset.geometry, tolerance)  # type: ignore[attr-defined]
        for sample, here in zip(tokens, present, strict=True)
    ]
    return Validity(*np.array(found, dtype=bool).reshape(-1, 4).T)


def plausible_lengths(
    dataset: Dataset, tokens: Float[np.ndarray, "B P T"], present: Bool[np.ndarray, "B P"]
) -> float | None:
    """The share of all strokes (raw units) that are as long as 98 % of the training split's: from
    the 1st to the 99th percentile of their lengths. About 0.98 for real ones.

    None for tokens that are no strokes, and where there are none.
    """
    if dataset.kind != "strokes" or not present.any():
        return None
    low, high = np.percentile(_stroke_lengths(dataset.training_tokens()), PLAUSIBLE)
    lengths = _stroke_lengths(tokens[present])
    return float(((lengths >= low) & (lengths <= high)).mean())


def plausible_strokes(
    dataset: Dataset, tokens: Float[np.ndarray, "B P T"], present: Bool[np.ndarray, "B P"]
) -> float | None:
    """The share of all strokes (raw units) that are near one of the training split: as near as 95 %
    of its own strokes are to another one, in units of the error. About 0.95 for real ones.

    None as :func:`plausible_lengths`, which independent Gaussian tokens pass as well as real ones;
    they do not pass this.
    """
    if dataset.kind != "strokes" or not present.any():
        return None
    training, std = dataset.training_tokens(), dataset.std.numpy()
    tree = KDTree(training / std)
    nearest_other = tree.query(training / std, k=2)[0][:, 1]
    nearest = tree.query(tokens[present] / std)[0]
    return float((nearest <= np.percentile(nearest_other, NEAR)).mean())


def _stroke_lengths(strokes: Float[np.ndarray, "N T"]) -> Float64[np.ndarray, "N"]:
    points = strokes.astype(np.float64).reshape(len(strokes), -1, 2)
    lengths: np.ndarray = np.linalg.norm(np.diff(points, axis=1), axis=2).sum(axis=1)
    return lengths


_Found = tuple[bool, bool, bool, bool]
"""The fields of :class:`Validity`, of one sample."""


def is_crosses(
    segments: Float64[np.ndarray, "N 4"], geometry: CrossesGeometry, tolerance: float
) -> _Found:
    """True <--> segments pair up into crosses, every segment in one of them.

    The midpoints of a pair are at most ``tolerance`` of the data's segment length apart, every
    segment's length is within ``tolerance`` of it, and there are as many crosses as the data can
    have. Which segments are a pair is found by matching, so valid means that *some* pairing is.
    Valid with angles: some pairing of which also meets at angles in the data's range, widened by
    ``tolerance`` of its smaller end on both sides.
    """
    count = len(segments) in {2 * number for number in geometry.num_crosses}
    slack = ROUNDING * geometry.image_size
    allowed = tolerance * geometry.segment_length + slack
    ends = segments.reshape(-1, 2, 2)
    lengths = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
    if not count or not (np.abs(lengths - geometry.segment_length) <= allowed).all():
        return False, count, False, False
    middles = ends.mean(axis=1)
    apart = np.linalg.norm(middles[:, None] - middles[None], axis=2)
    directions = np.degrees(np.arctan2(*(ends[:, 0] - ends[:, 1]).T[::-1]))
    between = (directions[:, None] - directions[None]) % 180.0
    low, high = geometry.angle_range
    # The range as it is, or as seen from the other segment of the pair.
    margin = tolerance * low + np.degrees(slack / geometry.segment_length)
    crossing = ((between >= low - margin) & (between <= high + margin)) | (
        (between >= 180 - high - margin) & (between <= 180 - low + margin)
    )
    valid = _pairs_up(apart <= allowed)
    return valid, count, False, valid and _pairs_up((apart <= allowed) & crossing)


def _pairs_up(fits: Bool[np.ndarray, "N N"]) -> bool:
    """True <--> all can be paired so that every pair fits."""
    graph: networkx.Graph = networkx.Graph()
    pairs = itertools.combinations(range(len(fits)), 2)
    graph.add_edges_from((one, two) for one, two in pairs if fits[one, two])
    return 2 * len(networkx.max_weight_matching(graph, maxcardinality=True)) == len(fits)


def is_trees(
    points: Float64[np.ndarray, "N 2"], geometry: TreesGeometry, tolerance: float
) -> _Found:
    """True <--> points are the nodes of complete binary trees of the data's heights and number.

    Every parent-child distance is within ``tolerance`` of the geometry's for that level. Every
    direction from a parent to its child is within ``tolerance`` of the *separation angle* (default:
    within 4.5 of 45 degrees) of the direction that the geometry gives it, seen from the direction
    in which the parent itself lies; of the root, whose heading is free, the angle between its two
    children is within the same of the separation angle. Angle jitter of the data is allowed for.
    Which point is which node is searched for, so valid means that *some* reading is.
    """
    count = any(forests(len(points), geometry.heights, geometry.num_trees))
    if not count or not np.isfinite(points).all():
        return False, count, False, False
    found = find_trees(points, geometry, tolerance)
    valid = found.trees is not None
    return valid, count, found.gave_up, valid


_RULES: dict[type[Dataset], Callable[[Any, Any, float], _Found]] = {
    CrossesDataset: is_crosses,
    TreesDataset: is_trees,
}
