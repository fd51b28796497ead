"""Weighted sampling among many numbers that change a few at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class SumTree:
    """A binary tree whose leaves are weights and whose nodes are the sums below them.

    Changing or drawing ``k`` leaves of ``N`` costs ``O(k log N)``. A node is always the sum of its
    two children, so the tree depends on the leaves alone and not on how they came about.
    """

    def __init__(self, leaves: NDArray[np.float64]) -> None:
        self._half = 1 << max(0, len(leaves) - 1).bit_length()  # the place of the first leaf
        self._sums = np.zeros(2 * self._half)
        self._sums[self._half : self._half + len(leaves)] = leaves
        level = self._half
        while level > 1:
            below = self._sums[level : 2 * level]
            level //= 2
            self._sums[level : 2 * level] = below[::2] + below[1::2]

    @property
    def total(self) -> float:
        return float(self._sums[1])

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._sums[self._half + index]

    def __setitem__(self, index: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        """The last of equal indices counts."""
        node = self._half + index
        self._sums[node] = weights
        while len(node) and node[0] > 1:
            node = np.unique(node // 2)
            self._sums[node] = self._sums[2 * node] + self._sums[2 * node + 1]

    def find(self, positions: NDArray[np.float64]) -> NDArray[np.int64]:
        """The leaves at these positions along the running total, each in ``[0, total)``.

        Never a leaf of weight 0, unless all are.
        """
        node, rest = np.ones(len(positions), dtype=np.int64), positions.copy()
        while len(node) and node[0] < self._half:
            left = self._sums[2 * node]
            right = (rest >= left) & (self._sums[2 * node + 1] > 0)
            rest -= np.where(right, left, 0.0)
            node = 2 * node + right
        return node - self._half
