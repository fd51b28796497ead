"""``GeneratedDataset``: endless samples drawn from a geometry, with their own hierarchy."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, UInt64

from htm_env.datasets.base import Dataset, check_keys, shuffled, split_keys
from htm_env.types import NONE, TokenBatch

STATISTICS_EPISODES = 4096
"""Training episodes behind ``mean`` and ``std``."""
_CHUNK = 256


class Shuffle(NamedTuple):
    """Where the tokens of a batch went: places are in generator order, slots are shuffled."""

    place_of_slot: Int64[np.ndarray, "B P"]
    slot_of_place: Int64[np.ndarray, "B P"]
    present: Bool[np.ndarray, "B P"]
    """True <--> the slot holds a token."""

    @classmethod
    def draw(
        cls, order_uniforms: Float64[np.ndarray, "B P"], present_places: Bool[np.ndarray, "B P"]
    ) -> Shuffle:
        """A uniformly random order of the present places; the empty slots come last."""
        place_of_slot = shuffled(order_uniforms, present_places)
        slots = np.arange(place_of_slot.shape[1])
        slot_of_place = np.empty_like(place_of_slot)
        np.put_along_axis(slot_of_place, place_of_slot, slots[None], axis=1)
        return cls(place_of_slot, slot_of_place, slots < present_places.sum(axis=1)[:, None])

    def tokens(self, places: Float64[np.ndarray, "B P T"]) -> Float32[np.ndarray, "B P T"]:
        """The tokens in slot order, zeros in empty slots."""
        moved = np.take_along_axis(places, self.place_of_slot[:, :, None], axis=1)
        return np.where(self.present[:, :, None], moved, 0.0).astype(np.float32)

    def clades(
        self, members: Bool[np.ndarray, "C P"], exists: Bool[np.ndarray, "B C"]
    ) -> Bool[np.ndarray, "B C P"]:
        """Sets of places as sets of slots, less absent tokens; all False where not ``exists``."""
        in_slots = members.T[self.place_of_slot].transpose(0, 2, 1)  # (B, C, P)
        there: np.ndarray = in_slots & self.present[:, None] & exists[:, :, None]
        return there


class GeneratedDataset(Dataset):
    """Endless samples; a subclass draws them from the seeds of their streams."""

    has_hierarchy = True
    size = None
    geometry_class: type
    """The frozen dataclass of what is drawn; the subclass takes one after the split."""

    @classmethod
    def keywords(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls.geometry_class))

    @classmethod
    def make(cls, split: str, **keywords: Any) -> Dataset:
        return cls(split, cls.geometry_class(**keywords))  # type: ignore[call-arg]

    @abstractmethod
    def generate(
        self, seeds: UInt64[np.ndarray, "B"]
    ) -> tuple[
        Float32[np.ndarray, "B P T"],
        Bool[np.ndarray, "B P"],
        Bool[np.ndarray, "B C P"],
        Int64[np.ndarray, "B M 2"],
    ]:
        """Tokens, present, clades and merges of the samples with these seeds."""

    def episodes(self, keys: Int64[np.ndarray, "B"]) -> TokenBatch:
        check_keys(keys)
        arrays = self.generate(split_keys(keys, self.split))
        return TokenBatch(*(torch.from_numpy(array) for array in arrays))

    def training_tokens(self) -> Float32[np.ndarray, "tokens T"]:
        chunks = []
        for start in range(0, STATISTICS_EPISODES, _CHUNK):
            keys = np.arange(start, start + _CHUNK)
            tokens, present, _, _ = self.generate(split_keys(keys, "train"))
            chunks.append(tokens[present])
        return np.concatenate(chunks)


# ---------------------------------------------------------------- ordered merges


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
