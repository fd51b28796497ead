"""What PPO can be told; importing this does not import Stable-Baselines3."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from agents.autoencoder_trainer import AutoencoderConfig
from agents.configuration import check_bounds
from agents.optimisation import OptimizerConfig
from agents.schedules import check_points

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class PPOConfig:
    """Everything that PPO (Schulman et al. 2017) can be told; shares are of the budget."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    policy: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer of policy and critic; its updates are gradient steps, one a minibatch."""
    scorer: str = "pointer"
    """pointer, or pair_mlp (the published method's)."""
    policy_hidden_dim: int = 128
    """Width of the policy's hidden layers."""
    n_envs: int = 128
    """Copies of the environment, stepped together."""
    rollout_episodes: int = 1
    """Longest episodes that each copy could finish in one rollout: steps are P - 1 times this."""
    batch_size: int = 512
    """Steps of a minibatch."""
    n_epochs: int = 2
    """Passes over a rollout."""
    trees_per_step: int = 16
    """Finished trees of a rollout that one autoencoder step learns from."""
    reward: str = "incremental"
    """incremental, terminal or one_step."""
    discount: float = 0.8
    """Of a reward one merge later."""
    gae_lambda: float = 0.95
    """Of advantage estimation (Schulman et al. 2016): 1 trusts the returns, 0 the critic."""
    clip_range: float = 0.2
    """How far a probability may move within one rollout, as a ratio."""
    entropy_bonus: float = 0.0
    """Paid for the entropy of a choice, in nats."""
    value_weight: float = 0.5
    """Of the critic's loss."""
    maskable: bool = False
    """sb3-contrib's MaskablePPO, which gets its masks from the environment, instead of PPO, whose
    policy reads them from the observation."""
    demonstrations: str = "nearest_sorted"
    """The fixed policy that is cloned at first."""
    demonstration_share: Points = ((0.1, 1.0), (0.3, 0.0))
    """(share, probability) points: how many updates clone a demonstration; 0 0 for none."""

    def __post_init__(self) -> None:
        many, positive = (1, math.inf), (0, 1e6)
        check_bounds(
            self, policy_hidden_dim=many, n_envs=many, rollout_episodes=many, batch_size=many,
            n_epochs=many, trees_per_step=many, discount=(0, 1), gae_lambda=(0, 1),
            clip_range=positive, entropy_bonus=(-1e6, 1e6), value_weight=positive,
        )  # fmt: skip
        check_points("demonstration_share", self.demonstration_share)
