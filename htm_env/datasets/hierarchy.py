"""Ordered merges of generated samples: writing them, and joining parts in a balanced way."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64

from htm_env.types import NONE


def empty_merges(batch: int, max_tokens: int) -> Int64[np.ndarray, "B M 2"]:
    """Merges of samples that have none yet."""
    return np.full((batch, max_tokens - 1, 2), NONE, dtype=np.int64)


def write_merges(
    merges: Int64[np.ndarray, "B M 2"],
    exists: Bool[np.ndarray, "B K"],
    index: Int64[np.ndarray, "B K"],
    first: Int64[np.ndarray, "B K"],
    second: Int64[np.ndarray, "B K"],
) -> None:
    """Writes the ordered pairs ``(first, second)`` that exist into ``merges``, in place."""
    rows, columns = np.nonzero(exists)
    where = index[rows, columns]
    merges[rows, where, 0] = first[rows, columns]
    merges[rows, where, 1] = second[rows, columns]


def write_balanced_joins(
    merges: Int64[np.ndarray, "B M 2"],
    parts: Int64[np.ndarray, "B K"],
    num_parts: Int64[np.ndarray, "B"],
    num_tokens: Int64[np.ndarray, "B"],
    made: Int64[np.ndarray, "B"],
) -> None:
    """Joins the first ``num_parts`` nodes of each row, neighbour to neighbour, level by level.

    Args:
        merges: written in place, from merge ``made`` on.
        parts: the node ids to join, in generator order.
        num_parts: how many of them a row has, one at least.
        num_tokens: the tokens of each row, so that merge ``t`` makes node ``num_tokens + t``.
        made: the merges that each row already has.
    """
    while parts.shape[1] > 1:
        pairs = parts.shape[1] // 2
        left, right, odd = parts[:, : 2 * pairs : 2], parts[:, 1::2], parts[:, 2 * pairs :]
        pair = np.arange(pairs)
        exists = 2 * pair + 1 < num_parts[:, None]  # (B, pairs)
        index = made[:, None] + pair
        write_merges(merges, exists, index, left, right)
        joined = np.where(exists, num_tokens[:, None] + index, left)
        parts = np.concatenate([joined, odd], axis=1)
        made = made + exists.sum(axis=1)
        num_parts = (num_parts + 1) // 2
