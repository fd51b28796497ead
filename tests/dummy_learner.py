"""A learner without networks: its update draws one number, so its course is easy to follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from agents.learners.base import Learner
from agents.optim.autoencoder_trainer import AutoencoderConfig

MERGES_PER_UPDATE = 10


@dataclass(frozen=True)
class DummyConfig:
    """Nothing but what every learner has, and when to fail."""

    autoencoder: AutoencoderConfig = field(default_factory=lambda: AutoencoderConfig(hidden_dim=4))
    fail_at: int = -1
    """The update that raises ``FloatingPointError``; -1 for none."""


class DummyLearner(Learner):
    """``value`` is the sum of everything drawn so far."""

    algo = "dummy"
    config_class = DummyConfig

    def __init__(self, env_id: str = "HTM-Trees-v0", config: Any = None, **task: Any) -> None:
        task.setdefault("env_kwargs", {"heights": [2]})
        super().__init__(env_id, config, **task)
        self.value = 0.0
        self.seen_progress: list[float] = []

    def update(self, progress: float) -> dict[str, float]:
        if self.updates == self.config.fail_at:
            raise FloatingPointError("the loss was not finite in 3 updates in a row")
        self.seen_progress.append(progress)
        drawn = float(torch.rand((), generator=self.generator))
        self.value += drawn
        self.updates += 1
        self.merges_made += MERGES_PER_UPDATE
        return {"train/return": float(self.updates), "train/nmse": drawn}

    def plan(self, batch, generator, *, greedy):
        return batch.merges

    def state(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "generator": self.generator.get_state(),
            "updates": self.updates,
            "merges_made": self.merges_made,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.value, self.updates = state["value"], state["updates"]
        self.merges_made = state["merges_made"]
        self.generator.set_state(state["generator"])
