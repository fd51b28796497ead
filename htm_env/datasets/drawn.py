"""Samples that a function draws one at a time: the shortest way to data of one's own."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64

from htm_env.checks import whole_number
from htm_env.datasets.base import Dataset, check_keys, empty_merges, split_keys
from htm_env.datasets.kinds import own_kind
from htm_env.types import TokenBatch

STATISTICS_SAMPLES = 1024
"""Training samples behind ``mean`` and ``std``; drawing one takes tens of microseconds."""
MOST_NUMBERS = 2**20
"""Tokens of a set, and numbers of a token, at most."""


class DrawnDataset(Dataset):
    """Endless samples, each drawn from a random generator of its own.

    A subclass sets ``max_tokens``, ``token_dim`` and ``kind``, as class attributes or in its
    ``__init__``, and defines :meth:`draw`. The arguments that its ``__init__`` has behind the split
    are keywords of the environment. :func:`htm_env.register` gives it an id.

    Example::

        class Rings(htm_env.DrawnDataset):
            max_tokens, token_dim, kind = 12, 2, "points"

            def draw(self, generator):
                angle = generator.uniform(0, 2 * np.pi, 12)
                radius = np.repeat([1.0, 2.0], 6)
                return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    """

    kind = "vectors"
    has_hierarchy = False
    size = None

    def __init__(self, split: str = "train") -> None:
        super().__init__(split)
        self.name = type(self).__name__

    @classmethod
    def make(cls, split: str, **keywords: Any) -> Dataset:
        made = super().make(split, **keywords)
        for name in ("max_tokens", "token_dim"):
            if not hasattr(made, name):
                raise ValueError(
                    f"{cls.__name__} has no {name}; expected a number, as a class attribute or set "
                    "by its __init__"
                )
            whole_number(f"{name} of {cls.__name__}", getattr(made, name), 1, MOST_NUMBERS)
        made.kind = own_kind(made.kind, made.token_dim)
        return made

    @classmethod
    def keywords(cls) -> tuple[str, ...]:
        parameters = inspect.signature(cls.__init__).parameters
        return tuple(name for name in parameters if name not in ("self", "split"))

    @abstractmethod
    def draw(self, generator: np.random.Generator) -> Any:
        """The tokens of one sample, ``(n, T)``, in any order, random by ``generator`` alone.

        Where ``has_hierarchy``: the tokens, and the merges of their tree, ``(n - 1, 2)``, in the
        numbers of the rows (merge ``t`` makes node ``n + t``). Its nodes are the data's clades.
        """

    def episodes(self, keys: Int64[np.ndarray, "B"]) -> TokenBatch:
        check_keys(keys)
        return self._batch(keys, self.split)

    def training_sets(
        self, count: int
    ) -> tuple[Float32[np.ndarray, "N P T"], Bool[np.ndarray, "N P"]]:
        keys = np.arange(min(count, STATISTICS_SAMPLES), dtype=np.int64)
        batch = self._batch(keys, "train")
        return batch.tokens.numpy(), batch.present.numpy()

    def training_tokens(self) -> Float32[np.ndarray, "tokens T"]:
        tokens, present = self.training_sets(STATISTICS_SAMPLES)
        found: np.ndarray = tokens[present]
        return found

    def _batch(self, keys: Int64[np.ndarray, "B"], split: str) -> TokenBatch:
        batch, slots = len(keys), self.max_tokens
        tokens = np.zeros((batch, slots, self.token_dim), np.float32)
        present = np.zeros((batch, slots), bool)
        merges = empty_merges(batch, slots)
        clades = np.zeros((batch, slots - 1 if self.has_hierarchy else 0, slots), bool)
        for row, seed in enumerate(split_keys(keys, split)):
            generator = np.random.Generator(np.random.PCG64(int(seed)))
            sample, tree = self._drawn(generator)
            count = len(sample)
            slot = generator.permutation(count)  # of each row of the sample
            tokens[row, slot], present[row, :count] = sample, True
            if tree is not None:
                node = np.concatenate([slot, np.arange(count, 2 * count - 1)])
                merges[row, : count - 1] = node[tree]
                under = np.eye(2 * count - 1, slots, dtype=bool)
                for time, pair in enumerate(merges[row, : count - 1]):
                    under[count + time] = under[pair].any(axis=0)
                clades[row, : count - 1] = under[count:]
        return TokenBatch(*map(torch.from_numpy, (tokens, present, clades, merges)))

    def _drawn(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
        """One sample and its tree, if the data has trees; ``ValueError`` for other shapes."""
        drawn = self.draw(generator)
        sample, tree = drawn if self.has_hierarchy else (drawn, None)
        sample, shape = np.asarray(sample, np.float32), (self.max_tokens, self.token_dim)
        if sample.ndim != 2 or sample.shape[1] != shape[1] or not 0 < len(sample) <= shape[0]:
            raise ValueError(
                f"{self.name}.draw gave tokens of shape {sample.shape}; expected (n, {shape[1]}) "
                f"with n from 1 to {shape[0]}"
            )
        if not np.isfinite(sample).all():
            raise ValueError(f"{self.name}.draw gave tokens that are not finite")
        if tree is None:
            return sample, None
        tree = np.asarray(tree, np.int64).reshape(-1, 2)
        made = len(sample) + np.arange(len(tree))[:, None]
        once = len(np.unique(tree)) == tree.size == 2 * len(sample) - 2
        if not (once and (tree >= 0).all() and (tree < made).all()):
            raise ValueError(
                f"{self.name}.draw gave merges that make no tree of its {len(sample)} tokens; "
                "expected each node once, and no node before it is made"
            )
        return sample, tree
