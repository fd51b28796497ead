"""How often a stored episode is replayed: a priority for each, from the value that it was given.

Prioritised replay: Schaul, Quan, Antonoglou and Silver (2016). An episode is drawn with a
probability proportional to its priority, and weighted by ``(N * probability)^-beta``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FLOOR = 0.01
"""Added before the exponent, so that nothing is out of reach (the paper's epsilon)."""


class Sampler(Protocol):
    """A rule that turns values into priorities."""

    @property
    def beta(self) -> float: ...

    @property
    def relative(self) -> bool:
        """True <--> priorities depend on the smallest and the largest value that are stored."""

    def priorities(
        self, values: NDArray[np.float64], low: float, high: float
    ) -> NDArray[np.float64]:
        """Positive numbers; ``low`` and ``high`` bound the values where ``relative``."""


@dataclass(frozen=True)
class UniformSampler:
    """Every episode equally often, whatever its value."""

    beta: float = 0.0
    relative: bool = False

    def priorities(
        self, values: NDArray[np.float64], low: float, high: float
    ) -> NDArray[np.float64]:
        return np.ones_like(values)


@dataclass(frozen=True)
class AdvantageSampler:
    """By ``(|value| + FLOOR)^alpha``: surprising episodes more often. Values are advantages.

    They should be of order one, as they are once a batch is divided by its root mean square.
    """

    alpha: float
    beta: float
    relative: bool = False

    def priorities(
        self, values: NDArray[np.float64], low: float, high: float
    ) -> NDArray[np.float64]:
        return (np.abs(values) + FLOOR) ** self.alpha


@dataclass(frozen=True)
class ReturnSampler:
    """By ``(rescaled + FLOOR)^alpha``: good episodes more often. Values are returns.

    They are rescaled to [0, 1] between the worst and the best that are stored, so their unit does
    not matter.
    """

    alpha: float
    beta: float
    relative: bool = True

    def priorities(
        self, values: NDArray[np.float64], low: float, high: float
    ) -> NDArray[np.float64]:
        span = high - low
        rescaled = ((values - low) / span).clip(0, 1) if span > 0 else np.ones_like(values)
        return (rescaled + FLOOR) ** self.alpha


SAMPLERS = ("uniform", "advantage", "return")


def make_sampler(name: str, alpha: float = 0.6, beta: float = 0.4) -> Sampler:
    """The sampler of that name; uniform sampling has neither exponent.

    Raises ``ValueError`` with the choices for an unknown name, and for an exponent below 0.
    """
    for exponent, value in (("alpha", alpha), ("beta", beta)):
        if not value >= 0:
            raise ValueError(f"{exponent} is {value}; expected 0 or more")
    if name == "uniform":
        return UniformSampler()
    if name == "advantage":
        return AdvantageSampler(alpha, beta)
    if name == "return":
        return ReturnSampler(alpha, beta)
    raise ValueError(f"unknown sampler {name!r}; choose from {list(SAMPLERS)}")
