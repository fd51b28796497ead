"""Baselines: what a return is compared with to give an advantage.

Each is a small class with one method, ``advantages``, of the returns ``(B, M)`` of a batch in which
the ``trees_per_sample`` trees of one sample are neighbours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agents.optim.ranks import Ranks


@dataclass(frozen=True)
class Returns:
    """The returns of a batch, and what the baselines may compare them with."""

    values: Float[Tensor, "B M"]
    """Discounted return after each merge; 0 in padding."""
    steps: Bool[Tensor, "B M"]
    """True <--> a merge was made."""
    trees_per_sample: int
    state_values: Callable[[], Float[Tensor, "B M"]]
    """The value head's estimates (detached)."""
    greedy_returns: Callable[[], Float[Tensor, "B M"]]
    """The returns of greedy episodes on the same samples."""


class Baseline(ABC):
    """Turns returns into advantages; may remember earlier returns.

    ``ranks`` are the processes whose batches make up a whole one; this one alone if None.
    """

    learns_values = False
    """True <--> the value head is trained for it."""

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.ranks = Ranks() if ranks is None else ranks

    @abstractmethod
    def advantages(self, returns: Returns) -> Float[Tensor, "B M"]: ...

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027  # most remember nothing
        pass


class NoBaseline(Baseline):
    """The returns themselves."""

    def advantages(self, returns: Returns) -> Float[Tensor, "B M"]:
        return returns.values


class MovingNormaliser(Baseline):
    """Subtracts the mean and divides by the deviation of the latest returns (the published way)."""

    def __init__(self, ranks: Ranks | None = None, length: int = 10_000) -> None:
        super().__init__(ranks)
        self.length = length
        self.latest = torch.zeros(0)

    def advantages(self, returns: Returns) -> Float[Tensor, "B M"]:
        new = returns.values[returns.steps]
        new = new[new.isfinite()]  # one diverged episode would spoil the window for thousands
        new = self.ranks.gathered(new)
        self.latest = torch.cat([self.latest.to(new.device), new])[-self.length :]
        spread = self.latest.std() if len(self.latest) > 1 else self.latest.new_ones(())
        return (returns.values - self.latest.mean()) / (spread + 1e-20) * returns.steps

    def state(self) -> dict[str, Any]:
        return {"latest": self.latest}

    def restore(self, state: dict[str, Any]) -> None:
        self.latest = state["latest"]


class ExponentialAverage(Baseline):
    """Subtracts an exponential average of the mean return after each merge."""

    def __init__(self, ranks: Ranks | None = None, rate: float = 0.05) -> None:
        super().__init__(ranks)
        self.rate = rate
        self.average: Tensor | None = None

    def advantages(self, returns: Returns) -> Float[Tensor, "B M"]:
        summed = self.ranks.sum(returns.values.masked_fill(~returns.steps, 0.0).sum(0))
        mean = summed / self.ranks.sum(returns.steps.sum(0))
        average = mean if self.average is None else self.average.to(mean.device)
        average = torch.where(average.isnan(), mean, average)  # NaN where no episode came so far
        moved = average + self.rate * (mean - average)
        self.average = torch.where(mean.isfinite(), moved, average)
        return (returns.values - average).masked_fill(~returns.steps, 0.0)

    def state(self) -> dict[str, Any]:
        return {"average": self.average}

    def restore(self, state: dict[str, Any]) -> None:
        self.average = state["average"]


class LearnedValue(Baseline):
    """Subtracts the value head's estimate of the state."""

    learns_values = True

    def advantages(self, returns: Returns) -> Float[Tensor, "B M"]:
        return (returns.values - returns.state_values()) * returns.steps


class GreedyRollout(Baseline):
    """Subtracts the return of the greedy policy on the same sample (Rennie et al. 2017)."""

    def advantages(self, returns: Returns) -> Float[Tensor, "B M"]:
        return (returns.values - returns.greedy_returns()) * returns.steps


class LeaveOneOut(Baseline):
    """Subtracts the mean return of the sample's other trees (Kool et al. 2019, "Buy 4 REINFORCE
    samples, get a baseline for free!")."""

    def advantages(self, returns: Returns) -> Float[Tensor, "B M"]:
        trees = returns.trees_per_sample
        values = returns.values.view(-1, trees, returns.values.shape[1])
        others = (values.sum(1, keepdim=True) - values) / (trees - 1)
        return (values - others).view_as(returns.values) * returns.steps


BASELINES: dict[str, type[Baseline]] = {
    "none": NoBaseline,
    "moving_normaliser": MovingNormaliser,
    "exponential": ExponentialAverage,
    "value": LearnedValue,
    "greedy": GreedyRollout,
    "leave_one_out": LeaveOneOut,
}


def make_baseline(name: str, trees_per_sample: int, ranks: Ranks | None = None) -> Baseline:
    """The baseline of that name; ``ValueError`` with the choices, or for too few trees a sample."""
    if name not in BASELINES:
        raise ValueError(f"unknown baseline {name!r}; choose from {sorted(BASELINES)}")
    least = 2 if name == "leave_one_out" else 1
    if trees_per_sample < least:
        raise ValueError(f"{name} has {trees_per_sample} trees a sample; expected at least {least}")
    return BASELINES[name](ranks)


def discounted_returns(rewards: Float[Tensor, "B M"], discount: float) -> Float[Tensor, "B M"]:
    """``G_t = r_t + discount * G_{t+1}``; padding earns 0."""
    returns = torch.zeros_like(rewards)
    following = rewards.new_zeros(len(rewards))
    for step in reversed(range(rewards.shape[1])):
        following = rewards[:, step] + discount * following
        returns[:, step] = following
    return returns


def value_loss(
    values: Float[Tensor, "B M"],
    returns: Float[Tensor, "B M"],
    steps: Bool[Tensor, "B M"],
    weights: Float[Tensor, "B"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error of the state values against the returns, each episode's by its weight."""
    errors = (values - returns).square() * steps
    if weights is not None:
        errors = errors * weights[:, None]
    return errors.sum() / steps.sum().clamp(min=1)
