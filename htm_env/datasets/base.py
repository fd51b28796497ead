"""``Dataset``: a source of token sets, each episode a pure function of its key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt64
from torch import Tensor

from htm_env.types import TokenBatch

SPLITS: Final = ("train", "validation", "test")
"""The names of the splits; the index of a split is its place here."""

KEY_LIMIT: Final = 2**62
"""Keys are ``0 <= key < KEY_LIMIT``, so that ``3 * key + 2`` still fits 64 bits."""

_GOLDEN_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)

Kind = Literal["points", "segments", "patches", "items", "vectors"]


class Dataset(ABC):
    """One split of a data set.

    Every episode's tokens are shuffled; its clades and merges name the shuffled slots.
    """

    name: str
    """The environment id that the data belongs to."""
    split: str
    """``"train"``, ``"validation"`` or ``"test"``; no sample is in two of them."""
    max_tokens: int
    """``P``: the largest population, over all three splits."""
    token_dim: int
    """``T``: the numbers of one token."""
    kind: Kind
    """How to draw a token."""
    has_hierarchy: bool
    """True <--> the samples carry clades and merges."""
    has_labels: bool = False
    """True <--> :meth:`labels` knows what each sample shows."""
    default_reward: str = "incremental"
    """What the data's environment pays unless asked for something else (see ``rewards.py``)."""
    size: int | None
    """Rows of this split; None where episodes are generated without end."""

    def __init__(self, split: str) -> None:
        """Raises ``ValueError`` where ``split`` is not a split's name."""
        check_split(split)
        self.split = split

    @classmethod
    def keywords(cls) -> tuple[str, ...]:
        """What :meth:`make` takes beside the split."""
        return ()

    @classmethod
    def make(cls, split: str, **keywords: Any) -> Dataset:
        """The split, from arguments of :func:`htm_env.make_dataset`.

        Raises ``ValueError`` for a value that is out of range.
        """
        return cls(split, **keywords)

    @abstractmethod
    def episodes(self, keys: Int64[np.ndarray, "B"]) -> TokenBatch:
        """The episodes of these keys, ``0 <= key < 2**62``, one a row.

        A row depends on its own key and on nothing else, to the last bit.

        Raises:
            ValueError: ``keys`` is not a flat int64 array, or a key is out of range.
        """

    @abstractmethod
    def training_tokens(self) -> Float32[np.ndarray, "tokens T"]:
        """The present tokens of the training split that ``mean`` and ``std`` are taken over."""

    def sample(self, batch: int, generator: torch.Generator) -> TokenBatch:
        """``batch`` episodes with keys drawn from ``generator``.

        Raises:
            ValueError: ``batch`` is less than one.
        """
        _at_least_one("batch", batch)
        keys = torch.randint(
            KEY_LIMIT, (batch,), generator=generator, device=generator.device, dtype=torch.int64
        )
        return self.episodes(keys.cpu().numpy())

    def fixed(self, count: int) -> TokenBatch:
        """The first ``count`` episodes of this split, the same ones at every call.

        Finite data gives each of its rows once at most: ``min(count, size)`` episodes, so that
        ``fixed(size)`` is the whole split.

        Raises:
            ValueError: ``count`` is less than one.
        """
        return self.episodes(self.fixed_keys(count))

    def fixed_keys(self, count: int) -> Int64[np.ndarray, "B"]:
        """The keys of the episodes that :meth:`fixed` gives.

        Raises:
            ValueError: ``count`` is less than one.
        """
        _at_least_one("count", count)
        return np.arange(count if self.size is None else min(count, self.size), dtype=np.int64)

    def labels(self, keys: Int64[np.ndarray, "B"]) -> Int64[np.ndarray, "B"]:
        """What the samples of these keys show, as class numbers from 0.

        For looking at results only: no :class:`TokenBatch` carries labels, no learner asks for
        them, and training never sees them.

        Raises:
            ValueError: the data has no labels, or the keys are not those of :meth:`episodes`.
        """
        raise ValueError(f"{self.name} has no labels")

    @property
    def mean(self) -> Float[Tensor, "T"]:
        """The mean of each coordinate over the training split's tokens, float32."""
        return self._statistics[0].clone()

    @property
    def std(self) -> Float[Tensor, "T"]:
        """The standard deviation beside ``mean``; 1 where a coordinate never varies."""
        return self._statistics[1].clone()

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        tokens = self.training_tokens().astype(np.float64)
        std = tokens.std(axis=0).astype(np.float32)
        std[std == 0] = 1.0  # exact: sums of equal float32 numbers are exact in float64
        mean = tokens.mean(axis=0).astype(np.float32)
        return torch.from_numpy(mean), torch.from_numpy(std)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}: expected at least 1")


# ---------------------------------------------------------------- keys, and random numbers of them


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
    mixed: np.ndarray = values ^ (values >> np.uint64(30))
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
