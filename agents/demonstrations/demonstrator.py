"""Demonstrations with the exact probability of every merge, ready for a replay buffer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.demonstrations.behaviour import Behaviour
from agents.demonstrations.plan_mixture import PlanMixture
from agents.demonstrations.soft_nearest import SoftNearest
from agents.fixed import fixed_policy
from agents.fixed.order import random_order
from agents.fixed.slot_trees import random_tree
from htm_env.autoencoder import HTMAutoencoder
from htm_env.types import TokenBatch
from replay import Trajectories

SOFTENED = ("nearest", "nearest_sorted")
"""The policies that choose by distance, step by step."""


@dataclass(frozen=True)
class Demonstrator:
    """A stochastic version of a fixed policy.

    Raises ``ValueError`` for an unknown policy, listing the choices, and for numbers out of range.
    """

    policy: str = "nearest_sorted"
    """A fixed policy; ``random`` is its own stochastic version."""
    epsilon: float = 0.1
    """Probability of a uniformly random episode instead of the plan; not of the nearest ones."""
    temperature: float = 0.05
    """Of the softmax over distances, in standard deviations; only of the nearest ones."""
    order_epsilon: float = 0.05
    """Probability of turning a pair around; only of nearest_sorted."""

    def __post_init__(self) -> None:
        fixed_policy(self.policy)  # raises for an unknown one
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"epsilon is {self.epsilon}; expected more than 0 and at most 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; expected more than 0")
        if not 0 < self.order_epsilon < 1:
            raise ValueError(f"order_epsilon is {self.order_epsilon}; expected between 0 and 1")

    @torch.no_grad()
    def behaviour(
        self, batch: TokenBatch, autoencoder: HTMAutoencoder, generator: torch.Generator
    ) -> Behaviour:
        """The policy on these samples; plans are drawn now, where a fixed policy draws any."""
        if self.policy in SOFTENED:
            order_epsilon = self.order_epsilon if self.policy == "nearest_sorted" else 0.5
            return SoftNearest(batch, autoencoder, self.temperature, order_epsilon)
        policy = fixed_policy(self.policy)
        plan = policy.merges(batch, autoencoder, generator)
        epsilon = 1.0 if policy.shape is random_tree else self.epsilon
        return PlanMixture(batch, autoencoder, plan, epsilon, policy.order is random_order)

    def __call__(
        self, batch: TokenBatch, autoencoder: HTMAutoencoder, generator: torch.Generator
    ) -> tuple[Int64[Tensor, "B M 2"], Float[Tensor, "B M"]]:
        """One complete episode of every sample, and the log-probability of its merges (0 pads)."""
        return self.behaviour(batch, autoencoder, generator).episodes(generator)

    def trajectories(
        self,
        batch: TokenBatch,
        autoencoder: HTMAutoencoder,
        generator: torch.Generator,
        *,
        policy_version: int,
    ) -> Trajectories:
        """The same, ready for a replay buffer; the source is the policy's name.

        A buffer refuses samples of one token.
        """
        behaviour = self.behaviour(batch, autoencoder, generator)
        merges, log_prob = behaviour.episodes(generator)
        return Trajectories.collected(
            batch,
            merges,
            log_prob,
            policy_version=policy_version,
            source=self.policy,
            tree_log_prob=behaviour.tree_log_prob(merges, generator),
        )
