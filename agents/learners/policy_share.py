"""Updates in which the autoencoder learns alone, from the greedy trees of the policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from agents.config.schedules import Points, piecewise_linear
from agents.learners.local_search import LocalSearch
from agents.optim.optimizers import PolicyOptimizer
from agents.rollouts.rollout import Episodes
from htm_env.types import TokenBatch


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
        """Whether the autoencoder learns alone in this update; drawn where both are possible."""
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
