"""What the matrix products of linear layers need: the limit that training is measured against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

Work = Callable[[], object]
MOST_ROWS = 2**16
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
    device: torch.device | str = "cpu"
    """Where its weight is."""


class RowsSeen(TorchFunctionMode):
    """Counts, while it is entered, the rows of every linear layer, by its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[tuple[int, torch.Size], Rows] = {}
        """By the address and the shape of a weight (half of a weight is one of its own)."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*arguments, **(kwargs or {}))
        if function is linear:
            inputs, weight = arguments[:2]
            seen = self.of.setdefault(key_of(weight), Rows(device=weight.device))
            rows = inputs.shape[:-1].numel()
            seen.forward += rows
            if made.requires_grad:
                seen.weight_gradients += rows
                seen.input_gradients += rows if inputs.requires_grad else 0
        return made


def key_of(weight: Tensor) -> tuple[int, torch.Size]:
    """What a weight is known by."""
    return weight.data_ptr(), weight.shape


def rows_seen(step: Work) -> dict[tuple[int, torch.Size], Rows]:
    """What every linear layer sees in ``step``, by :func:`key_of` its weight."""
    with RowsSeen() as seen:
        step()
    return seen.of


def products(seen: dict[tuple[int, torch.Size], Rows], most_rows: int = MOST_ROWS) -> Work:
    """The products of every layer as one large one each: its output, and both gradients; each
    where its weight is.

    More rows than ``most_rows``, whose memory nothing else here would need, are several of them.
    """
    operands = []
    for (_, shape), rows in seen.items():
        drawn, times = partial(torch.randn, device=rows.device), math.ceil(rows.forward / most_rows)
        weight, times = drawn(shape), max(1, times)
        inputs = drawn(rows.forward // times, shape[1])
        gradients = drawn(rows.weight_gradients // times, shape[0])
        operands.append((weight, inputs, gradients, rows.input_gradients // times, times))

    def multiply() -> None:
        for weight, inputs, gradients, passed_on, times in operands:
            for _ in range(times):
                inputs @ weight.T
                gradients.T @ inputs[: len(gradients)]
                gradients[:passed_on] @ weight

    return multiply
