"""The options of an algorithm of Stable-Baselines3's interface; importing this imports none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from agents.config.dataclasses_json import LARGEST, check_bounds
from agents.optim.autoencoder_trainer import AutoencoderConfig
from htm_env.rewards import RewardName


@dataclass(frozen=True)
class StableBaselinesConfig:
    """A class of Stable-Baselines3's interface, and the autoencoder's training beside it."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    model: str = "sb3:PPO"
    """The class: sb3:NAME, sb3_contrib:NAME, or module:Class."""
    policy: str | None = None
    """A policy of the class, such as MultiInputPolicy. If not given: for an actor and critic this
    project's network, which masks; for others MultiInputPolicy, whose illegal actions are executed
    as legal ones."""
    n_envs: int = 16
    """Copies of the environment."""
    trees_per_step: int = 32
    """Trees that one step of the autoencoder learns from, about."""
    reward: RewardName | None = None
    """incremental, terminal, one_step, right_merges or recurring; the environment's own if not
    given."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the class, such as kwargs.learning_rate=0.001."""

    def __post_init__(self) -> None:
        check_bounds(self, n_envs=(1, LARGEST), trees_per_step=(1, LARGEST))
