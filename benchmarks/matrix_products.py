"""What the matrix products of linear layers need: the limit that training is measured against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Work = Callable[[], object]
MOST = 2**16
"""Rows of one product."""


@dataclass
class Rows:
    """How many rows a layer saw."""

    forward: int = 0
    """In all."""
    weight_gradients: int = 0
    """Of those, how many the weight's gradient was to be computed from."""
    input_gradients: int = 0
    """And for how many the gradient was to be passed on; tokens have none."""


def rows_seen(networks: Iterable[nn.Module], step: Work) -> dict[nn.Linear, Rows]:
    """What every linear layer of these networks sees in ``step``."""
    layers = dict.fromkeys(
        layer for network in networks for layer in network.modules() if isinstance(layer, nn.Linear)
    )
    seen = {layer: Rows() for layer in layers}

    def count(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows, counted = inputs[0].shape[:-1].numel(), seen[layer]
        counted.forward += rows
        if output.requires_grad:
            counted.weight_gradients += rows
            counted.input_gradients += rows if inputs[0].requires_grad else 0

    hooks = [layer.register_forward_hook(count) for layer in seen]
    try:
        step()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def products(seen: dict[nn.Linear, Rows]) -> Work:
    """The products of every layer as one large one each: its output, and both gradients.

    More rows than :data:`MOST`, whose memory nothing else here would need, are several of them.
    """
    operands = []
    for layer, rows in seen.items():
        weight, times = layer.weight.detach(), max(1, math.ceil(rows.forward / MOST))
        inputs = torch.randn(rows.forward // times, weight.shape[1])
        gradients = torch.randn(rows.weight_gradients // times, len(weight))
        operands.append((weight, inputs, gradients, rows.input_gradients // times, times))

    def multiply() -> None:
        for weight, inputs, gradients, passed_on, times in operands:
            for _ in range(times):
                inputs @ weight.T
                gradients.T @ inputs[: len(gradients)]
                gradients[:passed_on] @ weight

    return multiply
