"""Imitation: of a fixed policy at first, and of better trees wherever a policy fails.

At first a policy clones a demonstrator, a fixed policy (:class:`Cloning`). Which one is selected by
successive halving, in the same way for all data (:class:`Halving`; Karnin, Koren and Somekh 2013,
"Almost optimal exploration in multi-armed bandits"; Jamieson and Talwalkar 2016, "Non-stochastic
best arm identification and hyperparameter optimization"). Each order trains an autoencoder of its
own (:class:`Contestant`): what one that all share learns of a family of trees depends on what else
is in the mixture. The winner's goes on learning, so that its steps are not lost. The orders are
followed inexactly, on coordinates that are a little off, as a policy will follow them: an order in
which near ties decide a tree is a bad one to imitate, however good its own trees are.

Later a local search around the greedy trees of samples on which the policy fails finds trees to
imitate (:class:`LocalSearch`), also in the updates that are the autoencoder's alone
(:class:`PolicyShare`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.config.schedules import Points, piecewise_linear
from agents.fixed import FixedPolicy
from agents.fixed.order import TIE
from agents.learners.baselines import discounted_returns, value_loss
from agents.likelihood.base import PolicyTerms
from agents.optim.autoencoder_trainer import AutoencoderTrainer
from agents.optim.optimizers import GuardedOptimizer, PolicyOptimizer
from agents.optim.ranks import Ranks
from agents.rollouts.rollout import Deviation, Episodes, mean_entropy
from htm_env.files import load_weights
from htm_env.forest import same_trees
from htm_env.types import TokenBatch

ORDERS = (
    "balanced_sorted",
    "balanced_hilbert",
    "nearest_sorted",
    "nearest_hilbert",
    "even_sorted",
    "even_hilbert",
    "closest_sorted",
    "closest_hilbert",
    "closest_single_sorted",
)
"""The fixed orders that need no hierarchy, and put every pair into an order of its own. A tree in
random order is left out: an autoencoder learns the same tree in sorted order better."""
BY_COST = ("greedy",)
"""The order under a known merger, where a merge's cost is known without decoding."""
CONVENTIONS, DRAWN = "conventions", 16
"""The name for orders that are drawn at random, and their number (see ``agents.fixed.convention``):
nothing that somebody wrote is seen then."""
BROKEN = 1e6
"""Value of an error that is not finite."""
TREND = 16
"""Laps from which on the fall of an error counts, and not its height alone."""
LAPS = 128
"""Laps of a round at most. Curves of Trees of 15, Digits and Kanji (a seed each) led to one order
from the 96th on; more take time from what comes after."""
OFF = 0.02
"""How far coordinates are off where an order is followed inexactly: a standard deviation, in units
of standardised coordinates."""
COMPARED, LARGEST_COMPARED = 32, 512
"""Samples by which orders with the same trees are found, and their tokens at most: larger trees
take long to compare."""
RANKS = 5
"""Pairs that are tried at a merge, the second best first."""
MOST_SAMPLES, MOST_TREES = 4, 256
"""Samples that are searched and trees that are made in one call, at most."""


def order_names(names: Sequence[str], seed: int) -> tuple[str, ...]:
    """The names of fixed orders, with those that this seed draws for ``conventions``."""
    drawn = [f"convention_{DRAWN * seed + number}" for number in range(DRAWN)]
    return tuple(order for name in names for order in (drawn if name == CONVENTIONS else [name]))


class Halving:
    """Names of which the worse half is left out round by round, until one is left.

    The rounds have as many laps each, :data:`LAPS` if the budget allows: up to ``end``, a share of
    it, their time goes by how many names are left. With equal times the first round, which tells
    the most apart, would end before anything is learned. What counts is where the errors that were
    reported lead (see :func:`expected_errors`): early on, whatever is simplest leads.

    One alone is selected at once. Raises ``ValueError`` for an end outside [0, 1].
    """

    def __init__(self, names: Sequence[str], end: float) -> None:
        if not 0 <= end <= 1:
            raise ValueError(f"the selection ends at {end}; expected a share of the budget, 0 to 1")
        self.names = tuple(dict.fromkeys(names))
        self.end = end
        self.begin(self.names)

    def begin(self, names: Sequence[str]) -> None:
        """Begin with these of the names."""
        self.remaining = list(names)
        """Those that are not left out yet, the best of the last round first."""
        self._begun = tuple(names)
        sizes = [max(1, len(names))]
        while sizes[-1] >= 4:
            sizes.append(sizes[-1] // 2)
        self._ends = [self.end * sum(sizes[: last + 1]) / sum(sizes) for last in range(len(sizes))]
        self._ended = 0  # rounds
        self._laps: list[list[float]] = []  # logarithms of all errors of the remaining, in order

    @property
    def fresh(self) -> bool:
        """True <--> there was no lap, and no round has ended."""
        return not self._laps and not self._ended

    @property
    def open(self) -> bool:
        """True <--> more than one is left."""
        return len(self.remaining) > 1

    @property
    def best(self) -> str:
        """The best of the last round; the first name before any.

        Raises ``ValueError`` where there are none.
        """
        if not self.names:
            raise ValueError("there is no demonstrator; expected at least one fixed policy")
        return self.remaining[0]

    def report(self, errors: Mapping[str, float]) -> None:
        """One lap: an error of each that remains."""
        given = (errors[name] for name in self.remaining)
        finite = (error if math.isfinite(error) else BROKEN for error in given)
        self._laps.append([math.log(max(error, 1e-30)) for error in finite])

    def advance(self, progress: float) -> None:
        """End the rounds that had their laps, or whose time is over at this share of the budget."""
        while self.open and (
            progress >= self._ends[self._ended] or len(self._laps) >= LAPS * (self._ended + 1)
        ):
            self.halve()

    def choose(self, name: str) -> None:
        """End the selection with this one."""
        self.remaining, self._laps = [name], []

    def halve(self) -> None:
        """End a round: the better half stays, in order; the first ones, if there was no lap."""
        expected = expected_errors(self._laps) or [0.0] * len(self.remaining)
        order = sorted(range(len(self.remaining)), key=expected.__getitem__)
        kept = order[: len(order) // 2]
        self.remaining = [self.remaining[index] for index in kept]
        laps = self._laps if self.open else []
        self._laps = [[errors[index] for index in kept] for errors in laps]
        self._ended += 1

    def state(self) -> dict[str, Any]:
        return {
            "names": list(self._begun),
            "remaining": list(self.remaining),
            "ended": self._ended,
            "laps": [list(errors) for errors in self._laps],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` gave; ``ValueError`` for what no selection can be in."""
        # Earlier versions began with all names, and name none.
        begun = Halving(state.get("names", self.names), self.end)
        remaining, ended, laps = state["remaining"], state["ended"], state["laps"]
        if not set(remaining) <= set(begun.names) <= set(self.names):
            raise ValueError(f"names of the selection are {remaining}; expected of {self.names}")
        rounds = len(begun._ends) - (len(remaining) > 1)
        if type(ended) is not int or not 0 <= ended <= rounds:
            raise ValueError(f"rounds of the selection are {ended}; expected 0 to {rounds}")
        for errors in laps:
            finite = [type(error) is float and math.isfinite(error) for error in errors]
            if len(remaining) > 1 and (len(errors) != len(remaining) or not all(finite)):
                raise ValueError("a lap of the selection is not one number of each that remains")
        self.begin(begun.names)
        self.remaining, self._ended = list(remaining), ended
        self._laps = [list(errors) for errors in laps]


def expected_errors(laps: Sequence[Sequence[float]]) -> list[float]:
    """The logarithm that each error has after twice as many laps, if it goes on falling as it did.

    ``laps`` has the logarithms of all errors at every lap so far. Errors fall as powers of the
    number of laps: a line through the second half of each curve, both axes logarithmic, is
    continued. Of few laps (:data:`TREND`) it is the mean of that half. An error that was not finite
    in that half stays :data:`BROKEN`.
    """
    if not laps:
        return []
    start = len(laps) // 2
    errors = torch.tensor(laps[start:], dtype=torch.float64)  # (laps, names)
    if len(laps) < TREND:
        return errors.mean(0).tolist()
    times = torch.arange(start + 1, len(laps) + 1, dtype=torch.float64).log()
    middle = times.mean()
    slopes = (times - middle) @ errors / (times - middle).square().sum()
    expected = errors.mean(0) + slopes * (math.log(2 * len(laps)) - middle)
    broken = math.log(BROKEN)
    return expected.masked_fill((errors >= broken).any(0), broken).tolist()


def distinct(planners: Mapping[str, FixedPolicy], batch: TokenBatch) -> tuple[str, ...]:
    """The names of those that make other trees of these samples than all before them; of sets of
    more than :data:`LARGEST_COMPARED` tokens all names."""
    if batch.present.shape[1] > LARGEST_COMPARED:
        return tuple(planners)
    found: dict[str, Tensor] = {}
    for name, planner in planners.items():
        merges = planner.plan(batch, torch.Generator(batch.tokens.device))
        alike = (
            same_trees(other, merges, batch.num_tokens, either_order=False).all()
            for other in found.values()
        )
        if not any(alike):
            found[name] = merges
    return tuple(found)


def inexact(batch: TokenBatch, std: Float[Tensor, "T"], generator: torch.Generator) -> TokenBatch:
    """The same samples with every coordinate a little off (:data:`OFF`).

    Coordinates that are equal in a sample stay equal: an order may rest on them, as on a coarse
    grid, and a policy tells them from others without error.
    """
    values, order = batch.tokens.sort(dim=1)
    new = torch.zeros_like(order)
    new[:, 1:] = values.diff(dim=1) > TIE * std
    drawn = torch.randn(values.shape, generator=generator, device=generator.device)
    off = drawn.to(values).gather(1, new.cumsum(1).gather(1, order.argsort(dim=1)))
    return batch._replace(tokens=batch.tokens + OFF * std * off * batch.present[..., None])


@dataclass
class Contestant:
    """A fixed order, and the training of an autoencoder on its trees alone."""

    planner: FixedPolicy
    trainer: AutoencoderTrainer

    def learn(
        self,
        batch: TokenBatch,
        followed: TokenBatch,
        generator: torch.Generator,
        progress: float,
    ) -> tuple[Int64[Tensor, "B M 2"], dict[str, float]]:
        """One step on these samples, in the trees that the order has for ``followed``, the same
        samples as it sees them; the trees, and the scalars of the step."""
        merges = self.planner.plan(followed, generator)
        return merges, self.trainer.update(batch, merges, progress)

    def state(self) -> dict[str, Any]:
        weights = copy.deepcopy(self.trainer.autoencoder.state_dict())
        return {"autoencoder": weights, "trainer": self.trainer.state()}

    def restore(self, state: dict[str, Any]) -> None:
        load_weights(self.trainer.autoencoder, state["autoencoder"])
        self.trainer.restore(state["trainer"])


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
    optimizer: GuardedOptimizer
    """Its own."""
    generator: torch.Generator
    ordered: bool = False
    """True <--> the order within a pair counts as a choice in the logged entropy."""
    value_weight: float = 0.0
    """Weight of the loss of the critic, which learns the returns; 0 for none."""
    discount: float = 1.0
    """Discount of those returns."""
    error_name: str = "nmse"
    """What the error of an episode is called (see ``TreeEncoder.error_name``)."""
    ranks: Ranks = field(default_factory=Ranks)
    """The processes that clone together."""

    def due(self, progress: float) -> bool:
        """True <--> this update clones; drawn where both are possible."""
        share = piecewise_linear(self.share, progress)
        if share <= 0 or not self.selection.names:
            return False
        generator = self.generator
        drawn = float(torch.rand((), generator=generator, device=generator.device))
        return self.ranks.first(drawn) < share

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
            losses["value"] = losses["value"] * self.ranks.balance(episodes.steps.sum())
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
    ranks: Ranks = field(default_factory=Ranks)
    """The processes of which each searches for the failures of its own samples."""

    def learn(self, batch: TokenBatch, errors: Float[Tensor, "S"]) -> dict[str, Tensor]:
        """Imitate what is found better where greedy trees have these errors.

        Accumulates the gradient; returns the loss, or nothing where nothing was found.
        """
        if not self.factor:
            return {}
        failed = failures(errors, self.factor)
        found = self.improvements(batch.rows(failed), errors[failed]) if len(failed) else None
        number = 0 if found is None else len(found.step)
        if not self.ranks.sums(number)[0]:
            return {}
        balance = self.ranks.balance(number)
        if found is None:
            return {"failures": errors.new_zeros(())}
        terms = self.terms_of(found.batch, found.episodes)
        measured = terms.measured(ordered=True)
        once = torch.zeros_like(measured.log_prob).scatter_(1, found.step[:, None], balance)
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
        drawn = float(torch.rand((), generator=generator, device=generator.device))
        return self.search.ranks.first(drawn) >= share

    def learn(self, batch: TokenBatch, progress: float) -> tuple[Episodes, dict[str, float]]:
        """Greedy trees for the autoencoder, and scalars; the policy learns from failures only."""
        self.optimizer.zero()
        episodes = self.roll(batch)
        error = self.errors_of(batch, episodes)
        losses = self.search.learn(batch, error)
        scalars = self.optimizer.step(losses, progress) if losses else {}
        return episodes, {"train/greedy_nmse": float(error.mean()), **scalars}
