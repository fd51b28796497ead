"""The optimizer of a Stable-Baselines3 model under this project's schedule, clipping and guard."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from agents.config.schedules import cosine_decay, warm_up
from agents.optim.autoencoder_trainer import mean_of_finite
from agents.optim.optimizers import NonFiniteGuard, OptimizerConfig, restore_optimizer


class ModelOptimizer:
    """Clips every gradient step of a model, and drops gradients that are not finite.

    A dropped gradient leaves weights and averages as they were. The schedule moves between updates
    of the learner: all gradient steps of one update have one learning rate.
    """

    def __init__(self, config: OptimizerConfig) -> None:
        self.config, self.guard = config, NonFiniteGuard()
        self.progress, self.steps = 0.0, 0
        """The used share of the budget, and the gradient steps before the present update."""
        self._norms: list[float] = []

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the model's optimizer, which was made with :meth:`learning_rate`."""
        self._optimizer = optimizer
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.register_step_pre_hook(self._before_step)

    def learning_rate(self, remaining: float = 0.0) -> float:
        """The schedule of the other learners; the model's own progress plays no part."""
        scale = warm_up(self.steps, self.config.warm_up_updates)
        return (
            self.config.learning_rate * scale * cosine_decay(self.progress, self.config.final_share)
        )

    def zero(self) -> None:
        self._optimizer.zero_grad()

    def step(self, losses: dict[str, Tensor], progress: float) -> dict[str, float]:
        """A step beside the model's own, along the gradient that was accumulated."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self._optimizer.step()
        return {f"loss/{name}": float(loss.detach()) for name, loss in losses.items()}

    def finish_update(self) -> dict[str, float]:
        """Count the gradient steps of this update; returns the mean norm before clipping.

        ``FloatingPointError`` where gradients stay non-finite.
        """
        norms, self._norms = self._norms, []
        if not norms:
            return {}
        self.steps += len(norms)
        self.guard.allows("policy", torch.tensor(norms).sum())  # steps were dropped one by one
        return {"gradient_norm/policy": mean_of_finite(norms)}

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm))
        self._norms.append(norm)
        if not math.isfinite(norm):
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        return {
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "gradient_steps": self.steps,
            "guard": self.guard.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        restore_optimizer(self._optimizer, state["optimizer"])
        self.steps = state["gradient_steps"]
        self.guard.restore(state["guard"])
