"""How often a stored episode is replayed: a priority for each, from the value that it was given.

Prioritised replay: Schaul, Quan, Antonoglou and Silver (2016). An episode is drawn with a
probability proportional to its priority, and weighted by ``(N * probability)^-beta``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from replay.trajectory import Trajectories

FLOOR = 0.01
"""Added before the exponent, so that nothing is out of reach (the paper's epsilon)."""


class Sampled(NamedTuple):
    """Episodes that a buffer has drawn."""

    trajectories: Trajectories
    weights: Float[Tensor, "B"]
    """``(N * probability)^-beta``, divided by the largest in the buffer; 1 for uniform sampling."""
    indices: Int64[Tensor, "B"]
    """Where they are, for ``ReplayBuffer.update_priorities``; until the next add or drop."""


@dataclass(frozen=True)
class Sampler(ABC):
    """A rule that turns values into priorities."""

    alpha: float
    """Exponent of the priorities; 0 draws uniformly."""
    beta: float
    """Exponent of the weights that correct for them; 1 corrects fully."""
    relative: ClassVar[bool] = False
    """True <--> priorities depend on the smallest and the largest value that are stored."""

    @abstractmethod
    def priorities(
        self, values: NDArray[np.float64], low: float, high: float
    ) -> NDArray[np.float64]:
        """Positive numbers; ``low`` and ``high`` bound the values where ``relative``."""


@dataclass(frozen=True)
class UniformSampler(Sampler):
    """Every episode equally often, whatever its value."""

    def priorities(
        self, values: NDArray[np.float64], low: float, high: float
    ) -> NDArray[np.float64]:
        return np.ones_like(values)


@dataclass(frozen=True)
class AdvantageSampler(Sampler):
    """By ``(|value| + FLOOR)^alpha``: surprising episodes more often. Values are advantages.

    They should be of order one, as they are once a batch is divided by its root mean square.
    """

    def priorities(
        self, values: NDArray[np.float64], low: float, high: float
    ) -> NDArray[np.float64]:
        return (np.abs(values) + FLOOR) ** self.alpha


@dataclass(frozen=True)
class ReturnSampler(Sampler):
    """By ``(rescaled + FLOOR)^alpha``: good episodes more often. Values are returns.

    They are rescaled to [0, 1] between the worst and the best that are stored, so their unit does
    not matter.
    """

    relative = True

    def priorities(
        self, values: NDArray[np.float64], low: float, high: float
    ) -> NDArray[np.float64]:
        span = high - low
        rescaled = ((values - low) / span).clip(0, 1) if span > 0 else np.ones_like(values)
        return (rescaled + FLOOR) ** self.alpha


_SAMPLERS: dict[str, type[Sampler]] = {
    "uniform": UniformSampler,
    "advantage": AdvantageSampler,
    "return": ReturnSampler,
}
SAMPLERS = tuple(_SAMPLERS)
"""The names of the samplers."""


def make_sampler(name: str, alpha: float = 0.6, beta: float = 0.4) -> Sampler:
    """The sampler of that name.

    Raises ``ValueError`` with the choices for an unknown name, and for an exponent below 0.
    """
    if name not in _SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; choose from {list(SAMPLERS)}")
    for exponent, value in (("alpha", alpha), ("beta", beta)):
        if not value >= 0:
            raise ValueError(f"{exponent} is {value}; expected 0 or more")
    return _SAMPLERS[name](alpha, beta)


def known_values(values: Float[Tensor, "B"] | None, count: int) -> Float[np.ndarray, "B"]:
    """The values of ``count`` episodes; nan where there are none.

    Raises ``ValueError`` for another number of values, and naming the first that is not finite.
    """
    if values is None:
        return np.full(count, np.nan)
    if values.shape != (count,):
        raise ValueError(
            f"values have shape {tuple(values.shape)}; expected one for each of {count} episodes"
        )
    if not values.isfinite().all():
        row = int((~values.isfinite()).nonzero()[0])
        raise ValueError(f"the value of episode {row} is {float(values[row])}; expected finite")
    return values.detach().cpu().double().numpy()
