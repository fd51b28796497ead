"""Behaviour cloning of fixed policies, and the selection of one of several.

At first a policy imitates a demonstrator, a fixed policy. Where several could demonstrate, the one
is selected whose trees the autoencoder learns best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from agents.config.schedules import Points, piecewise_linear
from agents.learners.baselines import discounted_returns, value_loss
from agents.likelihood.base import PolicyTerms
from agents.optim.optimizers import PolicyOptimizer
from agents.rollouts.rollout import Episodes, mean_entropy
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
HEAD_START = 0.1
"""What the first demonstrator may be worse by, as a logarithm, and still be selected: it is the
default without a selection, and small differences early on say little about the end."""
BROKEN = 1e6
"""What an error that is not finite counts as."""
WARM_UP = 2 / 3
"""Share of the turns so far that do not count: early on, whatever is simplest leads."""


def demonstrators_of(env_id: str) -> tuple[str, ...]:
    """The default demonstrators on this id's data; perhaps none."""
    return KNOWN.get(env_id, CONTESTANTS)


class Selection:
    """Demonstrators that take turns until ``end``, a share of the budget; then only the best one.

    What counts is the mean logarithm of the errors with which the autoencoder, which learns from
    all of them meanwhile, reconstructs what each has merged lately. Data differ in what suits them:
    trees by distance keep what belongs together in one subtree, trees of one shape are more alike.

    One alone is selected at once. Raises ``ValueError`` for an end outside [0, 1].
    """

    def __init__(self, names: Sequence[str], end: float) -> None:
        if not 0 <= end <= 1:
            raise ValueError(f"the selection ends at {end}; expected a share of the budget, 0 to 1")
        self.names = tuple(dict.fromkeys(names))
        self.end = end if len(self.names) > 1 else 0.0
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
        first = self.names[0]
        return min(self.names, key=lambda name: self._mean(name) - HEAD_START * (name == first))

    def report(self, name: str, error: float, progress: float) -> None:
        """The mean error of what this demonstrator has merged; after the end it changes nothing."""
        if progress < self.end:
            finite = max(error, 1e-30) if math.isfinite(error) else BROKEN
            self._errors[name].append(math.log(finite))

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
    """Whether the order within a pair counts as a choice in the logged entropy."""
    value_weight: float = 0.0
    """Of the loss of the critic, which learns the returns; 0 for none."""
    discount: float = 1.0
    """Of those returns."""

    def due(self, progress: float) -> bool:
        """Whether this update clones; drawn where both are possible."""
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
            "train/nmse": float(error.mean()),
        }

    def report(self, name: str, error: float, progress: float) -> dict[str, float]:
        """Report the mean error of this update's trees to the selection; returns its scalar."""
        self.selection.report(name, error, progress)
        return {f"demonstrations/nmse_{name}": error}
