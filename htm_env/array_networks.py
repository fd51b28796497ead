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


def array_function(network: Callable[[Tensor], Tensor]) -> ArrayFunction:
    """The function of a network on the processor, with its weights as they are now.

    Views are kept for as long as the weights are where they were.
    """
    if type(network) is ResidualNetwork:
        return _kept(network)
    make: Callable[..., ArrayFunction] = _MAKERS.get(type(network), _through_torch)
    return make(network)


def _kept(network: ResidualNetwork) -> ArrayFunction:
    places = [  # past the attributes of modules, each of which takes a microsecond
        weight.data_ptr()
        for layer in network._modules.values()
        for weight in layer._parameters.values()  # type: ignore[union-attr]
        if weight is not None
    ]
    made = _MADE.get(network)
    if made is None or made[0] != places:
        made = _MADE[network] = places, _residual(network)
    return made[1]


def _residual(network: ResidualNetwork) -> ArrayFunction:
    layers = network.skip, network.value, network.gate, network.last
    skip, value, gate, last = (_view(layer.weight).T for layer in layers)
    skip_bias, value_bias, gate_bias = (_view(layer.bias) for layer in layers[:3])

    def function(rows: np.ndarray) -> np.ndarray:
        half = rows.dot(value)
        half += value_bias
        hidden = silu(half)
        opened = rows.dot(gate)
        opened += gate_bias
        hidden *= np.tanh(opened, out=opened)
        outputs: np.ndarray = rows.dot(skip)
        outputs += skip_bias
        outputs += hidden.dot(last)
        return outputs

    return function


def packed_function(network: Callable[[Tensor], Tensor]) -> ArrayFunction:
    """The same of weights that stay as they are for as long as the function is used: some are
    copied, so that what is multiplied with the inputs is multiplied at once.

    A network that is none of torch's may say what it is on arrays by a method ``on_arrays``.
    """
    if type(network) is ResidualNetwork:
        return _packed(network)
    own: Callable[[], ArrayFunction] | None = getattr(network, "on_arrays", None)
    return array_function(network) if own is None else own()


def _packed(network: ResidualNetwork) -> ArrayFunction:
    layers = network.value, network.gate, network.skip
    weight = np.concatenate([_view(layer.weight) for layer in layers]).T.copy()
    bias = np.concatenate([_view(layer.bias) for layer in layers])
    last, units = _view(network.last.weight).T, len(_view(network.value.bias))

    def function(rows: np.ndarray) -> np.ndarray:
        made = rows.dot(weight)
        made += bias
        hidden = silu(made[:, :units])
        hidden *= np.tanh(made[:, units : 2 * units])
        outputs: np.ndarray = hidden.dot(last)
        outputs += made[:, 2 * units :]
        return outputs

    return function


def _affine(layer: nn.Linear) -> ArrayFunction:
    weight = _view(layer.weight).T
    if layer.bias is None:
        return lambda rows: rows @ weight
    bias = _view(layer.bias)
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


def _silu(network: nn.SiLU) -> ArrayFunction:
    return silu


def silu(values: np.ndarray) -> np.ndarray:
    """``v sigmoid(v) = v / 2 + v / 2 tanh(v / 2)``, which does not overflow."""
    half = values * 0.5
    found: np.ndarray = np.tanh(half)
    found *= half
    found += half
    return found


def _through_torch(network: Callable[[Tensor], Tensor]) -> ArrayFunction:
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
    nn.Linear: _affine,
    nn.Sequential: _sequence,
    nn.ReLU: _relu,
    nn.SiLU: _silu,
}
"""By the class of the network, exactly: a subclass may compute something else."""
