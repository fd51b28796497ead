"""Terms of episodes among candidates under a pair scorer: every pair is scored once.

A pair that could be merged from one step to another has the same score all the time, so that the
normaliser of every step, and the sum of a pair's probabilities over its time, follow from one
score a pair. A binary tree over the steps cuts every interval into at most ``2 log2 M`` of its
nodes: what a pair adds to the steps goes down the tree, what the steps give a pair comes up it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from agents.likelihood.among_all import ScorerTerms
from agents.rollouts.pair_scores import PairScorer, bounded
from agents.rollouts.rollout import Episodes, MergeTerms
from htm_env.candidates import CandidatePairs
from htm_env.softmax import weights_of
from htm_env.types import TokenBatch

IMPOSSIBLE = -1e4
"""The log-probability of a merge that was no candidate: its probability is 0."""


class CandidateTerms(ScorerTerms):
    """Among candidates; memory grows with the number of candidates, not of all pairs.

    The order within a pair always counts as a choice: one of the two may be no candidate. A merge
    that was none, of a demonstrator without candidates, adds no gradient.
    """

    at_a_time = 1 << 14
    """Pairs, or as many as there are nodes if these are more: the gradient of a block is one for
    all nodes. What a score is made of takes some hundred times the memory of the score."""

    def __init__(self, policy: PairScorer, batch: TokenBatch, episodes: Episodes) -> None:
        super().__init__(policy, batch, episodes)
        assert episodes.candidates is not None
        self.pairs: CandidatePairs = episodes.candidates

    def measured(self, ordered: bool) -> MergeTerms:
        return MergeTerms(
            self.log_probs.detach(),
            self._softmax.log_total.where(self.episodes.steps, 0.0),
            self._nats / self.episodes.most_entropy(ordered),
        )

    @cached_property
    def log_probs(self) -> Float[Tensor, "B M"]:
        log_probs = self._chosen - self._intervals.log_totals(self._scores)
        never = torch.where(self.episodes.steps, IMPOSSIBLE, 0.0)
        return torch.where(self._possible, log_probs, never).clamp(max=0.0)

    def backward(
        self,
        measured: MergeTerms,
        advantages: Float[Tensor, "B M"],
        entropy_coefficient: Float[Tensor, "B 1"],
        ordered: bool,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        size, steps = len(self.episodes.merges), self.episodes.steps
        advantages = advantages * self._possible / size
        price = entropy_coefficient / steps.sum(1, keepdim=True).clamp(min=1) * steps / size
        losses = {
            "policy": -(advantages * measured.log_prob).sum(),  # 0 where it was impossible
            "entropy": (price * measured.entropy).sum(),
        }
        # In closed form: the gradient of log p(a) is 1[a] - p, of the entropy -p (log p + H).
        totals, scores = measured.log_total, self._scores.detach()
        if price.any():
            price = price / self.episodes.most_entropy(ordered)
            spread = price * (totals - self._nats)
            gradient = self._intervals.sums(scores, totals, advantages + spread)
            gradient -= self._intervals.sums(scores, totals, price) * scores
        else:
            gradient = self._intervals.sums(scores, totals, advantages)
        torch.autograd.backward(
            [self._scores, self._chosen], [gradient, -advantages], retain_graph=True
        )
        return losses

    @cached_property
    def _intervals(self) -> Intervals:
        return Intervals(self.pairs.row, self.pairs.times, self.pairs.size, self.pairs.steps)

    @cached_property
    def _scores(self) -> Float[Tensor, "E"]:
        return self._scores_of(self.pairs.row[:, None], self.pairs.nodes)

    @cached_property
    def _chosen(self) -> Float[Tensor, "B M"]:
        """The scores of the merges that were made; 0 in padding."""
        merges = self.episodes.merges
        rows = torch.arange(self.pairs.size, device=merges.device)[:, None, None]
        scores = self._scores_of(rows, merges.clamp(min=0))
        return scores.where(self.episodes.steps, 0.0)

    def _scores_of(
        self, rows: Int64[Tensor, "..."], nodes: Int64[Tensor, "*pairs 2"]
    ) -> Float[Tensor, "*pairs"]:
        """Scores of pairs of nodes, a block at a time."""
        at, known = self.nodes.place[rows, nodes], self.nodes.known
        first, second = known.first, known.second
        blocks = at.view(-1, 2).split(max(self.at_a_time, len(first)))
        if len(blocks) == 1:
            scores = _block(self.policy, first, second, *blocks)
        else:
            scores = torch.cat(
                [
                    checkpoint(
                        *(_block, self.policy, first, second, block),
                        use_reentrant=False,
                        preserve_rng_state=False,
                    )
                    for block in blocks
                ]
            )
        return scores.view(at.shape[:-1])

    @cached_property
    def _possible(self) -> Bool[Tensor, "B M"]:
        """True <--> the merge was made, and was a candidate."""
        return self.pairs.chosen(self.episodes.merges)

    @cached_property
    def _softmax(self) -> Softmax:
        return self._intervals.softmax(self._scores.detach())

    @cached_property
    def _nats(self) -> Float[Tensor, "B M"]:
        """The entropy of every choice."""
        nats = self._softmax.log_total - self._softmax.mean_score
        return nats.where(self.episodes.steps, 0.0).clamp(min=0.0)


def _block(
    policy: PairScorer,
    first: Float[Tensor, "R H"],
    second: Float[Tensor, "R H"],
    at: Int64[Tensor, "E 2"],
) -> Float[Tensor, "E"]:
    """Gathered by one index, whose gradient is several times faster.

    No method: the graph keeps what it will compute again, and terms that keep the graph would never
    be freed.
    """
    pairs = first.index_select(0, at[:, 0]), second.index_select(0, at[:, 1])
    return bounded(policy.paired_scores(*pairs))


class Softmax(NamedTuple):
    """Softmax of every step of every episode."""

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
        """Nodes of the trees that make up each interval: a choice and a node an entry.

        The trees follow one behind the other, each as a heap: node 1 the root, ``2 n`` and
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
