"""``Dataset``: a source of token sets, each episode a pure function of its key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from htm_env.datasets.random_keys import KEY_LIMIT, check_split
from htm_env.types import TokenBatch

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
