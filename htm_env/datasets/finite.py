"""``FiniteDataset``: the rows of one split, held in memory."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64

from htm_env.datasets.base import Dataset, check_keys, check_split, shuffled, split_keys, uniforms
from htm_env.datasets.generated import empty_merges
from htm_env.types import TokenBatch


class FiniteDataset(Dataset):
    """Rows that were given rather than drawn; key ``k`` is row ``k % size``, shuffled by ``k``."""

    has_hierarchy = False
    size: int

    def __init__(
        self,
        split: str,
        values: Float32[np.ndarray, "N P T"],
        lengths: Int64[np.ndarray, "N"],
        rows_of_splits: tuple[Int64[np.ndarray, "_"], ...],
    ) -> None:
        """Takes one split's rows.

        Args:
            split: the split's name.
            values: tokens of all rows of the data, padded with anything.
            lengths: how many tokens each row has.
            rows_of_splits: the rows of each split, in the order of ``SPLITS``.

        Raises:
            ValueError: ``split`` is not a split's name.
        """
        super().__init__(split)
        self.rows = rows_of_splits[check_split(split)]
        """Which rows of the data this split has, in its own order; int64 (size,)."""
        self.size = len(self.rows)
        self.max_tokens, self.token_dim = values.shape[1:]
        self._values = values[self.rows]
        self._lengths = lengths[self.rows]
        train = rows_of_splits[0]
        present = np.arange(self.max_tokens) < lengths[train, None]
        self._training_tokens: np.ndarray = values[train][present]

    def episodes(self, keys: Int64[np.ndarray, "B"]) -> TokenBatch:
        check_keys(keys)
        rows = keys % self.size
        present = np.arange(self.max_tokens) < self._lengths[rows, None]  # (B, P)
        order = shuffled(uniforms(split_keys(keys, self.split), self.max_tokens), present)
        tokens = self._values[rows[:, None], order]  # (B, P, T)
        clades, merges = self.hierarchy(rows, order)
        return TokenBatch(
            tokens=torch.from_numpy(np.where(present[:, :, None], tokens, np.float32(0))),
            present=torch.from_numpy(present),
            clades=torch.from_numpy(clades),
            merges=torch.from_numpy(merges),
        )

    def hierarchy(
        self, rows: Int64[np.ndarray, "B"], order: Int64[np.ndarray, "B P"]
    ) -> tuple[Bool[np.ndarray, "B C P"], Int64[np.ndarray, "B M 2"]]:
        """Clades and merges of these rows of the split; none here.

        ``order`` is the place in its row that each slot was filled from.
        """
        clades = np.zeros((len(rows), 0, self.max_tokens), dtype=bool)
        return clades, empty_merges(len(rows), self.max_tokens)

    def training_tokens(self) -> Float32[np.ndarray, "tokens T"]:
        return self._training_tokens
