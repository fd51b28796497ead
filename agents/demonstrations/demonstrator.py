"""Stochastic versions of fixed policies."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from agents.demonstrations.behaviour import Behaviour, PlanMixture, SoftNearest
from agents.fixed import FixedPolicy
from agents.fixed.order import random_order
from agents.fixed.slot_trees import random_tree
from htm_env.types import TokenBatch

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
    """Of the softmax over distances, in standard deviations; only of the nearest ones."""
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
