"""Terms of episodes among all pairs under a pair scorer: every node is evaluated once.

A pair keeps its score while both of its nodes are active, so what depends on its probability at
every step of an episode depends on the step through the normaliser alone. Sums over its lifetime,
from the step at which the younger node is there to the step at which the first of the two is
merged, then need no pass over all pairs at every step.
"""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from agents.likelihood.base import PolicyTerms
from agents.rollouts.pair_scores import Features, PairScorer, bounded
from agents.rollouts.rollout import Episodes, MergeTerms, membership
from htm_env.softmax import choice_entropy, log_totals, weights_of
from htm_env.types import SampleRows, TokenBatch


class ScorerTerms(PolicyTerms):
    """Terms of a pair scorer: every node is evaluated once."""

    def __init__(self, policy: PairScorer, batch: TokenBatch, episodes: Episodes) -> None:
        self.policy, self.episodes = policy, episodes
        self.nodes = NodeFeatures(policy, batch, episodes)

    @cached_property
    def values(self) -> Float[Tensor, "B M"]:
        return self.policy.values_along(
            self.nodes.pooled, self.episodes.merges, self.episodes.num_leaves
        )


class PairTerms(ScorerTerms):
    """Among all pairs."""

    @cached_property
    def scores(self) -> Float[Tensor, "B N N"]:
        """Scores of all pairs of nodes that could be merged."""
        nodes = self.nodes
        return self.policy.node_scores(nodes.first, nodes.second, lambda: self.episodes.coactive)

    def measured(self, ordered: bool) -> MergeTerms:
        scores, episodes = self.scores.detach(), self.episodes
        log_prob, log_total = sequence_log_probs(scores, episodes.merges, episodes.active)
        active = membership(episodes.active, scores.shape[1])
        nats = choice_entropy(bounded(scores), active, ordered)
        entropy = (nats / episodes.most_entropy(ordered)).where(episodes.steps, 0.0)
        return MergeTerms(*(values.to(scores.dtype) for values in (log_prob, log_total, entropy)))

    @cached_property
    def log_probs(self) -> Float[Tensor, "B M"]:
        return sequence_log_probs(self.scores, self.episodes.merges, self.episodes.active)[0]

    def backward(
        self,
        measured: MergeTerms,
        advantages: Float[Tensor, "B M"],
        entropy_coefficient: Float[Tensor, "B 1"],
        ordered: bool,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        # In closed form: the gradient by the score of a pair sums weight times probability over the
        # steps at which both nodes were active. The graph is kept for the values.
        own = self.episodes, measured, advantages, entropy_coefficient, ordered
        gradient, losses = score_gradient(self.scores.detach(), *own)
        self.scores.backward(gradient, retain_graph=True)
        return losses

    def tree_scores(self) -> Float[Tensor, "B N N"]:
        nodes, exists = self.nodes, self.episodes.exists
        return self.policy.node_scores(
            nodes.first, nodes.second, lambda: exists[:, :, None] & exists[:, None]
        )


def sequence_log_probs(
    scores: Float[Tensor, "B N N"], merges: Int64[Tensor, "B M 2"], active: Int64[Tensor, "B M P"]
) -> tuple[Float[Tensor, "B M"], Float[Tensor, "B M"]]:
    """The log-probability of every merge under these scores, and the normaliser; 0 in padding.

    In double precision, and differentiable.
    """
    scores = bounded(scores)
    rows = torch.arange(len(scores), device=scores.device)[:, None]
    first, second = merges.clamp(min=0).unbind(-1)
    made, totals = merges[..., 0] >= 0, log_totals(scores, membership(active, scores.shape[1]))
    log_probs = (scores[rows, first, second] - totals).where(made, 0.0).clamp(max=0.0)
    return log_probs, totals.where(made, 0.0)


@torch.no_grad()
def score_gradient(
    scores: Float[Tensor, "B N N"],
    episodes: Episodes,
    measured: MergeTerms,
    advantages: Float[Tensor, "B M"],
    entropy_coefficient: Float[Tensor, "B 1"],
    ordered_entropy: bool,
) -> tuple[Float[Tensor, "B N N"], dict[str, Float[Tensor, ""]]]:
    """The gradient of REINFORCE's loss with respect to the scores of all pairs of nodes; its parts.

    In closed form: that of ``log p(a)`` is ``1[a] - p``, that of the entropy ``- p (log q + H)``,
    with ``q`` the probability of the choice that the pair belongs to: itself, or both its orders.
    """
    size, steps = len(scores), episodes.steps
    advantages = advantages * steps / size
    price = entropy_coefficient / steps.sum(1, keepdim=True).clamp(min=1) * steps / size
    most = episodes.most_entropy(ordered_entropy)
    losses = {
        "policy": -(advantages * measured.log_prob).sum(),
        "entropy": (price * measured.entropy).sum(),
    }
    price = price / most
    lifetimes = Lifetimes(episodes.merges, episodes.exists, episodes.num_leaves)
    spread = price * (measured.log_total - measured.entropy * most)
    gradient = lifetimes.sums(scores, measured.log_total, advantages + spread)
    if price.any():
        log_weight = scores if ordered_entropy else scores.logaddexp(scores.transpose(1, 2))
        gradient -= lifetimes.sums(scores, measured.log_total, price) * log_weight
    row, _ = steps.nonzero(as_tuple=True)
    first, second = episodes.merges[steps].unbind(1)
    gradient[row, first, second] -= advantages[steps]
    return gradient, losses


class Lifetimes:
    """When each pair of nodes of ``B`` episodes could be merged.

    Args:
        merges: child nodes of every merge; -1 pads, at the end.
        exists: True <--> the node was there, from the start or by a merge.
        num_leaves: tokens of every sample.
    """

    def __init__(
        self,
        merges: Int64[Tensor, "B M 2"],
        exists: Bool[Tensor, "B N"],
        num_leaves: Int64[Tensor, "B"],
    ) -> None:
        self.steps = merges.shape[1]
        num_nodes, device = exists.shape[1], merges.device
        length = (merges[..., 0] >= 0).sum(1, keepdim=True)  # (B, 1)
        made = torch.arange(num_nodes, device=device) - num_leaves[:, None]  # by which merge
        born = (made + 1).clamp(min=0).masked_fill(~exists, self.steps)
        time = torch.arange(self.steps, device=device).repeat_interleave(2)
        died = (length - 1).expand(-1, num_nodes + 1).clone()  # the last is for padding
        died.scatter_(1, merges.flatten(1) % (num_nodes + 1), time.expand(len(merges), -1))
        died = died[:, :-1]
        self.first_step = torch.maximum(born[:, :, None], born[:, None])  # (B, N, N)
        self.last_step = torch.minimum(died[:, :, None], died[:, None])
        self.pairs = self.first_step <= self.last_step
        """True <--> the pair could be merged at some step."""
        self.pairs.diagonal(dim1=1, dim2=2).fill_(False)

    def sums(
        self,
        scores: Float[Tensor, "B N N"],
        log_totals: Float[Tensor, "B M"],
        weights: Float[Tensor, "B M"],
    ) -> Float[Tensor, "B N N"]:
        """``sum over t of weights[t] * exp(scores[i, j] - log_totals[t])``; 0 for other pairs.

        ``weights`` may have any sign; every term's exponential is at most 1 where the totals are
        those of the scores. The sums from every first step to every last one are kept relative to
        the smallest total among their steps, as in a softmax that is computed as it goes, so that
        nothing overflows, and a step at which everything was less likely loses no digits.
        """
        batch = len(scores)
        smallest = log_totals.new_full((batch, self.steps, self.steps), torch.inf)
        summed = torch.zeros_like(smallest)
        low, total = smallest[:, :, 0].clone(), summed[:, :, 0].clone()  # by the first step
        for last in range(self.steps):
            now = log_totals[:, last, None]
            lower = torch.minimum(low[:, : last + 1], now)
            kept = total[:, : last + 1] * weights_of(lower - low[:, : last + 1])
            added = weights_of(lower - now)
            total[:, : last + 1] = torch.addcmul(kept, weights[:, last, None], added)
            low[:, : last + 1] = lower
            smallest[:, : last + 1, last], summed[:, : last + 1, last] = lower, total[:, : last + 1]
        index = (self.first_step * self.steps + self.last_step).where(self.pairs, 0).flatten(1)
        lowest = smallest.flatten(1).gather(1, index).view_as(scores)
        held = summed.flatten(1).gather(1, index).view_as(scores)
        return (weights_of(scores - lowest) * held).where(self.pairs, 0.0)


class NodeFeatures:
    """Features of all nodes of episodes of these samples, row by row; with gradients.

    Padding is not evaluated, and what several trees of a sample share only once: their embeddings
    must be one function of tokens and merges. (On CUDA the gradients of three trees and more are
    summed in no fixed order.)
    """

    def __init__(self, policy: PairScorer, batch: TokenBatch, episodes: Episodes) -> None:
        rows, counts = SampleRows.of(batch), episodes.leaf_counts
        repeated = rows.repeated(episodes.merges, episodes.num_leaves)
        evaluated = (counts > 0) & ~repeated
        place = (evaluated.flatten().cumsum(0) - 1).view(counts.shape)
        nodes = evaluated.flatten().nonzero()[:, 0]
        self.place = torch.where(repeated, place[rows.first_row], place)
        """(B, N) where every node's are; where there is no node, those of one that is there."""
        self.known: Features = policy.features(
            episodes.nodes.flatten(0, 1)[nodes], counts.flatten()[nodes]
        )
        """Features of the nodes that were evaluated, in one axis."""

    @cached_property
    def first(self) -> Float[Tensor, "B N H"]:
        """Features of each node for scores of pairs in which it comes first."""
        return self._table(self.known.first)

    @cached_property
    def second(self) -> Float[Tensor, "B N H"]:
        """... and when it comes second."""
        return self._table(self.known.second)

    @cached_property
    def pooled(self) -> Float[Tensor, "B N V"]:
        """Features that are averaged over the nodes of a state for its value."""
        return self._table(self.known.pooled)

    def _table(self, values: Float[Tensor, "R F"]) -> Float[Tensor, "B N F"]:
        if len(values) < self.place.numel():
            values = values.index_select(0, self.place.flatten())
        return values.unflatten(0, self.place.shape)
