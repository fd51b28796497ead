"""Imitation: of a fixed policy at first, and of better trees wherever a policy fails.

At first a policy clones a demonstrator, a fixed policy (:class:`Cloning`). Later a local search
around the greedy trees of samples on which the policy fails finds trees to imitate
(:class:`LocalSearch`), also in the updates that are the autoencoder's alone (:class:`PolicyShare`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.config.schedules import Points, piecewise_linear
from agents.learners.baselines import discounted_returns, value_loss
from agents.learners.selection import Halving
from agents.likelihood.base import PolicyTerms
from agents.optim.optimizers import PolicyOptimizer
from agents.rollouts.rollout import Deviation, Episodes, mean_entropy
from htm_env.types import TokenBatch

RANKS = 5
"""Pairs that are tried at a merge, the second best first."""
MOST_SAMPLES, MOST_TREES = 4, 256
"""Samples that are searched and trees that are made in one call, at most."""


@dataclass
class Cloning:
    """Raises the likelihood of a demonstrator's merges in a share of the updates."""

    selection: Halving
    """Its best is the demonstrator."""
    share: Points
    """(share of the budget, probability) points of an update that clones."""
    terms_of: Callable[[TokenBatch, Episodes], PolicyTerms]
    """The terms of episodes under the policy that learns."""
    rewards_of: Callable[[TokenBatch, Episodes], tuple[Tensor, Tensor]]
    """The rewards ``(B, M)`` and final errors ``(B,)`` of episodes."""
    optimizer: PolicyOptimizer
    generator: torch.Generator
    ordered: bool = False
    """True <--> the order within a pair counts as a choice in the logged entropy."""
    value_weight: float = 0.0
    """Weight of the loss of the critic, which learns the returns; 0 for none."""
    discount: float = 1.0
    """Discount of those returns."""
    error_name: str = "nmse"
    """What the error of an episode is called (see ``TreeEncoder.error_name``)."""

    def due(self, progress: float) -> bool:
        """True <--> this update clones; drawn where both are possible."""
        share = piecewise_linear(self.share, progress)
        if share <= 0 or not self.selection.names:
            return False
        generator = self.generator
        return float(torch.rand((), generator=generator, device=generator.device)) < share

    def learn(self, batch: TokenBatch, episodes: Episodes, progress: float) -> dict[str, float]:
        """One step towards these episodes of the demonstrator; returns scalars."""
        rewards, error = self.rewards_of(batch, episodes)
        terms = self.terms_of(batch, episodes)
        self.optimizer.zero()
        measured = terms.measured(self.ordered)
        ones = torch.ones_like(measured.log_prob) * episodes.steps
        losses = terms.backward(measured, ones, ones[:, :1] * 0, self.ordered, self.generator)
        losses["cloning"] = losses.pop("policy")
        del losses["entropy"]  # nothing is paid for it here
        if self.value_weight:
            returns = discounted_returns(rewards, self.discount)
            losses["value"] = value_loss(terms.values, returns, episodes.steps)
            (self.value_weight * losses["value"]).backward()
        return {
            **self.optimizer.step(losses, progress),
            "policy/entropy": mean_entropy(episodes, measured, self.ordered),
            "train/return": float(rewards.sum(1).mean()),
            f"train/{self.error_name}": float(error.mean()),
            f"demonstrations/{self.error_name}_{self.selection.best}": float(error.mean()),
        }


class Improvements(NamedTuple):
    """Better trees, and the merge of each that made it better."""

    batch: TokenBatch
    episodes: Episodes
    step: Int64[Tensor, "B"]


@dataclass
class LocalSearch:
    """Finds better trees one deviation away from greedy ones, and imitates them.

    Policy gradients cannot correct a failure that is made every time. All trees of the sample are
    the same one, so none is better than another; and the gradient of a choice whose probability is
    1 is 0 anyway. So the sample is merged again with one *deviation*: at one merge the second,
    third, ... best pair is taken, and the best one everywhere else. If a tree of these is much
    better, that one choice is imitated, whose gradient does not vanish. (Imitating what a search
    found better: Anthony, Tian and Barber 2017, "Thinking fast and slow with deep learning and tree
    search"; own episodes that went better than expected: Oh et al. 2018, "Self-imitation
    learning".)
    """

    factor: float
    """A sample whose error is so many times the median of its batch is a failure; 0: no search."""
    roll: Callable[[TokenBatch, Deviation], Episodes]
    """Makes the greedy episodes of samples, but for a deviation in each."""
    errors_of: Callable[[TokenBatch, Episodes], Float[Tensor, "D"]]
    """The ``nmse`` of every episode."""
    terms_of: Callable[[TokenBatch, Episodes], PolicyTerms]
    """The terms of episodes under the policy that learns."""
    generator: torch.Generator
    """Draws which deviations are tried where there are too many."""
    much_better: float = 0.1
    """The error of a tree that is imitated, over that of the failure, at most."""

    def learn(self, batch: TokenBatch, errors: Float[Tensor, "S"]) -> dict[str, Tensor]:
        """Imitate what is found better where greedy trees have these errors.

        Accumulates the gradient; returns the loss, or nothing where nothing was found.
        """
        if not self.factor:
            return {}
        failed = failures(errors, self.factor)
        found = self.improvements(batch.rows(failed), errors[failed]) if len(failed) else None
        if found is None:
            return {}
        terms = self.terms_of(found.batch, found.episodes)
        measured = terms.measured(ordered=True)
        once = torch.zeros_like(measured.log_prob).scatter_(1, found.step[:, None], 1.0)
        losses = terms.backward(measured, once, once[:, :1] * 0, ordered=True)
        return {"failures": losses["policy"]}

    def improvements(self, batch: TokenBatch, errors: Float[Tensor, "F"]) -> Improvements | None:
        """Much better trees of samples with these errors; None where there are none."""
        sample, deviation = deviations(batch.num_tokens, self.generator)
        tried = batch.rows(sample)
        episodes = self.roll(tried, deviation)
        found = self.errors_of(tried, episodes).nan_to_num(torch.inf)
        best = torch.full_like(errors, torch.inf).scatter_reduce_(0, sample, found, "amin")
        better = (found == best[sample]) & (found <= self.much_better * errors[sample])
        rows = better.nonzero()[:, 0]
        if not len(rows):
            return None
        return Improvements(tried.rows(rows), episodes.rows(rows), deviation.step[rows])


def failures(errors: Float[Tensor, "S"], factor: float) -> Int64[Tensor, "F"]:
    """The samples with the largest errors, of those above ``factor`` times the median."""
    bad = (errors > factor * errors.median()) & errors.isfinite()
    largest = errors.where(bad, 0.0).topk(min(MOST_SAMPLES, len(errors)))
    return largest.indices[largest.values > 0]


def deviations(
    num_tokens: Int64[Tensor, "F"], generator: torch.Generator
) -> tuple[Int64[Tensor, "D"], Deviation]:
    """Samples and their deviations: every merge and rank of all, or as many as may be made."""
    steps = torch.arange(int(num_tokens.max()) - 1, device=num_tokens.device)
    ranks = torch.arange(1, RANKS + 1, device=num_tokens.device)
    sample = torch.arange(len(num_tokens), device=num_tokens.device)
    sample, step, rank = torch.cartesian_prod(sample, steps, ranks).unbind(1)
    order = torch.randperm(len(sample), generator=generator, device=generator.device)
    order = order.to(sample.device)
    order = order[step[order] < num_tokens[sample[order]] - 1][:MOST_TREES].sort().values
    return sample[order], Deviation(step[order], rank[order])


@dataclass
class PolicyShare:
    """The share of the updates that train the policy, and what the others do."""

    points: Points
    """(share of the budget, probability) points of an update that trains the policy."""
    search: LocalSearch
    """Corrects the policy's failures in the other updates."""
    optimizer: PolicyOptimizer
    roll: Callable[[TokenBatch], Episodes]
    """Makes the greedy episodes of samples."""
    errors_of: Callable[[TokenBatch, Episodes], Float[Tensor, "B"]]
    """The ``nmse`` of every episode."""
    generator: torch.Generator

    def omits_policy(self, progress: float) -> bool:
        """True <--> the autoencoder learns alone in this update; drawn where both are possible."""
        share = piecewise_linear(self.points, progress)
        if share >= 1:
            return False
        generator = self.generator
        return float(torch.rand((), generator=generator, device=generator.device)) >= share

    def learn(self, batch: TokenBatch, progress: float) -> tuple[Episodes, dict[str, float]]:
        """Greedy trees for the autoencoder, and scalars; the policy learns from failures only."""
        self.optimizer.zero()
        episodes = self.roll(batch)
        error = self.errors_of(batch, episodes)
        losses = self.search.learn(batch, error)
        scalars = self.optimizer.step(losses, progress) if losses else {}
        return episodes, {"train/greedy_nmse": float(error.mean()), **scalars}
