"""The options of PPO; importing this does not import Stable-Baselines3."""

from __future__ import annotations

from dataclasses import dataclass

from agents.config.dataclasses_json import LARGEST, check_bounds
from agents.config.schedules import Points
from agents.learners.policy_learner import PolicyConfig


@dataclass(frozen=True)
class PPOConfig(PolicyConfig):
    """The options of PPO (Schulman et al. 2017); the policy's updates are gradient steps, one a
    minibatch."""

    policy_share: Points = ((0.4, 1.0), (0.9, 0.25))
    """(share, probability) points: how many of the updates that do not clone are PPO's. In the
    others the autoencoder learns alone, from as many greedy trees of fresh samples as a rollout
    has, and of the policy only failures are corrected. Fewer and fewer, since a rollout takes
    Stable-Baselines3 longer. 0 1 for every update."""
    n_envs: int = 256
    """Copies of the environment, stepped together."""
    rollout_episodes: int = 1
    """Longest episodes that each copy could finish in one rollout: steps are P - 1 times this."""
    batch_size: int = 512
    """Steps of a minibatch."""
    n_epochs: int = 2
    """Passes over a rollout."""
    gae_lambda: float = 0.95
    """Lambda of advantage estimation (Schulman et al. 2016): 1 trusts the returns, 0 the critic."""
    clip_range: float = 0.2
    """Most that a probability may move within one rollout, as a ratio."""
    entropy_bonus: float = 0.0
    """Paid for the entropy of a choice, in nats."""
    value_weight: float = 0.5
    """Weight of the critic's loss."""
    maskable: bool = False
    """sb3-contrib's MaskablePPO, which gets its masks from the environment, instead of PPO, whose
    policy reads them from the observation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = (0, 1e6)
        check_bounds(
            self,
            n_envs=(1, LARGEST),
            rollout_episodes=(1, LARGEST),
            batch_size=(1, LARGEST),
            n_epochs=1,
            gae_lambda=(0, 1),
            clip_range=positive,
            entropy_bonus=(-1e6, 1e6),
            value_weight=positive,
        )
