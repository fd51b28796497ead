"""The building blocks of the autoencoder, and the two architectures made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

BLOCK = 512
"""Rows that a processor takes at a time where no gradient is needed: what lies between two layers
then stays in its cache, which halves the time of many rows."""


class ResidualNetwork(nn.Module):
    """A linear skip from input to output beside one hidden layer of gated units.

    The skip lets a merge keep coordinates exactly from the first update on, and keeps gradients
    alive through a tree of merges. A hidden unit is a product, ``silu(a) tanh(b)`` of two affine
    maps (gated linear units, Dauphin et al. 2017; Shazeer 2020): angles and lengths, that is what
    directions and crossings are made of, need products, and sums of plain units stand on plateaus
    where they cannot make them. One factor is bounded, so that a unit grows no faster than its
    input, however deep the tree.
    Two thirds of ``hidden`` units have the parameters of ``hidden`` plain ones; a multiple of 8 is
    what matrix products like. A second hidden layer costs three times as much and, in equal time,
    measured worse.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        units = math.ceil(hidden * 2 / 3 / 8) * 8
        self.skip = nn.Linear(inputs, outputs)
        self.value = nn.Linear(inputs, units)
        self.gate = nn.Linear(inputs, units)
        self.last = nn.Linear(units, outputs, bias=False)
        nn.init.ones_(self.gate.bias)  # open at first: plain units, which learn faster early on

    def forward(self, values: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            hidden = nn.functional.silu(self.value(values)) * torch.tanh(self.gate(values))
            return self.skip(values) + self.last(hidden)
        if values.ndim != 2 or len(values) <= BLOCK or values.device.type != "cpu":
            return self._without_gradients(values)
        return torch.cat([self._without_gradients(block) for block in values.split(BLOCK)])

    def _without_gradients(self, values: Tensor) -> Tensor:
        """The same in place."""
        hidden = nn.functional.silu(self.value(values), inplace=True)
        hidden *= _tanh_(self.gate(values))
        return self.last(hidden).add_(self.skip(values))


def _tanh_(values: Tensor) -> Tensor:
    """In place; of float32 as ``2 sigmoid(2 x) - 1``, which a processor has in a fifth of the time.

    The difference loses what of a gate lies below 1e-7. With gradients it gains nothing: what is
    saved going forward is spent coming back.
    """
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return values.tanh_()
    return values.mul_(2).sigmoid_().mul_(2).sub_(1)


def plain_network(inputs: int, hidden: int, outputs: int) -> nn.Module:
    """The published method's MLP with two hidden layers, initialised as there."""
    network = nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.constant_(layer.bias, 1e-3)
    return network


def linear(inputs: int, hidden: int, outputs: int) -> nn.Module:
    """One affine layer, whatever ``hidden`` says."""
    return nn.Linear(inputs, outputs)


class Architecture(NamedTuple):
    """How networks are made, from inputs, hidden width and outputs."""

    lifter: Callable[[int, int, int], nn.Module]
    """Of the lifter and the unlifter."""
    merger: Callable[[int, int, int], nn.Module]
    """Of the merger, the unmerger and the classifier."""


ARCHITECTURES = {
    "residual": Architecture(ResidualNetwork, ResidualNetwork),
    "mlp": Architecture(linear, plain_network),
}
"""This project's, and the published method's."""


@contextmanager
def seeded_initialisation(generator: torch.Generator | None) -> Iterator[None]:
    """Let torch's layers draw their initial weights from ``generator``, and from nothing else.

    torch's initialisers only know the global generator; it is put back as it was.
    """
    if generator is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        torch.default_generator.manual_seed(int(seed))
        yield
