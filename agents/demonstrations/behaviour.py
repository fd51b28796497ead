"""Stochastic versions of fixed policies, with the exact probability of every merge."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.fixed import FixedPolicy
from agents.fixed.order import compare, node_centroids, random_order
from agents.fixed.slot_trees import random_tree
from agents.likelihood.among_all import sequence_log_probs
from agents.likelihood.trees import MOST_STATES, SEQUENCES, exact_tree_log_probs
from agents.rollouts.pair_scores import ILLEGAL, PairTable, Positions, bounded
from agents.rollouts.rollout import choose_pairs, probabilities
from htm_env.autoencoder import TreeEncoder
from htm_env.forest import same_trees
from htm_env.types import TokenBatch
from replay import number_of_sequences, tree_log_prob


class Behaviour(ABC):
    """A stochastic policy on one batch of samples."""

    @abstractmethod
    def episodes(
        self, generator: torch.Generator
    ) -> tuple[Int64[Tensor, "B M 2"], Float[Tensor, "B M"]]:
        """One complete episode of every sample, and the log-probability of its merges (0 pads)."""

    @abstractmethod
    def log_prob(self, merges: Int64[Tensor, "B M 2"]) -> Float[Tensor, "B M"]:
        """The log-probability of any merges of the samples; 0 in padding."""

    @abstractmethod
    def tree_log_prob(
        self, merges: Int64[Tensor, "B M 2"], generator: torch.Generator
    ) -> Float[Tensor, "B"]:
        """The log-probability of complete ordered trees, however they are reached.

        Exact, but for trees to which too many forests lead: see the class.
        """


@dataclass(frozen=True)
class PlanMixture(Behaviour):
    """Follows a plan with probability ``1 - epsilon``, else merges at random, a whole episode long.

    The merges so far tell which of the two it more likely is, so with the probability
    ``P`` of a beginning of an episode, ``mu(a_t | before) = P(before, a_t) / P(before)``, where
    ``P = (1 - epsilon) P_plan + epsilon P_uniform``.

    Where a plan's order within pairs is drawn at random (``turned``), either order follows it, with
    probability 1/2 each. Anything else that a fixed policy draws (``cosine``'s orders; what
    ``sorted`` does with ties) is drawn once, with the plan, and the policy is the one given that.
    """

    batch: TokenBatch
    autoencoder: TreeEncoder
    plan: Int64[Tensor, "B M 2"]
    epsilon: float
    turned: bool
    """True <--> the order within the plan's pairs is a fair coin each time."""

    @torch.no_grad()
    def episodes(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        merges, arguments = self.plan, (self.batch, self.autoencoder, generator)
        if self.turned:
            merges = random_order(merges, *arguments)
        device = generator.device
        explores = torch.rand(len(merges), generator=generator, device=device) < self.epsilon
        merges = torch.where(
            explores.to(merges.device)[:, None, None], random_tree(*arguments), merges
        )
        return merges, self.log_prob(merges)

    def log_prob(self, merges: Int64[Tensor, "B M 2"]) -> Float[Tensor, "B M"]:
        same = (merges == self.plan).all(-1)
        if self.turned:
            same |= (merges == self.plan.flip(-1)).all(-1)
        followed = (same.int().cumprod(dim=1) > 0).double().log()  # 0, or -inf once it is left
        beginning = torch.logaddexp(
            self._log_plan + followed + self._log_turns(merges.shape[1]),
            math.log(self.epsilon) + self._log_uniform(merges).cumsum(dim=1),
        )
        before = torch.cat([torch.zeros_like(beginning[:, :1]), beginning[:, :-1]], dim=1)
        given = (beginning - before).clamp(max=0.0).masked_fill(merges[..., 0] < 0, 0.0)
        return given.to(self.batch.tokens.dtype)

    def tree_log_prob(
        self, merges: Int64[Tensor, "B M 2"], generator: torch.Generator
    ) -> Float[Tensor, "B"]:
        """Exact for a tree of any size: the plan is one of its merge sequences, or none."""
        num_leaves = self.batch.num_tokens
        made = (merges[..., 0] >= 0).sum(1)
        turns = self._log_turns(merges.shape[1] + 1)[(made - 1).clamp(min=0)] * (made > 0)
        planned = same_trees(self.plan, merges, num_leaves, self.turned).double().log()
        uniform = self._log_uniform(merges).sum(1) + number_of_sequences(merges, num_leaves).log()
        total = torch.logaddexp(self._log_plan + planned + turns, math.log(self.epsilon) + uniform)
        return total.clamp(max=0.0).to(self.batch.tokens.dtype)

    @property
    def _log_plan(self) -> float:
        return math.log1p(-self.epsilon) if self.epsilon < 1 else -math.inf

    def _log_turns(self, steps: int) -> Float[Tensor, "M"]:
        """The log-probability of the orders within the plan's first 1, 2, ... pairs."""
        count = torch.arange(1, steps + 1, device=self.plan.device).double()
        return -math.log(2) * count * self.turned

    def _log_uniform(self, merges: Tensor) -> Tensor:
        steps = torch.arange(merges.shape[1], device=merges.device)
        active = (self.batch.num_tokens[:, None] - steps).clamp(min=2).double()
        return -(active * (active - 1)).log().masked_fill(merges[..., 0] < 0, 0.0)


class SoftNearest(Behaviour):
    """At every step a softmax over the negative distances of the centroids of all active pairs.

    The child that comes first in sorted order (the smaller centroid, first coordinate, then the
    next) is put first with probability ``1 - order_epsilon``; either, where all coordinates tie.
    """

    def __init__(
        self,
        batch: TokenBatch,
        autoencoder: TreeEncoder,
        temperature: float,
        order_epsilon: float,
        most_states: int = MOST_STATES,
    ) -> None:
        """``most_states``: forests on the way to a tree whose probability is exact."""
        self.batch, self.autoencoder = batch, autoencoder
        self.temperature, self.order_epsilon = temperature, order_epsilon
        self.most_states = most_states

    @torch.no_grad()
    def episodes(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        num_tokens = self.batch.num_tokens
        order = num_tokens.argsort(descending=True, stable=True)
        merges, log_prob = self._episodes(self.batch.rows(order), generator)
        back = order.argsort()
        return merges[back], log_prob[back]

    def _episodes(self, batch: TokenBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Episodes of samples whose sizes fall from row to row."""
        centroids = self.autoencoder.standardise(batch.tokens).double()
        centroids = centroids * batch.present[..., None]  # (B, P, T)
        counts = batch.present.double()
        scores = PairTable(
            self._scores(centroids[:, :, None], centroids[:, None]), batch.present, ILLEGAL
        )
        positions = Positions(batch.present, batch.num_tokens - 1)
        log_prob = torch.zeros_like(batch.tokens[:, 1:, 0])
        for step in positions.steps():
            now, rows = scores.view(step), step.rows
            draws = torch.rand(
                2, len(rows), generator=generator, dtype=torch.float64, device=now.device
            )
            first, second, _ = choose_pairs(probabilities(now), draws)
            chosen = now[rows, first, second] - now.flatten(1).logsumexp(1)
            log_prob[rows, step.time] = chosen.clamp(max=0.0).to(log_prob.dtype)
            positions.merge(step, first, second)
            pair = torch.stack([first, second], dim=1)
            share = counts[rows[:, None], pair]
            total = share.sum(1, keepdim=True)
            new = (centroids[rows[:, None], pair] * (share / total)[..., None]).sum(1)
            centroids[rows, step.high] = centroids[rows, step.last]
            counts[rows, step.high] = counts[rows, step.last]
            centroids[rows, step.low], counts[rows, step.low] = new, total[:, 0]
            known = centroids[: len(rows), : step.width]
            scores.replace(
                step, self._scores(new[:, None], known), self._scores(known, new[:, None])
            )
        return positions.merges, log_prob

    @torch.no_grad()
    def log_prob(self, merges: Int64[Tensor, "B M 2"]) -> Float[Tensor, "B M"]:
        active = Positions.of(self.batch.present, merges).active
        log_prob, _ = sequence_log_probs(self._node_scores(merges), merges, active)
        return log_prob.to(self.batch.tokens.dtype)

    @torch.no_grad()
    def tree_log_prob(
        self, merges: Int64[Tensor, "B M 2"], generator: torch.Generator
    ) -> Float[Tensor, "B"]:
        """Exact for trees of up to 20 tokens (see ``likelihood/trees.py``); otherwise estimated
        from some of a tree's sequences: consistent, not unbiased."""

        def of_sequences(sequences: Tensor, tree: Tensor) -> Tensor:
            samples = self.batch.rows(many[tree])
            again = SoftNearest(samples, self.autoencoder, self.temperature, self.order_epsilon)
            return again.log_prob(sequences).sum(1)

        scores, num_leaves = self._node_scores(merges), self.batch.num_tokens
        result = exact_tree_log_probs(scores, merges, num_leaves, self.most_states).to(
            self.batch.tokens.dtype
        )
        many = result.isnan().nonzero()[:, 0]
        if len(many):
            result[many] = tree_log_prob(
                merges[many], num_leaves[many], of_sequences, generator, sequences=SEQUENCES
            )
        return result

    def _node_scores(self, merges: Tensor) -> Float[Tensor, "B N N"]:
        """Score of every ordered pair of nodes of the trees."""
        centroids = node_centroids(merges, self.batch, self.autoencoder)
        return self._scores(centroids[:, :, None], centroids[:, None])

    def _scores(self, first: Tensor, second: Tensor) -> Tensor:
        """Log-probability, but for a constant, of merging two centroids in this order."""
        distance = torch.linalg.vector_norm(first - second, dim=-1)
        comes = compare(*torch.broadcast_tensors(first, second))
        sorted_share = torch.where(comes < 0, 1 - self.order_epsilon, self.order_epsilon)
        share = torch.where(comes == 0, 0.5, sorted_share)
        return bounded(-distance / self.temperature) + share.log()


SOFTENED = ("nearest", "nearest_sorted")
"""The policies that choose by distance, step by step."""


@dataclass(frozen=True)
class Demonstrator:
    """A stochastic version of a fixed policy.

    Raises ``ValueError`` for numbers out of range.
    """

    policy: FixedPolicy
    """``random`` is its own stochastic version."""
    epsilon: float = 0.1
    """Probability of a uniformly random episode instead of the plan; not of the nearest ones."""
    temperature: float = 0.05
    """Temperature of the softmax over standardised distances; only of the nearest ones."""
    order_epsilon: float = 0.05
    """Probability of turning a pair around; only of nearest_sorted."""

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"epsilon is {self.epsilon}; expected more than 0 and at most 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; expected more than 0")
        if not 0 < self.order_epsilon < 1:
            raise ValueError(f"order_epsilon is {self.order_epsilon}; expected between 0 and 1")

    @torch.no_grad()
    def behaviour(self, batch: TokenBatch, generator: torch.Generator) -> Behaviour:
        """The policy on these samples; plans are drawn now, where a fixed policy draws any."""
        rule, autoencoder = self.policy.rule, self.policy.autoencoder
        if rule.name in SOFTENED:
            order_epsilon = self.order_epsilon if rule.name == "nearest_sorted" else 0.5
            return SoftNearest(batch, autoencoder, self.temperature, order_epsilon)
        plan = self.policy.plan(batch, generator)
        epsilon = 1.0 if rule.shape is random_tree else self.epsilon
        return PlanMixture(batch, autoencoder, plan, epsilon, rule.order is random_order)
