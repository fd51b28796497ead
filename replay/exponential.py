"""The exponential where most results are next to nothing, as in a softmax of illegal choices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST = {torch.float32: -80.0, torch.float64: -700.0}
"""Below, the exponential is 0."""


def weights_of(logarithms: Tensor) -> Tensor:
    """``exp(logarithms)``, exactly 0 where that is too small to matter; differentiable.

    Processors take up to five hundred times as long for an exponential that is no normal number,
    and illegal or hopeless choices, whose are, outnumber the others in most populations.
    """
    least = LEAST[logarithms.dtype]
    weights = logarithms.clamp(min=least).exp()
    return torch.nn.functional.threshold(weights, 2 * math.exp(least), 0.0)
