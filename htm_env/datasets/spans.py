"""Spans: which neighbours belong together, level by level.

A span is a half-open pair ``(start, end)`` over things in a row: characters, or the spans of the
level below. The spans of a level are in order and share nothing. They may leave gaps: what is in no
span, such as the blank between two words, has no part in the levels above.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from htm_env.types import NONE


def checked_spans(name: str, given: Any, count: int) -> Int64[np.ndarray, "S 2"]:
    """The spans of one level, over ``count`` things.

    Args:
        name: what to call the level in an error.
        given: an array (S, 2), or a list of pairs.
        count: how many things stand in the row.

    Raises:
        ValueError: these are no pairs of whole numbers; or a span is empty, out of range, overlaps
            the one before it or stands before it (the message names the first such span).
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
            relation = "overlaps" if start >= before[0] else "is unordered: it stands before"
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


def joined_spans(rows: Sequence[Sequence[Any]]) -> dict[str, np.ndarray]:
    """The arrays ``spans`` (all spans, 2) and ``span_counts`` (N, levels) of an ``.npz``.

    ``rows`` are the levels of every row. Row follows row and, within it, level follows level; a row
    with fewer levels than others has no spans in those that it lacks.
    """
    levels = max((len(row) for row in rows), default=0)
    counts = np.zeros((len(rows), levels), dtype=np.int64)
    for row, given in enumerate(rows):
        counts[row, : len(given)] = [len(spans) for spans in given]
    pairs = [pair for row in rows for spans in row for pair in spans]
    return {"spans": np.array(pairs, dtype=np.int64).reshape(-1, 2), "span_counts": counts}


def cut_spans(
    name: str, spans: np.ndarray, span_counts: np.ndarray
) -> list[list[Int64[np.ndarray, "_ 2"]]]:
    """The levels of every row from the arrays that :func:`joined_spans` gives.

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
    if int(span_counts.sum()) != len(spans):
        raise ValueError(
            f"{name}: 'span_counts' add up to {span_counts.sum()}, but 'spans' has {len(spans)} "
            "rows"
        )
    parts = np.split(spans.astype(np.int64), np.cumsum(span_counts.ravel())[:-1])
    levels = span_counts.shape[1]
    return [parts[row * levels : (row + 1) * levels] for row in range(len(span_counts))]
