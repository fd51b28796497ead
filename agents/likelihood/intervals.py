"""Softmaxes over choices that each are there for a while, in memory linear in choices and steps.

A pair that could be merged from one step to another has the same score all the time, so that the
normaliser of every step, and the sum of a pair's probabilities over its time, follow from one
score a pair. A binary tree over the steps cuts every interval into at most ``2 log2 M`` of its
nodes: what a pair adds to the steps goes down the tree, what the steps tell a pair comes up it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from htm_env.softmax import weights_of


class Softmax(NamedTuple):
    """Of every step of every episode."""

    log_total: Float[Tensor, "B M"]
    """Logarithm of the sum of the exponentials of the scores; -inf where there is no choice."""
    mean_score: Float[Tensor, "B M"]
    """Mean score of the choices, each by its probability; 0 where there is none."""


class Intervals:
    """The times of ``E`` choices, each in one of ``size`` episodes of ``steps`` steps.

    Args:
        row: the episode of each choice.
        times: the first and the last step at which it is there.
    """

    def __init__(
        self,
        row: Int64[Tensor, "E"],
        times: Int64[Tensor, "E 2"],
        size: int,
        steps: int,
    ) -> None:
        self.row, self.times = row, times
        self.size, self.steps = size, steps
        self.depth = max(steps - 1, 0).bit_length()
        self._choice, self._node = self._covers()

    def softmax(self, scores: Float[Tensor, "E"]) -> Softmax:
        """The normaliser of every step, and the mean score there; no gradients."""
        with torch.no_grad():
            nodes = self.size << (self.depth + 1)
            mine = scores[self._choice]
            most = scores.new_full((nodes,), -torch.inf)
            most.scatter_reduce_(0, self._node, mine, "amax")
            share = weights_of(mine - most[self._node])
            total = torch.zeros_like(most).index_add_(0, self._node, share)
            summed = torch.zeros_like(most).index_add_(0, self._node, share * mine)
            most, total, summed = (v.view(self.size, -1) for v in (most, total, summed))
            for level in range(self.depth):
                above, here = slice(1 << level, 2 << level), slice(2 << level, 4 << level)
                parents = [v[:, above].repeat_interleave(2, 1) for v in (most, total, summed)]
                higher = torch.maximum(most[:, here], parents[0])
                finite = higher.clamp(min=torch.finfo(higher.dtype).min)
                old, new = weights_of(most[:, here] - finite), weights_of(parents[0] - finite)
                total[:, here] = total[:, here] * old + parents[1] * new
                summed[:, here] = summed[:, here] * old + parents[2] * new
                most[:, here] = higher
            leaves = slice(1 << self.depth, (1 << self.depth) + self.steps)
            total, most = total[:, leaves], most[:, leaves]
            mean = summed[:, leaves] / total.clamp(min=torch.finfo(total.dtype).tiny)
            return Softmax(total.log() + most.clamp(min=torch.finfo(most.dtype).min), mean)

    def log_totals(self, scores: Float[Tensor, "E"]) -> Float[Tensor, "B M"]:
        """The normaliser of every step; differentiable."""
        return _LogTotals.apply(scores, self)

    def sums(
        self,
        scores: Float[Tensor, "E"],
        log_totals: Float[Tensor, "B M"],
        weights: Float[Tensor, "B M"],
    ) -> Float[Tensor, "E"]:
        """``sum over its steps of weights[t] * exp(score - log_totals[t])``; no gradients.

        Every node keeps its sum relative to the smallest total among its steps, so that nothing
        overflows where the totals are those of the scores.
        """
        with torch.no_grad():
            leaves = 1 << self.depth
            lowest = log_totals.new_full((self.size, 2 * leaves), torch.inf)
            summed = torch.zeros_like(lowest)
            here = slice(leaves, leaves + self.steps)
            lowest[:, here], summed[:, here] = log_totals, weights
            for level in reversed(range(self.depth)):
                above, below = slice(1 << level, 2 << level), slice(2 << level, 4 << level)
                low, part = (v[:, below].unflatten(1, (-1, 2)) for v in (lowest, summed))
                lower = low.amin(2)
                kept = weights_of(lower[..., None] - low)  # NaN where no choice is at every step
                lowest[:, above], summed[:, above] = lower, (part * kept).sum(2)
            share = weights_of(scores[self._choice] - lowest.flatten()[self._node])
            share = share * summed.flatten()[self._node]
            return torch.zeros_like(scores).index_add_(0, self._choice, share)

    def _covers(self) -> tuple[Int64[Tensor, "C"], Int64[Tensor, "C"]]:
        """Which nodes of the trees make up each interval: a choice and a node in every entry.

        The trees stand one behind the other, each as a heap: node 1 the root, ``2 n`` and
        ``2 n + 1`` the halves of ``n``.
        """
        choice = torch.arange(len(self.row), device=self.row.device)
        left = self.times[:, 0] + (1 << self.depth)
        right = self.times[:, 1] + (1 << self.depth) + 1  # behind the last
        tree = self.row << (self.depth + 1)
        choices, nodes = [], []
        while len(choice):
            for end, node in ((left, left), (right, right - 1)):
                alone = end % 2 == 1
                choices.append(choice[alone])
                nodes.append(tree[alone] + node[alone])
            left, right = (left + 1) // 2, right // 2
            more = left < right
            choice, left, right, tree = choice[more], left[more], right[more], tree[more]
        empty = self.row[:0]
        return torch.cat([empty, *choices]), torch.cat([empty, *nodes])


class _LogTotals(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, intervals: Intervals) -> Tensor:
        totals = intervals.softmax(scores).log_total
        ctx.intervals = intervals
        ctx.save_for_backward(scores, totals)
        return totals

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        scores, totals = ctx.saved_tensors
        return ctx.intervals.sums(scores, totals, gradient), None
