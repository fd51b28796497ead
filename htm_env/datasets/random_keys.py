"""Counter-based random numbers: an episode is a pure function of its key.

No state is kept anywhere, so a batch of episodes costs a few array operations, row ``b`` of a batch
equals the episode drawn alone, and the three splits read disjoint streams.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt64

SPLITS: Final = ("train", "validation", "test")
"""The names of the splits; the index of a split is its place here."""

KEY_LIMIT: Final = 2**62
"""Keys are ``0 <= key < KEY_LIMIT``, so that ``3 * key + 2`` still fits 64 bits."""

_GOLDEN_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)


def check_split(split: str) -> int:
    """The index of a split.

    Raises:
        ValueError: ``split`` is not one of ``SPLITS``.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    return SPLITS.index(split)


def check_keys(keys: Any) -> None:
    """Raises ``ValueError`` unless ``keys`` is a flat int64 array within ``[0, KEY_LIMIT)``."""
    if not isinstance(keys, np.ndarray) or keys.dtype != np.int64 or keys.ndim != 1:
        found = (
            f"{keys.dtype} {keys.shape}" if isinstance(keys, np.ndarray) else type(keys).__name__
        )
        raise ValueError(f"episode keys are {found}: expected an int64 array (B,)")
    if keys.size and (int(keys.min()) < 0 or int(keys.max()) >= KEY_LIMIT):
        raise ValueError(
            f"episode keys run from {keys.min()} to {keys.max()}: expected 0 <= key < 2**62"
        )


def mix(values: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """The bijection of 64-bit words at the end of splitmix64.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (with
    Stafford's variant 13 of the constants).
    """
    mixed = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def split_keys(keys: Int64[np.ndarray, "B"], split: str) -> UInt64[np.ndarray, "B"]:
    """The seed of each episode's stream.

    ``3 * key + split`` is injective over keys and splits, and ``mix`` is a bijection: no two splits
    share a seed.
    """
    numbers = keys.astype(np.uint64) * np.uint64(len(SPLITS)) + np.uint64(check_split(split))
    return mix(numbers)


def uniforms(seeds: UInt64[np.ndarray, "B"], count: int) -> Float64[np.ndarray, "B {count}"]:
    """The first ``count`` numbers in [0, 1) of each seed's splitmix64 stream."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN_GAMMA
    words = mix(seeds[:, None] + steps)  # (B, count)
    words >>= np.uint64(11)  # a float64 holds 53 bits
    return words * 2.0**-53


def shuffled(
    order_uniforms: Float64[np.ndarray, "B P"], present: Bool[np.ndarray, "B P"]
) -> Int64[np.ndarray, "B P"]:
    """Which place each slot is filled from: the present places in random order, then the rest."""
    return np.argsort(np.where(present, order_uniforms, 2.0), axis=1, kind="stable")
