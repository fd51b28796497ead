"""Gradients on their way into Stable-Baselines3's optimizer: clipped, measured, and finite."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


class GradientGate:
    """Stands in front of an optimizer's ``step``: clips, and drops gradients that are not finite.

    A dropped gradient leaves weights and averages as they were.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip_norm: float) -> None:
        self.clip_norm = clip_norm
        self.norms: list[float] = []
        """Norms before clipping, since the last :meth:`take`."""
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.register_step_pre_hook(self._before_step)

    def take(self) -> list[float]:
        """The norms since the last call; one that is not finite stands for a skipped step."""
        norms, self.norms = self.norms, []
        return norms

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self.clip_norm))
        self.norms.append(norm)
        if not math.isfinite(norm):
            optimizer.zero_grad(set_to_none=True)
