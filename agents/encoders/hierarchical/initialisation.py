"""How layers start whose results are added to what they were made of."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

SHARE = 0.1
"""Of torch's initial weights: a deep model starts near the identity, and a head near the uniform
distribution. Not 0, with which no gradient would reach what lies before."""


@torch.no_grad()
def start_small(layer: nn.Module) -> None:
    """Shrink the initial weights of a linear layer."""
    cast(nn.Linear, layer).weight.mul_(SHARE)


def plain_norm(width: int) -> nn.LayerNorm:
    """A layer norm without weights, since a linear layer follows that has its own (OLMo, Groeneveld
    et al. 2024): as good here, and half as many tensors for the optimizer."""
    return nn.LayerNorm(width, elementwise_affine=False)
