"""Rollouts on numpy arrays: of pair scorers, among all pairs, on a processor.

A step of a rollout is many small operations, and most of its time goes into calls: one of torch
takes microseconds before it computes anything, one of numpy a fraction of that. What a step needs
to know of all pairs are sums over them, so ``exp(score - shift)`` of every pair is kept: a merge
takes the exponentials of one new row and column, where a softmax takes those of all pairs. From the
same random numbers come the merges of :func:`agents.rollouts.rollout.rollout` on tensors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from agents.rollouts.pair_scores import ILLEGAL, NodeTables, PairArrays, Positions
from htm_env.array_networks import ArrayFunction
from htm_env.types import NONE

FEWEST, MOST = 1e-8, 1e25
"""Bounds of the sum of a sample's weights, of which the best was 1 at first: outside of them the
weights are computed anew."""
RAREST = 1e-35
"""Weights below it are 0: numbers too small to be normal ones make all that follows slow."""


class Choices(NamedTuple):
    """What was chosen in the episodes of a rollout; 0 in padding."""

    log_prob: Float[Tensor, "B M"]
    """Log-probability of the merge among all choices."""
    log_total: Float[Tensor, "B M"]
    """Logarithm of the sum of the exponentials of the scores of all choices."""
    turned: Float[Tensor, "B M"]
    """Log-probability of the merge with its children exchanged, where entropies need it."""
    nats: Float[Tensor, "B M"]
    """Entropy of the choice, where it is measured."""


class ArrayRollout:
    """Episodes in progress, on the memory of the tables and positions, which it changes.

    Args:
        merger: the autoencoder's, on arrays.
        arrays: features and scores before the first merge; changed in place.
        tables: the nodes; parents are written.
        positions: before the first merge; brought to the end.
    """

    def __init__(
        self, merger: ArrayFunction, arrays: PairArrays, tables: NodeTables, positions: Positions
    ) -> None:
        self.merger, self.tables, self.positions = merger, tables, positions
        self.nodes, self.counts = tables.embeddings.numpy(), tables.leaf_counts.numpy()
        self.here, self.merges = positions.here.numpy(), positions.merges.numpy()
        self.active, self.num_leaves = positions.active.numpy(), positions.num_leaves.numpy()
        self.scorer, self.first, self.second, scores = arrays
        size, slots = self.here.shape
        self.ragged = bool((self.num_leaves < positions.most).any())
        self._row, self._position = np.arange(size), np.arange(slots)
        self._ones, self._shift = np.ones(slots, scores.dtype), np.empty(size, scores.dtype)
        self._weights = np.zeros_like(scores)
        self._weigh(self._row, scores)

    def run(self, uniform: np.ndarray, greedy: bool, measured: bool, ordered: bool) -> Choices:
        """Make all merges.

        ``uniform`` is ``(B, M, 2)`` in [0, 1), what is drawn; ``greedy`` takes the best pair
        instead. Entropies are ``measured``, with the order within a pair a choice if ``ordered``.
        """
        # A diverged autoencoder gives infinities, and legal merges all the same.
        with np.errstate(all="ignore"):
            return self._run(uniform, greedy, measured, ordered)

    def _run(self, uniform: np.ndarray, greedy: bool, measured: bool, ordered: bool) -> Choices:
        chosen, turned, total, shift, nats = np.zeros((5, *self.merges.shape[:2]))
        for time, rows in enumerate(self.positions.running):
            width, row = self.positions.most - time, self._row[:rows]
            sums, total[:rows, time] = self._sums(rows, width)
            weights, shift[:rows, time] = self._weights[:rows, :width, :width], self._shift[:rows]
            if greedy:
                one = weights.max(2).argmax(1)
                other = weights[row, one].argmax(1)
            else:
                one = inverted(sums, uniform[:rows, time, 0])
                other = inverted(weights[row, one], uniform[:rows, time, 1])
            chosen[:rows, time] = weights[row, one, other]
            if measured:
                nats[:rows, time] = _entropy(weights, total[:rows, time], ordered)
            elif not ordered:
                turned[:rows, time] = weights[row, other, one]
            self._merge(time, row, one, other, width)
        made = total > 0
        log_prob, turned = (
            np.log(weight / np.where(made, total, 1.0), out=np.zeros_like(total), where=made)
            for weight in (chosen, turned)
        )
        log_total = np.log(total, out=np.zeros_like(total), where=made) + shift
        found = torch.from_numpy(np.stack([log_prob, log_total, turned, nats]))
        return Choices(*found.to(self.tables.embeddings.dtype))

    def _merge(
        self, time: int, row: np.ndarray, one: np.ndarray, other: np.ndarray, width: int
    ) -> None:
        rows = len(row)
        here, nodes, counts = self.here[:rows], self.nodes, self.counts
        self.active[:rows, time] = here
        children = self.merges[:rows, time]
        children[:, 0], children[:, 1] = here[row, one], here[row, other]
        low, high = np.minimum(one, other), np.maximum(one, other)
        last, parent = self.num_leaves[:rows] - time - 1, self.num_leaves[:rows] + time
        here[row, high] = here[row, last]
        here[row, last] = NONE
        here[row, low] = parent

        pairs = nodes[row[:, None], children].reshape(rows, -1)
        merged, count = self.merger(pairs), counts[row[:, None], children].sum(1)
        nodes[row, parent], counts[row, parent] = merged, count
        new_first, new_second = self.scorer.features(merged, count)
        first, second, weights = self.first, self.second, self._weights
        for features, new in ((first, new_first), (second, new_second)):
            features[row, high] = features[row, last]
            features[row, low] = new

        # What was last moves, the parent's row and column are new, and the last are empty.
        weights[row, high] = weights[row, last]
        weights[row, :width, high] = weights[row, :width, last]
        left = width - 1
        position = self._position[:left]
        others = (position < last[:, None]) & (position != low[:, None])  # (R, W - 1)
        scores = self.scorer.scores(new_first[:, None], second[:rows, :left], others[:, None])
        as_second = as_first = self._weight(scores[:, 0], row, others)
        if not self.scorer.symmetric:
            new = new_second[:, None]
            scores = self.scorer.scores(first[:rows, :left], new, others[..., None])
            as_second = self._weight(scores[..., 0], row, others)
        weights[row, low, :left] = as_first
        weights[row, :left, low] = as_second
        if self.ragged:  # elsewhere nothing more is read there
            weights[row, last] = 0.0
            weights[row, :width, last] = 0.0

    def _weight(self, scores: np.ndarray, row: np.ndarray, legal: np.ndarray) -> np.ndarray:
        """Weights of the scores of each row of episodes, 0 where they are not legal."""
        shift = self._shift[row].reshape(-1, *[1] * (scores.ndim - 1))
        # Of a score far above all before it is infinite; the sum shows it, and all are renewed.
        weights = np.exp(bounded(scores) - shift)
        return np.where(legal & (weights > RAREST), weights, 0.0)

    def _weigh(self, row: np.ndarray, scores: np.ndarray) -> None:
        """Weights of some episodes, 1 for the best pair, from the scores of all pairs."""
        width = scores.shape[1]
        self._shift[row] = scores.max((1, 2))
        self._weights[row, :width, :width] = self._weight(scores, row, scores > ILLEGAL / 2)

    def _sums(self, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Sums of weights over the partners of each position ``(R, W)``, and over all pairs."""
        sums = self._weights[:rows, :width, :width] @ self._ones[:width]
        total = sums.sum(1)
        fits = (total > FEWEST) & (total < MOST)
        if fits.all():
            return sums, total
        row = (~fits).nonzero()[0]
        first, second, here = (
            values[row, :width] for values in (self.first, self.second, self.here)
        )
        there = here >= 0
        legal = there[:, :, None] & there[:, None, :] & ~np.eye(width, dtype=bool)
        scores = bounded(self.scorer.scores(first, second, legal))
        self._weigh(row, np.where(legal, scores, ILLEGAL))
        return self._sums(rows, width)


def bounded(scores: np.ndarray) -> np.ndarray:
    """As :func:`agents.rollouts.pair_scores.bounded`."""
    if np.isfinite(scores.sum()):  # as long as nothing diverges; else large ones are bounded too
        return scores
    return np.nan_to_num(scores, nan=0.0).clip(ILLEGAL / 10, -ILLEGAL / 10)


def inverted(weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """A column a row, by weight: where the running sum first exceeds its share ``uniform``."""
    sums = weights.cumsum(1, dtype=np.float64)
    found: np.ndarray = (sums <= (uniform * sums[:, -1])[:, None]).sum(1)
    return found


def _entropy(weights: np.ndarray, total: np.ndarray, ordered: bool) -> np.ndarray:
    """Entropy in nats of choices ``(R, W, W)`` with these weights; see
    :func:`agents.rollouts.rollout.choices`."""
    choice = weights if ordered else weights + weights.transpose(0, 2, 1)
    logs = np.log(choice, out=np.zeros_like(choice), where=choice > 0)
    spread: np.ndarray = np.log(total) - (weights * logs).sum((1, 2)) / total
    return spread
