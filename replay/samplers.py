"""How often a stored episode is replayed: a priority for each, from the value that it was given.

Prioritised replay: Schaul, Quan, Antonoglou and Silver (2016). An episode is drawn with a
probability proportional to ``priority^alpha``, and weighted by ``(N * probability)^-beta``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
"""(N,): one number for each stored episode; nan where none was given."""

FLOOR = 0.01
"""Added before the exponent, so that every episode can be drawn (the paper's epsilon)."""


def uniform(values: Values) -> Values:
    """Every episode equally often, whatever its value."""
    return np.ones_like(values)


def by_advantage(values: Values) -> Values:
    """``|value| + FLOOR``: surprising episodes more often. Values are advantages.

    They should be of order one, as they are once a batch is divided by its root mean square.
    """
    priorities: Values = np.abs(values) + FLOOR
    return priorities


def by_return(values: Values) -> Values:
    """``rescaled + FLOOR``: good episodes more often. Values are returns.

    They are rescaled to [0, 1] between the worst and the best of them, so their unit does not
    matter. An unknown return (nan) counts as the best.
    """
    low, high = np.fmin.reduce(values), np.fmax.reduce(values)
    rescaled = (values - low) / (high - low) if high > low else np.ones_like(values)
    priorities: Values = np.nan_to_num(rescaled, nan=1.0) + FLOOR
    return priorities


class Sampler(NamedTuple):
    """A rule that turns values into priorities."""

    priorities: Callable[[Values], Values]
    relative: bool = False
    """True <--> an episode's priority depends on the values of all stored episodes."""


SAMPLERS = {
    "uniform": Sampler(uniform),
    "advantage": Sampler(by_advantage),
    "return": Sampler(by_return, relative=True),
}
"""The rules by name."""
