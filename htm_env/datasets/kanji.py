"""``KanjiDataset``: characters of KanjiVG as sets of strokes, with the groups that experts made."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from htm_env import checks
from htm_env.checks import Choices, Whole
from htm_env.datasets.base import (
    SPLITS,
    FiniteDataset,
    RowFacts,
    check_keys,
    check_split,
    empty_merges,
    mix,
    moved_merges,
)
from htm_env.datasets.kanjivg import Characters, load_characters
from htm_env.types import NONE

BOX: Final = 109.0
"""Side of the square that a character is written in."""
MOST_STROKES: Final = 30
"""Strokes of the largest character."""
MOST_POINTS: Final = 32
_CHORDS = 32
"""Straight pieces that the length of a cubic curve is measured by."""

SPLIT_RULES: Final = ("characters", "components")
TEST_COMPONENTS: Final = frozenset("女言山隹禾米石刂夕")
"""Under ``split_by="components"``: characters with one of these are the test split."""
VALIDATION_COMPONENTS: Final = frozenset("忄金王竹弓方車力")
"""And those of the others that have one of these are the validation split."""


class KanjiDataset(FiniteDataset):
    """Characters of KanjiVG (Ulrich Apel, CC BY-SA 3.0), a token a stroke.

    A token is ``(x, y)`` of ``points`` points from the stroke's start to its end, evenly spaced
    along its length, in KanjiVG's units: the character is in a box of 109 by 109. Here ``y`` grows
    *upwards*, 109 minus KanjiVG's, so that characters are upright in every picture. The direction
    of a stroke is kept, the order of writing is not: tokens are shuffled.

    The clades are the groups of 2 to ``n - 1`` strokes that the experts made. Where a component is
    given in parts, the parts are joined to one more clade, unless that crosses another one. Of the
    merges, those of a group come before those of what holds it. Groups are seldom binary: the
    parts of one (strokes and smaller groups, by their first stroke in the order of writing) are
    joined neighbour to neighbour, level by level, the one written first in front.

    Labels are the radicals; clades are labelled with the component that they are, if they are one
    that has a name, and tokens with the type of the stroke.
    """

    name = "HTM-Kanji-v0"
    kind = "strokes"
    has_hierarchy = True

    @classmethod
    def keywords(cls) -> tuple[str, ...]:
        return ("strokes", "points", "split_by")

    def __init__(
        self,
        split: str = "train",
        strokes: Choices = (2, 12),
        points: Whole = 4,
        split_by: str = "characters",
    ) -> None:
        """Reads the characters from the cache, after parsing them where it has not been done.

        Args:
            split: the split's name.
            strokes: the fewest and the most strokes of a character, from 2 to 30.
            points: points of a stroke, 2 to 32.
            split_by: ``"characters"`` puts 80, 10 and 10 % of the characters into the splits by a
                hash of their code points. ``"components"`` holds out every character that contains
                one of some components: ``TEST_COMPONENTS``, then ``VALIDATION_COMPONENTS``.

        Raises:
            ValueError: the package ``kanjivg`` is not installed (the message says how), a split
                would be empty, or an argument is out of range.
        """
        place = check_split(split)
        least, most = _range(strokes)
        checks.whole_number("points", points, 2, MOST_POINTS)
        checks.check_choice("split_by", split_by, SPLIT_RULES)
        every = _characters(least, most, points)
        split_of = every.split_by_components if split_by == "components" else every.split
        rows_of_splits = tuple(
            every.order[split_of[every.order] == index] for index in range(len(SPLITS))
        )
        for rows, own in zip(rows_of_splits, SPLITS, strict=True):
            if not len(rows):
                raise ValueError(
                    f"strokes is ({least}, {most}): no character of the {own} split has so many, "
                    "and every split needs one"
                )
        facts = RowFacts(
            name=self.name,
            classes=every.radicals,
            label_values=np.array(every.radical_names),
            row_names=every.names,
            others={"clades": every.members, "merges": every.merges},
        )
        super().__init__(split, every.values, every.lengths, rows_of_splits, facts)
        own_rows = rows_of_splits[place]
        self._members, self._merges = every.members[own_rows], every.merges[own_rows]
        self._clade_labels = every.clade_labels[own_rows]
        self._token_labels = every.token_labels[own_rows]
        self.clade_label_names = every.clade_label_names
        self.token_label_names = every.token_label_names

    def hierarchy(
        self, rows: Int64[np.ndarray, "B"], order: Int64[np.ndarray, "B P"]
    ) -> tuple[Bool[np.ndarray, "B C P"], Int64[np.ndarray, "B M 2"]]:
        clades = np.take_along_axis(self._members[rows], order[:, None], axis=2)
        return clades, moved_merges(self._merges[rows], order, self._lengths[rows])

    def clade_labels(self, keys: Int64[np.ndarray, "B"]) -> Int64[np.ndarray, "B C"]:
        check_keys(keys)
        labels: np.ndarray = self._clade_labels[keys % self.size]
        return labels

    def token_labels(self, keys: Int64[np.ndarray, "B"]) -> Int64[np.ndarray, "B P"]:
        rows, _, order = self._order(keys)
        return np.take_along_axis(self._token_labels[rows], order, axis=1)


def _range(strokes: Any) -> tuple[int, int]:
    """The fewest and the most strokes; ``ValueError`` for anything but two such numbers."""
    numbers = (
        ()
        if isinstance(strokes, str)
        else checks.whole_numbers("strokes", strokes, 2, MOST_STROKES)
    )
    if len(numbers) != 2 or numbers[0] > numbers[1]:
        raise ValueError(f"strokes is {strokes!r}: expected the fewest and the most, as in (2, 12)")
    return numbers[0], numbers[1]


class _Rows(NamedTuple):
    """All characters of a range of strokes."""

    names: list[str]
    order: Int64[np.ndarray, "N"]
    """All rows, in an order that has nothing to do with the characters."""
    values: Float32[np.ndarray, "N P T"]
    lengths: Int64[np.ndarray, "N"]
    split: Int64[np.ndarray, "N"]
    split_by_components: Int64[np.ndarray, "N"]
    members: Bool[np.ndarray, "N C P"]
    merges: Int64[np.ndarray, "N M 2"]
    radicals: Int64[np.ndarray, "N"]
    radical_names: list[str]
    clade_labels: Int64[np.ndarray, "N C"]
    clade_label_names: list[str]
    token_labels: Int64[np.ndarray, "N P"]
    token_label_names: list[str]


@lru_cache(maxsize=2)
def _characters(least: int, most: int, points: int) -> _Rows:
    """The characters of ``least`` to ``most`` strokes."""
    every = load_characters()
    chosen = np.flatnonzero((every.stroke_counts >= least) & (every.stroke_counts <= most))
    if not len(chosen):
        raise ValueError(f"strokes is ({least}, {most}): no character has so many")
    codes = every.codes[chosen]
    hashes = mix(codes.astype(np.uint64))
    radical_names, radicals = np.unique(every.radicals, return_inverse=True)
    members, merges = _trees(every, chosen, most)
    clade_label_names, clade_labels = _clade_labels(every, chosen)
    token_label_names, token_labels = _token_labels(every, chosen, most)
    return _Rows(
        names=[chr(code) for code in codes.tolist()],
        order=np.argsort(hashes),
        values=_values(every, chosen, most, points),
        lengths=every.stroke_counts[chosen],
        split=np.maximum((hashes % np.uint64(10)).astype(np.int64) - 7, 0),  # 8, 1 and 1 of 10
        split_by_components=_split_by_components(every)[chosen],
        members=members,
        merges=merges,
        radicals=radicals[chosen].astype(np.int64),
        radical_names=radical_names.tolist(),
        clade_labels=clade_labels,
        clade_label_names=clade_label_names,
        token_labels=token_labels,
        token_label_names=token_label_names,
    )


def _split_by_components(every: Characters) -> Int64[np.ndarray, "_"]:
    """The split of each character, by whether it contains a component that is held out."""
    owners = np.repeat(np.arange(len(every.codes)), every.component_counts)
    split = np.zeros(len(every.codes), dtype=np.int64)
    for index, held_out in ((1, VALIDATION_COMPONENTS), (2, TEST_COMPONENTS)):
        split[owners[np.isin(every.components, sorted(held_out))]] = index
    return split


# ---------------------------------------------------------------- tokens


def _values(
    every: Characters, chosen: Int64[np.ndarray, "N"], most: int, points: int
) -> Float32[np.ndarray, "N P T"]:
    """The tokens of the chosen characters in the order of writing, zeros behind them."""
    strokes = _of(every.stroke_counts, chosen)
    curves = _of(every.curve_counts, strokes)
    tokens = resampled(every.curves[curves].astype(np.float64), every.curve_counts[strokes], points)
    tokens[:, :, 1] = BOX - tokens[:, :, 1]
    values = np.zeros((len(chosen), most, 2 * points), dtype=np.float32)
    there = np.arange(most) < every.stroke_counts[chosen, None]
    values[there] = tokens.reshape(len(tokens), -1)
    return values


def resampled(
    curves: Float64[np.ndarray, "curves 4 2"], counts: Int64[np.ndarray, "strokes"], points: int
) -> Float64[np.ndarray, "strokes {points} 2"]:
    """Points evenly spaced along the length of every stroke, its ends included.

    ``counts`` are the cubic curves of each stroke; a length is that of 32 chords a curve.
    """
    t = np.linspace(0.0, 1.0, _CHORDS + 1)[:, None]
    bernstein = np.concatenate(
        [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1
    )
    places = bernstein @ curves  # (curves, chords + 1, 2)
    moves = places[:, 1:] - places[:, :-1]
    chords = np.hypot(moves[:, :, 0], moves[:, :, 1])
    stroke = np.repeat(np.arange(len(counts)), counts)
    steps = np.concatenate([np.zeros((len(curves), 1)), chords], axis=1)
    # The way along all strokes, one after another, with a step of 1 from each to the next.
    way = np.cumsum(steps).reshape(steps.shape) + stroke[:, None]
    last = np.cumsum(counts) - 1
    starts, ends = way[last - counts + 1, 0], way[last, -1]
    wanted = np.linspace(starts, ends, points, axis=1).ravel()
    axes = [np.interp(wanted, way.ravel(), places[:, :, axis].ravel()) for axis in (0, 1)]
    return np.stack(axes, axis=1).reshape(len(counts), points, 2)


def _of(counts: Int64[np.ndarray, "all"], chosen: Int64[np.ndarray, "N"]) -> np.ndarray:
    """The indices of everything that the chosen ones have, one after another."""
    own = counts[chosen]
    before = np.cumsum(counts)[chosen] - own
    return np.repeat(before - (np.cumsum(own) - own), own) + np.arange(own.sum())


# ---------------------------------------------------------------- groups, and labels


def _trees(
    every: Characters, chosen: Int64[np.ndarray, "N"], most: int
) -> tuple[Bool[np.ndarray, "N C P"], Int64[np.ndarray, "N M 2"]]:
    """Clades and merges of the chosen characters over their strokes in the order of writing."""
    there, groups = _of_groups(every, chosen)
    members = np.zeros((*there.shape, most), dtype=bool)
    members[there] = groups[:, None] >> np.arange(most) & 1 == 1
    merges = empty_merges(len(chosen), most)
    masks = np.split(groups, np.cumsum(every.group_counts[chosen])[:-1])
    for row, (count, own) in enumerate(
        zip(every.stroke_counts[chosen].tolist(), masks, strict=True)
    ):
        merges[row, : count - 1] = group_merges(count, tuple(own.tolist()))
    return members, merges


def _of_groups(
    every: Characters, chosen: Int64[np.ndarray, "N"]
) -> tuple[Bool[np.ndarray, "N C"], Int64[np.ndarray, "_"]]:
    """True <--> the character has so many groups; and the groups, one after another."""
    counts = every.group_counts[chosen]
    there = np.arange(counts.max(initial=0)) < counts[:, None]
    return there, every.groups[_of(every.group_counts, chosen)]


@cache
def group_merges(num_strokes: int, groups: tuple[int, ...]) -> list[tuple[int, int]]:
    """The merges of a character whose groups (bits of its strokes) are given, smaller ones first.

    What a group consists of is joined neighbour to neighbour, by the first stroke, until one node
    is left.
    """
    nodes = {1 << stroke: stroke for stroke in range(num_strokes)}  # active, by their strokes
    merges: list[tuple[int, int]] = []
    for group in (*groups, (1 << num_strokes) - 1):
        parts = sorted((own for own in nodes if own & group), key=lambda own: own & -own)
        while len(parts) > 1:
            joined = []
            for one, other in zip(parts[::2], parts[1::2], strict=False):
                merges.append((nodes.pop(one), nodes.pop(other)))
                nodes[one | other] = num_strokes + len(merges) - 1
                joined.append(one | other)
            parts = joined + (parts[-1:] if len(parts) % 2 else [])
    return merges


def _clade_labels(
    every: Characters, chosen: Int64[np.ndarray, "N"]
) -> tuple[list[str], Int64[np.ndarray, "N C"]]:
    """The names of all components, and of each clade its number among them, or -1."""
    names = np.unique(every.group_names)
    names = names[names != ""]
    own = every.group_names[_of(every.group_counts, chosen)]
    numbers = np.where(own == "", NONE, np.searchsorted(names, own))
    there, _ = _of_groups(every, chosen)
    labels = np.full(there.shape, NONE, dtype=np.int64)
    labels[there] = numbers
    return names.tolist(), labels


def _token_labels(
    every: Characters, chosen: Int64[np.ndarray, "N"], most: int
) -> tuple[list[str], Int64[np.ndarray, "N P"]]:
    """The types of all strokes, and of each token its number among them; -1 where no type is given,
    and in empty places."""
    names = np.unique(every.types)
    names = names[names != ""]
    numbers = np.where(every.types == "", NONE, np.searchsorted(names, every.types))
    labels = np.full((len(chosen), most), NONE, dtype=np.int64)
    there = np.arange(most) < every.stroke_counts[chosen, None]
    labels[there] = numbers[_of(every.stroke_counts, chosen)]
    return names.tolist(), labels
