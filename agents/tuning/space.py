"""The options that a search may choose, and their values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agents.config.dataclasses_json import config_from_dict

Values = dict[str, Any]
"""Values of options by their dotted paths."""


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def draw(self, generator: np.random.Generator) -> Any:
        return self.values[int(generator.integers(len(self.values)))]


@dataclass(frozen=True)
class Range:
    """A number between two others, both included.

    Where both are whole, so is the number.
    """

    low: float | int
    high: float | int
    log: bool = False
    """Uniform in the logarithm."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low is {self.low} and high {self.high}; expected low below high")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}; expected a number above 0 where log is true")

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def draw(self, generator: np.random.Generator) -> float | int:
        share = float(generator.random())
        if self.is_whole:  # every number has as much of the range, those at its ends included
            low, high = self.low - 0.5, self.high + 0.5
        else:
            low, high = float(self.low), float(self.high)
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.is_whole else value


Space = dict[str, Choice | Range]
"""What a search may choose, by the dotted paths of options."""


def space_from_dict(given: Mapping[str, Any]) -> Space:
    """The space that JSON describes: a list of values, or an object of :class:`Range`.

    Raises ``ValueError`` naming what is neither, and where there is nothing to choose.
    """
    space: Space = {}
    for path, about in given.items():
        if isinstance(about, list) and about:
            space[path] = Choice(tuple(about))
        elif isinstance(about, dict):
            try:
                found = config_from_dict(Range, about)
                # A whole number may have become another one on the way.
                space[path] = replace(found, low=about["low"], high=about["high"])
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        else:
            raise ValueError(
                f"{path} is {about!r}; expected a list of values, or an object with low and high"
            )
    if not space:
        raise ValueError("it names no option; expected at least one")
    return space


def draw(space: Space, generator: np.random.Generator) -> Values:
    """Values of all options, each drawn by itself."""
    return {path: option.draw(generator) for path, option in space.items()}
