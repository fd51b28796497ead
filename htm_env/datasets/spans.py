"""Spans: which neighbours belong together, level by level.

A span is a half-open pair ``(start, end)`` over things in a row: characters, or the spans of the
level below. The spans of a level are in order and share nothing. They may leave gaps: what is in no
span, such as the blank between two words, has no part in the levels above.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from htm_env.datasets.base import empty_merges, moved_merges, write_balanced_joins
from htm_env.types import NONE

Levels = Sequence[Int64[np.ndarray, "_ 2"]]
"""The checked spans of one row, a level each, from the finest on."""


def checked_spans(name: str, given: Any, count: int) -> Int64[np.ndarray, "S 2"]:
    """The spans of one level, over ``count`` things.

    Args:
        name: what to call the level in an error.
        given: an array (S, 2), or a list of pairs.
        count: the things in the row.

    Raises:
        ValueError: these are no pairs of whole numbers; or a span is empty, out of range, overlaps
            the one before it or precedes it (the message names the first such span).
    """
    try:
        spans = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not a list of spans (start, end) ({error})") from error
    if spans.size == 0:
        return np.zeros((0, 2), dtype=np.int64)
    if spans.ndim != 2 or spans.shape[1] != 2 or spans.dtype.kind not in "iu":
        raise ValueError(
            f"{name} has {spans.dtype} numbers of shape {spans.shape}: expected spans "
            "(start, end), whole numbers (S, 2)"
        )
    spans = spans.astype(np.int64)
    starts, ends = spans.T
    outside = (starts < 0) | (ends > count)
    early = np.zeros(len(spans), dtype=bool)
    early[1:] = starts[1:] < ends[:-1]
    wrong = (starts >= ends) | outside | early
    if wrong.any():
        index = int(wrong.argmax())
        start, end = spans[index].tolist()
        if start >= end:
            problem = "is empty: expected a start below the end"
        elif outside[index]:
            problem = f"is out of range: expected 0 <= start and end <= {count}"
        else:
            before = tuple(spans[index - 1].tolist())
            relation = "overlaps" if start >= before[0] else "is unordered: it precedes"
            problem = f"{relation} span {index - 1}, {before}"
        raise ValueError(f"{name}, span {index}, ({start}, {end}), {problem}")
    return spans


def span_owners(spans: Int64[np.ndarray, "S 2"], count: int) -> Int64[np.ndarray, "{count}"]:
    """The span that each of ``count`` things is in; -1 where it is in none."""
    lengths = spans[:, 1] - spans[:, 0]
    before = np.cumsum(lengths) - lengths
    inside = np.arange(lengths.sum()) + np.repeat(spans[:, 0] - before, lengths)
    owners = np.full(count, NONE, dtype=np.int64)
    owners[inside] = np.repeat(np.arange(len(spans)), lengths)
    return owners


def checked_levels(name: str, given: Any, count: int) -> list[Int64[np.ndarray, "_ 2"]]:
    """The spans of all levels of one sample, from the finest on.

    The spans of the first level are over ``count`` things, those of every other one over the spans
    of the level before it. Raises as :func:`checked_spans` does.
    """
    if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str):
        raise ValueError(f"{name} is {given!r}: expected levels, each a list of spans (start, end)")
    levels = []
    for level, spans in enumerate(given):
        levels.append(checked_spans(f"{name}, level {level}", spans, count))
        count = len(levels[-1])
    return levels


def cut_spans(
    name: str, spans: np.ndarray, span_counts: np.ndarray
) -> list[list[Int64[np.ndarray, "_ 2"]]]:
    """The levels of every row from the arrays ``spans`` (all, 2) and ``span_counts`` (N, levels).

    Raises ``ValueError`` where the arrays do not fit together.
    """
    if spans.ndim != 2 or spans.shape[1] != 2 or spans.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: 'spans' is {spans.dtype} {spans.shape}, expected whole numbers "
            "(sum of span_counts, 2)"
        )
    if span_counts.ndim != 2 or span_counts.dtype.kind not in "iu" or (span_counts < 0).any():
        raise ValueError(
            f"{name}: 'span_counts' is {span_counts.dtype} {span_counts.shape}, expected whole "
            "numbers (N, levels) of at least 0"
        )
    if (span_counts > len(spans)).any() or int(span_counts.sum()) != len(spans):
        raise ValueError(
            f"{name}: 'span_counts' add up to {sum(span_counts.ravel().tolist())}, but 'spans' "
            f"has {len(spans)} rows"
        )
    parts = np.split(spans.astype(np.int64), np.cumsum(span_counts.ravel())[:-1])
    levels = span_counts.shape[1]
    return [parts[row * levels : (row + 1) * levels] for row in range(len(span_counts))]


# ---------------------------------------------------------------- as trees and clades


class SpanHierarchy(NamedTuple):
    """Trees built level by level, and the spans as sets of tokens, in the rows' own order.

    The things of a span are joined neighbour to neighbour, until one node is left that is
    the span; then come the spans of the next level. Whatever is in no span of the level above, the
    spans of the last level among it, is joined in the same way at the end, by its first token.
    """

    merges: Int64[np.ndarray, "N M 2"]
    """Complete trees; leaves are the places of the tokens in their row."""
    members: Int32[np.ndarray, "N levels P"]
    """The span of each level that a token is in; -1 where it is in none."""
    sizes: tuple[int, ...]
    """The spans of each level that the samples of a batch have room for."""

    @classmethod
    def build(
        cls, lengths: Int64[np.ndarray, "N"], rows: Sequence[Levels], max_tokens: int
    ) -> SpanHierarchy:
        """The hierarchy of rows of ``lengths`` tokens, in up to ``max_tokens`` places."""
        depth = max(len(row) for row in rows)
        tables = [_table(rows, level) for level in range(depth)]
        sizes = tuple(table.shape[2] for table in tables)
        members = np.full((len(rows), depth, max_tokens), NONE, dtype=np.int32)
        for row, levels in enumerate(rows):
            owners = np.arange(lengths[row])
            for level, spans in enumerate(levels):
                below = lengths[row] if level == 0 else len(levels[level - 1])
                above = np.append(span_owners(spans, int(below)), NONE)  # none stays none
                owners = above[owners]
                members[row, level, : len(owners)] = owners
        return cls(_merges(lengths, tables, max_tokens), members, sizes)

    def rows(self, index: Int64[np.ndarray, "_"]) -> SpanHierarchy:
        """The rows that ``index`` selects, with as much room as before."""
        return self._replace(merges=self.merges[index], members=self.members[index])

    def shuffled(
        self, place_of_slot: Int64[np.ndarray, "N P"], lengths: Int64[np.ndarray, "N"]
    ) -> tuple[Bool[np.ndarray, "N C P"], Int64[np.ndarray, "N M 2"]]:
        """Clades and merges, naming the slots that the tokens were shuffled to."""
        members = np.take_along_axis(self.members, place_of_slot[:, None], axis=2)
        clades = [
            members[:, level, None] == np.arange(size)[:, None]
            for level, size in enumerate(self.sizes)
        ]
        merges = moved_merges(self.merges, place_of_slot, lengths)
        return np.concatenate(clades, axis=1), merges


def _table(rows: Sequence[Levels], level: int) -> Int64[np.ndarray, "2 N S"]:
    """Start and size of every span of one level; 0 things where a row has no such span."""
    spans = [row[level] if level < len(row) else np.zeros((0, 2), dtype=np.int64) for row in rows]
    table = np.zeros((2, len(rows), max(len(pairs) for pairs in spans)), dtype=np.int64)
    for row, pairs in enumerate(spans):
        table[:, row, : len(pairs)] = pairs[:, 0], pairs[:, 1] - pairs[:, 0]
    return table


def _merges(
    lengths: Int64[np.ndarray, "N"], tables: Sequence[Int64[np.ndarray, "2 N _"]], max_tokens: int
) -> Int64[np.ndarray, "N M 2"]:
    """The trees: all spans of a level, in order, before those of the next."""
    merges = empty_merges(len(lengths), max_tokens)
    made = np.zeros_like(lengths)
    nodes = np.tile(np.arange(max_tokens), (len(lengths), 1))  # of the level below
    firsts = nodes  # the first token under each of them
    exists = nodes < lengths[:, None]
    waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for starts, sizes in tables:
        parents = np.zeros_like(starts)
        for span in range(starts.shape[1]):
            size = np.maximum(sizes[:, span], 1)  # a row without this span joins nothing
            places = starts[:, span, None] + np.arange(size.max())
            parts = np.take_along_axis(nodes, np.minimum(places, nodes.shape[1] - 1), axis=1)
            write_balanced_joins(merges, parts, size, lengths, made)
            made = made + size - 1
            parents[:, span] = np.where(size > 1, lengths + made - 1, parts[:, 0])
        waiting.append((nodes, firsts, exists & ~_covered(starts, sizes, nodes.shape[1])))
        firsts = np.take_along_axis(firsts, starts, axis=1)
        nodes, exists = parents, sizes > 0
    waiting.append((nodes, firsts, exists))
    nodes, firsts, exists = (
        np.concatenate(arrays, axis=1) for arrays in zip(*waiting, strict=True)
    )
    order = np.argsort(np.where(exists, firsts, max_tokens), axis=1, kind="stable")
    parts = np.take_along_axis(nodes, order, axis=1)
    write_balanced_joins(merges, parts, exists.sum(axis=1), lengths, made)
    return merges


def _covered(
    starts: Int64[np.ndarray, "N S"], sizes: Int64[np.ndarray, "N S"], count: int
) -> Bool[np.ndarray, "N {count}"]:
    """True <--> one of the row's spans holds this thing."""
    steps = np.zeros((len(starts), count + 1), dtype=np.int64)  # one up at starts, down at ends
    rows = np.arange(len(starts))[:, None]
    np.add.at(steps, (rows, starts), sizes > 0)
    np.add.at(steps, (rows, starts + sizes), -(sizes > 0).astype(np.int64))
    return np.cumsum(steps, axis=1)[:, :count] > 0
