"""The learner behind every fixed policy: its merges never change, the autoencoder learns them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from agents.config.dataclasses_json import LARGEST, check_bounds
from agents.evaluation.evaluate import Planner
from agents.fixed import FIXED_POLICIES, fixed_policy
from agents.learners.base import Learner
from agents.optim.autoencoder_trainer import AutoencoderConfig
from htm_env.rewards import RewardName
from htm_env.types import TokenBatch


@dataclass(frozen=True)
class FixedOrderConfig:
    """A fixed policy and the training of the autoencoder on its trees."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    policy: str = "random"
    """The fixed policy's name."""
    batch_size: int = 32
    """Trees an update, fewer of large sets (see :meth:`Dataset.affordable`); more of them are fewer
    updates, and measured worse in equal time."""
    reward: RewardName | None = None
    """Of known merges, whose trees it evaluates (see ``htm_env.rewards.reward_on``); the
    environment's own if not given. An autoencoder learns from none."""

    def __post_init__(self) -> None:
        check_bounds(self, batch_size=(1, LARGEST))


class FixedOrder(Learner):
    """Trains the autoencoder on the trees of a fixed policy."""

    algorithms: tuple[str, ...] = tuple(FIXED_POLICIES)
    fixed_trees = True
    data_parallel = True
    config_class: type = FixedOrderConfig
    config: FixedOrderConfig

    def __init__(self, env_id: str, config: Any = None, **task: Any) -> None:
        super().__init__(env_id, config, **task)
        self.policy = self.make_planner()

    def make_planner(self) -> Planner:
        """The planner of the trees; sets the name under which results are reported."""
        self.algo = self.config.policy
        return fixed_policy(self.config.policy, self.autoencoder, self.dataset)

    def plan(
        self, batch: TokenBatch, generator: torch.Generator, *, greedy: bool
    ) -> Int64[Tensor, "B M 2"]:
        return self.policy.plan(batch, generator, greedy=True)

    def update(self, progress: float) -> dict[str, float]:
        batch = self.sample(self.dataset.affordable(self.config.batch_size))
        merges = self.plan(batch, self.generator, greedy=True)
        return self.finish_update(batch, merges, progress)
