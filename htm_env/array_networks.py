"""The autoencoder's networks as functions of numpy arrays, for few rows at a time.

A call of a torch layer costs microseconds before it computes anything: for one row, most of its
time. Weights are views of the memory of the layers, so that training is seen; results are torch's
up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from htm_env.autoencoder import ResidualNetwork

ArrayFunction = Callable[[np.ndarray], np.ndarray]
"""From ``(rows, inputs)`` to ``(rows, outputs)``."""


def array_function(network: nn.Module) -> ArrayFunction:
    """The function of a network on the processor, with its weights as they are now.

    Views are kept for as long as the weights are where they were.
    """
    make = _MAKERS.get(type(network), _through_torch)
    if make is not _residual:
        return make(network)
    places = [  # past the attributes of modules, each of which takes a microsecond
        weight.data_ptr()
        for layer in network._modules.values()
        for weight in layer._parameters.values()  # type: ignore[union-attr]
        if weight is not None
    ]
    made = _MADE.get(network)
    if made is None or made[0] != places:
        made = _MADE[network] = places, make(network)
    return made[1]


def _residual(network: ResidualNetwork) -> ArrayFunction:
    layers = network.skip, network.value, network.gate, network.last
    skip, value, gate, last = (_view(layer.weight).T for layer in layers)
    skip_bias, value_bias, gate_bias = (_view(layer.bias) for layer in layers[:3])

    def function(rows: np.ndarray) -> np.ndarray:
        half = rows.dot(value)
        half += value_bias
        half *= 0.5
        hidden = np.tanh(half)
        hidden *= half
        hidden += half  # silu(v) = v sigmoid(v) = v / 2 + v / 2 tanh(v / 2), without overflow
        opened = rows.dot(gate)
        opened += gate_bias
        hidden *= np.tanh(opened, out=opened)
        outputs: np.ndarray = rows.dot(skip)
        outputs += skip_bias
        outputs += hidden.dot(last)
        return outputs

    return function


def _affine(layer: nn.Linear) -> ArrayFunction:
    weight, bias = _view(layer.weight).T, _view(layer.bias)
    return lambda rows: rows @ weight + bias


def _sequence(network: nn.Sequential) -> ArrayFunction:
    functions = [array_function(layer) for layer in network]

    def function(rows: np.ndarray) -> np.ndarray:
        for layer in functions:
            rows = layer(rows)
        return rows

    return function


def _relu(network: nn.ReLU) -> ArrayFunction:
    return lambda rows: np.maximum(rows, 0.0)


def _through_torch(network: nn.Module) -> ArrayFunction:
    @torch.no_grad()
    def function(rows: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = network(torch.from_numpy(rows)).numpy()
        return outputs

    return function


def _view(weight: Tensor) -> np.ndarray:
    array: np.ndarray = weight.detach().numpy()
    return array


_MADE: WeakKeyDictionary[nn.Module, tuple[list[int], ArrayFunction]] = WeakKeyDictionary()
_MAKERS: dict[type, Callable[..., ArrayFunction]] = {
    ResidualNetwork: _residual,
    nn.Linear: _affine,
    nn.Sequential: _sequence,
    nn.ReLU: _relu,
}
"""By the class of the network, exactly: a subclass may compute something else."""
