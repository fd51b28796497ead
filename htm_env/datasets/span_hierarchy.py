"""``SpanHierarchy``: the trees and clades that spans given from outside make of every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from htm_env.datasets.generated import empty_merges, write_balanced_joins
from htm_env.datasets.spans import span_owners
from htm_env.types import NONE

Levels = Sequence[Int64[np.ndarray, "_ 2"]]
"""The checked spans of one row, a level each, from the finest on."""


class SpanHierarchy(NamedTuple):
    """Trees built level by level, and the spans as sets of tokens, in the rows' own order.

    The things of a span are joined neighbour to neighbour, until one node is left that stands for
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
        tables = [_Table.of([row[level : level + 1] for row in rows]) for level in range(depth)]
        sizes = tuple(table.starts.shape[1] for table in tables)
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
        slot_of_place = np.argsort(place_of_slot, axis=1)
        is_leaf = (self.merges != NONE) & (self.merges < lengths[:, None, None])
        places = np.where(is_leaf, self.merges, 0).reshape(len(lengths), -1)
        slots = np.take_along_axis(slot_of_place, places, axis=1).reshape(self.merges.shape)
        return np.concatenate(clades, axis=1), np.where(is_leaf, slots, self.merges)


class _Table(NamedTuple):
    """The spans of one level of all rows."""

    starts: Int64[np.ndarray, "N S"]
    sizes: Int64[np.ndarray, "N S"]
    """How many things a span has; 0 where a row has no such span."""

    @classmethod
    def of(cls, rows: Sequence[Levels]) -> _Table:
        """From the level of every row; rows without it have no spans."""
        spans = [row[0] if len(row) else np.zeros((0, 2), dtype=np.int64) for row in rows]
        table = np.zeros((2, len(rows), max(len(pairs) for pairs in spans)), dtype=np.int64)
        for row, pairs in enumerate(spans):
            table[:, row, : len(pairs)] = pairs[:, 0], pairs[:, 1] - pairs[:, 0]
        return cls(*table)


def _merges(
    lengths: Int64[np.ndarray, "N"], tables: Sequence[_Table], max_tokens: int
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
