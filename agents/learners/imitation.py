"""Imitation: of fixed policies at first, and of better trees wherever a policy fails.

At first a policy clones a demonstrator, a fixed policy (:class:`Cloning`); where several could
demonstrate, the one is selected whose trees the autoencoder learns best (:class:`Selection`). Later
a local search around the greedy trees of samples on which the policy fails finds trees to imitate
(:class:`LocalSearch`), also in the updates that are the autoencoder's alone (:class:`PolicyShare`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.config.schedules import Points, piecewise_linear
from agents.learners.baselines import discounted_returns, value_loss
from agents.likelihood.base import PolicyTerms
from agents.optim.optimizers import PolicyOptimizer
from agents.rollouts.rollout import Deviation, Episodes, mean_entropy
from htm_env.types import TokenBatch

KNOWN = {
    "HTM-Trees-v0": ("nearest_sorted",),
    "HTM-Crosses-v0": ("even_sorted",),
    "HTM-Digits-v0": ("balanced_sorted",),
    "HTM-Keys-v0": (),
}
"""The demonstrators whose trees were best for REINFORCE on the validation split in the end. A
selection over a tenth of the budget finds those of Crosses and Digits as well; on Trees
``even_sorted`` leads then, and is overtaken. Keys has none: no fixed policy reads the key."""
CONTESTANTS = ("nearest_sorted", "even_sorted", "balanced_sorted")
"""The demonstrators of all other data."""
BY_COST = ("greedy",)
"""The demonstrators under a known merger, where a merge's cost is known without decoding."""
HEAD_START = 0.1
"""Margin by which the first demonstrator may be worse and still be selected, a logarithm: it is the
default without a selection, and small differences early on say little about the end."""
BROKEN = 1e6
"""Value of an error that is not finite."""
WARM_UP = 2 / 3
"""Share of the turns so far that do not count: early on, whatever is simplest leads."""
RANKS = 5
"""Pairs that are tried at a merge, the second best first."""
MOST_SAMPLES, MOST_TREES = 4, 256
"""Samples that are searched and trees that are made in one call, at most."""


def demonstrators_of(env_id: str, decodes: bool = True) -> tuple[str, ...]:
    """The default demonstrators on this id's data; perhaps none.

    ``decodes``: False <--> the merger is known, and with it what a pair costs.
    """
    return KNOWN.get(env_id, CONTESTANTS) if decodes else BY_COST


class Selection:
    """Demonstrators that take turns until ``end``, a share of the budget; then only the best one.

    What counts is the mean logarithm of the errors with which the autoencoder, which learns from
    all of them meanwhile, reconstructs what each has merged lately. Data differ in what suits them:
    trees by distance keep what belongs together in one subtree, trees of one shape are more alike.

    One alone is selected at once. Costs of a known merger, which have no natural zero, are no
    ``ratios``: their mean itself counts. Raises ``ValueError`` for an end outside [0, 1].
    """

    def __init__(self, names: Sequence[str], end: float, *, ratios: bool = True) -> None:
        if not 0 <= end <= 1:
            raise ValueError(f"the selection ends at {end}; expected a share of the budget, 0 to 1")
        self.names = tuple(dict.fromkeys(names))
        self.end = end if len(self.names) > 1 else 0.0
        self._ratios = ratios
        self._errors: dict[str, list[float]] = {name: [] for name in self.names}

    def next(self, progress: float) -> str:
        """The demonstrator with the fewest turns, or the best one after the end.

        Raises ``ValueError`` where there are none.
        """
        if progress >= self.end:
            return self.best
        return min(self.names, key=lambda name: len(self._errors[name]))

    @property
    def best(self) -> str:
        """The best so far; the first where none is better by more than its head start.

        Raises ``ValueError`` where there are none.
        """
        if not self.names:
            raise ValueError("there is no demonstrator; expected at least one fixed policy")
        first, ahead = self.names[0], HEAD_START if self._ratios else 0.0
        return min(self.names, key=lambda name: self._mean(name) - ahead * (name == first))

    def report(self, name: str, error: float, progress: float) -> None:
        """The mean error of what this demonstrator has merged; after the end it changes nothing."""
        if progress < self.end:
            finite = error if math.isfinite(error) else BROKEN
            self._errors[name].append(math.log(max(finite, 1e-30)) if self._ratios else finite)

    def _mean(self, name: str) -> float:
        turns = min(map(len, self._errors.values()))  # equally many of all
        errors = self._errors[name][:turns] if turns else self._errors[name]
        lately = errors[int(WARM_UP * len(errors)) :]
        return sum(lately) / len(lately) if lately else math.inf

    def state(self) -> dict[str, Any]:
        return {"errors": {name: list(errors) for name, errors in self._errors.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        self._errors = {name: list(errors) for name, errors in state["errors"].items()}


@dataclass
class Cloning:
    """Raises the likelihood of the merges of demonstrators in a share of the updates."""

    selection: Selection
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

    def learn(
        self, batch: TokenBatch, episodes: Episodes, progress: float
    ) -> tuple[Float[Tensor, "B"], dict[str, float]]:
        """One step towards these episodes; returns their final errors, and scalars."""
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
        return error, {
            **self.optimizer.step(losses, progress),
            "policy/entropy": mean_entropy(episodes, measured, self.ordered),
            "train/return": float(rewards.sum(1).mean()),
            f"train/{self.error_name}": float(error.mean()),
        }

    def report(self, name: str, error: float, progress: float) -> dict[str, float]:
        """Report the mean error of this update's trees to the selection; returns its scalar."""
        self.selection.report(name, error, progress)
        return {f"demonstrations/{self.error_name}_{name}": error}


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
