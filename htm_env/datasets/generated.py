"""``GeneratedDataset``: endless samples drawn from a geometry, with their own hierarchy."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, UInt64

from htm_env.datasets.base import Dataset
from htm_env.datasets.random_keys import check_keys, shuffled, split_keys
from htm_env.types import TokenBatch

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
        return in_slots & self.present[:, None] & exists[:, :, None]


class GeneratedDataset(Dataset):
    """Endless samples; a subclass draws them from the seeds of their streams."""

    has_hierarchy = True
    size = None

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
