"""``WholesDataset``: equal parts, of which only their neighbours say what whole they belong to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt64

from htm_env import checks
from htm_env.checks import Choices, Real
from htm_env.datasets.base import (
    GeneratedDataset,
    Shuffle,
    empty_merges,
    uniforms,
    write_balanced_joins,
)

_MOST = 256


@dataclass(frozen=True)
class WholesGeometry:
    """What the wholes look like. An int or a list stands for a tuple of choices too."""

    num_wholes: Choices = (3,)
    """Wholes of a sample, drawn for each sample."""
    num_parts: int = 5
    """Points of a whole."""
    spacing: Real = 16.0
    """Between neighbours within a whole."""
    gap: Real = 24.0
    """Between neighbouring wholes. Above the spacing, or nothing tells a row from a column; far
    below a whole's length, or nearness alone does."""
    jitter: Real = 1.6
    """How far a point is off in each coordinate at most."""
    image_size: Real = 128.0
    """Side of the square image that a sample's centre is drawn in."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` naming the first parameter that is out of range."""
        num_wholes = checks.whole_numbers("num_wholes", self.num_wholes, 1, _MOST)
        object.__setattr__(self, "num_wholes", num_wholes)
        num_parts = checks.whole_number("num_parts", self.num_parts, 2, _MOST)
        object.__setattr__(self, "num_parts", num_parts)
        for name in ("spacing", "gap", "image_size"):
            object.__setattr__(self, name, checks.positive(name, getattr(self, name)))
        if self.gap <= self.spacing:
            raise ValueError(f"gap is {self.gap}: expected more than the spacing, {self.spacing}")
        object.__setattr__(self, "jitter", checks.number("jitter", self.jitter, 0.0))


class WholesDataset(GeneratedDataset):
    """Points ``(x, y)`` in rows, or in columns: the wholes of a sample are parallel lines.

    All points look the same, and a sample is as likely of rows as of columns. Nothing but its
    neighbours says which of the two a point is part of: those of its own line are a little nearer
    than the next line. A function of one point cannot know it, and clustering by distances alone is
    misled, since both ends of a line are farther from each other than from the lines beside it.
    (Grouping by proximity, Wertheimer 1923; parts whose whole is ambiguous without their neighbours
    are what GLOM is meant for: Culp, Sabour and Hinton 2022, "Testing GLOM's ability to infer
    wholes from ambiguous parts".)

    In generator order whole ``k`` is the tokens ``k * num_parts`` and on, along its line, which is
    moved along itself by up to half a spacing either way. The canonical merges make the wholes one
    after another, and then join them, each in a balanced way. The clades are the wholes.
    """

    name = "wholes"
    kind = "points"
    token_dim = 2

    def __init__(self, split: str = "train", geometry: WholesGeometry | None = None) -> None:
        """Raises ``ValueError`` where ``split`` is not a split's name."""
        super().__init__(split)
        self.geometry = WholesGeometry() if geometry is None else geometry
        self._wholes = max(self.geometry.num_wholes)
        self.max_tokens = self._wholes * self.geometry.num_parts
        places = np.eye(self._wholes, dtype=bool)
        self._clade_places = np.repeat(places, self.geometry.num_parts, axis=1)  # (C, P)

    def generate(
        self, seeds: UInt64[np.ndarray, "B"]
    ) -> tuple[
        Float32[np.ndarray, "B P T"],
        Bool[np.ndarray, "B P"],
        Bool[np.ndarray, "B C P"],
        Int64[np.ndarray, "B M 2"],
    ]:
        wholes, places = self._wholes, self.max_tokens
        drawn = uniforms(seeds, 4 + wholes + 3 * places)
        widths = [1, 1, 2, wholes, 2 * places]
        counts, kinds, centres, moved, noise, order = np.split(drawn, np.cumsum(widths), axis=1)

        choices = np.array(self.geometry.num_wholes, dtype=np.int64)
        num_wholes = choices[(counts[:, 0] * len(choices)).astype(np.int64)]  # (B,)
        num_tokens = num_wholes * self.geometry.num_parts
        shuffle = Shuffle.draw(order, np.arange(places) < num_tokens[:, None])
        points = self._lines(num_wholes, moved)
        points = np.where(kinds[:, :, None] < 0.5, points, points[:, :, ::-1])  # rows or columns
        points = points + self.geometry.image_size * centres[:, None]
        points = points + self.geometry.jitter * (2 * noise.reshape(points.shape) - 1)

        exists = np.arange(wholes) < num_wholes[:, None]  # (B, wholes)
        merges = self._merges(shuffle.slot_of_place, exists, num_tokens)
        clades = shuffle.clades(self._clade_places, exists)
        return shuffle.tokens(points), shuffle.present, clades, merges

    def _lines(
        self, num_wholes: Int64[np.ndarray, "B"], moved: Float64[np.ndarray, "B K"]
    ) -> Float64[np.ndarray, "B P 2"]:
        """The places' points as rows about the origin, moved by uniform numbers in [0, 1)."""
        geometry = self.geometry
        part = np.arange(geometry.num_parts) - (geometry.num_parts - 1) / 2
        along = geometry.spacing * (part + moved[:, :, None] - 0.5)  # (B, K, parts)
        line = np.arange(self._wholes) - (num_wholes[:, None] - 1) / 2
        across = np.broadcast_to(geometry.gap * line[:, :, None], along.shape)
        return np.stack([along, across], axis=3).reshape(len(moved), -1, 2)

    def _merges(
        self,
        slots: Int64[np.ndarray, "B P"],
        exists: Bool[np.ndarray, "B K"],
        num_tokens: Int64[np.ndarray, "B"],
    ) -> Int64[np.ndarray, "B M 2"]:
        """The canonical merges, in node ids."""
        parts = self.geometry.num_parts
        merges = empty_merges(len(slots), self.max_tokens)
        made = np.zeros_like(num_tokens)
        roots = np.empty(exists.shape, dtype=np.int64)
        for whole in range(self._wholes):
            inside = slots[:, whole * parts : (whole + 1) * parts]
            count = np.where(exists[:, whole], parts, 0)
            write_balanced_joins(merges, inside, count, num_tokens, made)
            made = made + np.where(exists[:, whole], parts - 1, 0)
            roots[:, whole] = num_tokens + made - 1
        write_balanced_joins(merges, roots, exists.sum(axis=1), num_tokens, made)
        return merges
