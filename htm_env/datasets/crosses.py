"""``CrossesDataset``: segments that cross in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt64

from htm_env import checks
from htm_env.checks import Angles, Choices, Real
from htm_env.datasets.base import (
    LARGEST_SIZE,
    GeneratedArrays,
    GeneratedDataset,
    Shuffle,
    pair_merges,
    uniforms,
)

_MAX_CROSSES = 1024


@dataclass(frozen=True)
class CrossesGeometry:
    """Geometry of the crosses. An int or a list is taken as a tuple of choices too."""

    num_crosses: Choices = (1, 2, 3)
    """Crosses of a sample, drawn for each sample; a cross is two tokens."""
    segment_length: Real = 40.0
    """Whole length of a segment."""
    angle_range: Angles = (20.0, 160.0)
    """Degrees between the two segments of a cross, least and most, within (0, 180)."""
    image_size: Real = 128.0
    """Side of the square image that the crosses' centres are drawn in."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` naming the first parameter that is out of range."""
        num_crosses = checks.whole_numbers("num_crosses", self.num_crosses, 1, _MAX_CROSSES)
        object.__setattr__(self, "num_crosses", num_crosses)
        for name in ("segment_length", "image_size"):
            object.__setattr__(self, name, checks.positive(name, getattr(self, name), LARGEST_SIZE))
        angles = self.angle_range
        if not isinstance(angles, Sequence) or isinstance(angles, str) or len(angles) != 2:
            raise ValueError(f"angle_range is {angles!r}: expected two angles in degrees")
        low, high = (checks.number("angle_range", angle, 0.0, 180.0) for angle in angles)
        if not 0.0 < low <= high < 180.0:
            raise ValueError(f"angle_range is {angles!r}: expected 0 < least <= most < 180")
        object.__setattr__(self, "angle_range", (low, high))


class CrossesDataset(GeneratedDataset):
    """Two segments ``(x1, y1, x2, y2)`` of equal length with one midpoint make a cross.

    In generator order cross ``k`` is the tokens ``2 k`` and ``2 k + 1``. The canonical merges make
    the crosses one after another, each from its first and its second segment, and then join them in
    a balanced way. The clades are the crosses.
    """

    name = "HTM-Crosses-v0"
    geometry_class = CrossesGeometry
    kind = "segments"
    token_dim = 4

    def __init__(self, split: str = "train", geometry: CrossesGeometry | None = None) -> None:
        super().__init__(split)
        self.geometry = CrossesGeometry() if geometry is None else geometry
        self._crosses = max(self.geometry.num_crosses)
        self.max_tokens = 2 * self._crosses
        self._clade_places = np.repeat(np.eye(self._crosses, dtype=bool), 2, axis=1)  # (C, P)

    def generate(self, seeds: UInt64[np.ndarray, "B"]) -> GeneratedArrays:
        crosses, places = self._crosses, self.max_tokens
        drawn = uniforms(seeds, 1 + 4 * crosses + places)
        counts, centre_x, centre_y, first, between, order = np.split(
            drawn, np.cumsum([1, crosses, crosses, crosses, crosses]), axis=1
        )

        choices = np.array(self.geometry.num_crosses, dtype=np.int64)
        num_crosses = choices[(counts[:, 0] * len(choices)).astype(np.int64)]  # (B,)
        num_tokens = 2 * num_crosses
        shuffle = Shuffle.draw(order, np.arange(places) < num_tokens[:, None])
        segments = self._segments(np.stack([centre_x, centre_y], axis=2), first, between)

        exists = np.arange(crosses) < num_crosses[:, None]  # (B, crosses)
        merges = pair_merges(shuffle.slot_of_place, exists, num_tokens)
        clades = shuffle.clades(self._clade_places, exists)
        return shuffle.tokens(segments), shuffle.present, clades, merges

    def _segments(
        self,
        centres: Float64[np.ndarray, "B K 2"],
        first: Float64[np.ndarray, "B K"],
        between: Float64[np.ndarray, "B K"],
    ) -> Float64[np.ndarray, "B P 4"]:
        """The places' end points, from uniform numbers in [0, 1)."""
        low, high = np.deg2rad(self.geometry.angle_range)
        directions = 2 * np.pi * first
        angles = np.stack([directions, directions + low + (high - low) * between], axis=2)
        half = self.geometry.segment_length / 2 * np.stack([np.cos(angles), np.sin(angles)], axis=3)
        middle = self.geometry.image_size * centres[:, :, None]  # (B, K, 1, 2)
        ends = np.concatenate([middle + half, middle - half], axis=3)  # (B, K, 2, 4)
        return ends.reshape(len(centres), -1, 4)
