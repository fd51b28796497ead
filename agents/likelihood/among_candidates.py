"""What a pair scorer thinks of episodes among candidates: every pair is scored once."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from agents.likelihood.base import Judgement
from agents.likelihood.intervals import Intervals, Softmax
from agents.likelihood.node_features import NodeFeatures
from agents.networks.base import NodePolicy, bounded
from agents.rollouts.rollout import Rollout
from htm_env.types import TokenBatch
from replay import CandidatePairs

IMPOSSIBLE = -1e4
"""The log-probability of a merge that was no candidate: its probability is 0."""
BLOCK = 1 << 14
"""Pairs that are scored at a time, or as many as there are nodes if these are more: the gradient of
a block is one for all nodes. What a score is made of takes some hundred times the memory of the
score: of long episodes it is computed again for the gradient (Chen et al. 2016, "Training deep nets
with sublinear memory cost")."""


class CandidateJudgement(Judgement):
    """Of a pair scorer alone; memory grows with the number of candidates, not of all pairs.

    The order within a pair always counts as a choice: one of the two may be no candidate. A merge
    that was none, of a demonstrator who knows of no candidates, teaches nothing.
    """

    def __init__(self, policy: NodePolicy, batch: TokenBatch, episodes: Rollout) -> None:
        assert episodes.candidates is not None
        self.policy, self.episodes = policy, episodes
        self.pairs: CandidatePairs = episodes.candidates
        self.nodes = NodeFeatures(policy, batch, episodes)

    def judged(self, ordered: bool) -> Rollout:
        softmax = self._softmax
        return replace(
            self.episodes,
            log_prob=self.log_probs.detach(),
            log_total=softmax.log_total.where(self.episodes.steps, 0.0),
            entropy=self._nats / self.episodes.most_entropy(ordered),
        )

    @cached_property
    def log_probs(self) -> Float[Tensor, "B M"]:
        log_probs = self._chosen - self._intervals.log_totals(self._scores)
        never = torch.where(self.episodes.steps, IMPOSSIBLE, 0.0)
        return torch.where(self._possible, log_probs, never).clamp(max=0.0)

    @cached_property
    def values(self) -> Float[Tensor, "B M"]:
        return self.policy.values_along(
            self.nodes.pooled, self.episodes.merges, self.episodes.num_leaves
        )

    def learn(
        self,
        episodes: Rollout,
        advantages: Float[Tensor, "B M"],
        entropy_coefficient: Float[Tensor, "B 1"],
        ordered: bool,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        size, steps = len(episodes.merges), episodes.steps
        advantages = advantages * self._possible / size
        price = entropy_coefficient / steps.sum(1, keepdim=True).clamp(min=1) * steps / size
        losses = {
            "policy": -(advantages * episodes.log_prob).sum(),  # 0 where it was impossible
            "entropy": (price * episodes.entropy).sum(),
        }
        # In closed form: the gradient of log p(a) is 1[a] - p, of the entropy -p (log p + H).
        totals, scores = episodes.log_total, self._scores.detach()
        if price.any():
            price = price / episodes.most_entropy(ordered)
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
        """Of pairs of nodes, a block at a time."""
        at, known = self.nodes.place[rows, nodes], self.nodes.known
        first, second = known.first, known.second
        blocks = at.view(-1, 2).split(max(BLOCK, len(first)))
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
    policy: NodePolicy,
    first: Float[Tensor, "R H"],
    second: Float[Tensor, "R H"],
    at: Int64[Tensor, "E 2"],
) -> Float[Tensor, "E"]:
    """Gathered by one index, whose gradient is several times faster.

    No method: the graph keeps what it will compute again, and with it a judgement would keep itself
    alive for ever.
    """
    pairs = first.index_select(0, at[:, 0]), second.index_select(0, at[:, 1])
    return bounded(policy.paired_scores(*pairs))
