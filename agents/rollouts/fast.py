"""Where merges are made in one compiled call: numba is there, and so are weights for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from agents.rollouts.pair_scores import ArrayScorer, PointerWeights
from htm_env.autoencoder import PackedWeights, packed_weights


class Compiled(NamedTuple):
    """Compiled functions, and the weights that they are given."""

    functions: Any
    """The module ``compiled.py``."""
    merger: PackedWeights
    scorer: PointerWeights


def compiled(
    merger: Callable[[Tensor], Tensor], scorer: ArrayScorer, *arrays: np.ndarray
) -> Compiled | None:
    """None where merges are made step by step: without numba, with other networks than a gated
    residual merger and a pointer, and where ``arrays`` or weights are no float32."""
    weights, own = packed_weights(merger), scorer.weights()
    if weights is None or own is None:
        return None
    if any(values.dtype != np.float32 for values in (*arrays, *weights, *own)):
        return None
    functions = _functions()
    return None if functions is None else Compiled(functions, weights, own)


@cache
def _functions() -> ModuleType | None:
    try:  # not at the top: importing numba takes half a second
        from agents.rollouts import compiled as functions
    except ImportError:  # there is none, or one that does not know this numpy
        return None
    return functions
