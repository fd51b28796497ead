"""The coordinates of a token: which columns of the user's are categories, and what each weighs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from htm_env import checks

MOST_VALUES = 4096
"""Values of a category: each is a coordinate of every token."""


@dataclass(frozen=True)
class Coordinates:
    """The user's columns of a token, and the coordinates that they become.

    A column of numbers is one coordinate. A categorical column of ``K`` values, the whole numbers
    ``0 .. K - 1``, becomes ``K``: 1 for its value and 0 for the others. All numbers come first, in
    the order of their columns, then the categories in the order of theirs: ``T`` coordinates of
    ``C`` columns.
    """

    columns: int
    """``C``: the columns as they are given."""
    categorical: tuple[tuple[int, int], ...] = ()
    """Column and number of values of each category, by column."""
    weights: tuple[float, ...] = ()
    """Weight of each column, of mean 1; none: all alike."""

    @classmethod
    def of(cls, columns: int, categorical: Any = None, weights: Any = None) -> Coordinates:
        """From the arguments ``categorical={column: number of values}`` and ``weights=``.

        Columns may be texts of numbers, as JSON has them. Weights are divided by their mean.

        Raises:
            ValueError: a column does not exist, a number of values is less than 2 or more than
                4096, or there is not one weight above 0 for every column.
        """
        return cls(columns, _categorical(columns, categorical), _weights(columns, weights))

    @property
    def values(self) -> tuple[int, ...]:
        """The number of values of each category, in the order of their coordinates."""
        return tuple(count for _, count in self.categorical)

    @property
    def token_dim(self) -> int:
        """``T``: the coordinates of a token."""
        return self.columns - len(self.categorical) + sum(self.values)

    @property
    def numbers(self) -> list[int]:
        """The columns that are no categories."""
        categories = dict(self.categorical)
        return [column for column in range(self.columns) if column not in categories]

    def expand(
        self, name: str, tokens: Float32[np.ndarray, "N P C"], lengths: Int64[np.ndarray, "N"]
    ) -> Float32[np.ndarray, "N P T"]:
        """Columns to coordinates; the argument itself without categories.

        Only the first ``lengths`` tokens of a row are looked at; others become zeros.

        Raises ``ValueError`` for another number of columns, and, with row and token, for a value
        that is none of its category's.
        """
        if tokens.shape[-1] != self.columns:
            raise ValueError(
                f"{name} has {tokens.shape[-1]} numbers a token: expected {self.columns}"
            )
        if not self.categorical:
            return tokens
        present = np.arange(tokens.shape[1]) < lengths[:, None]  # (N, P)
        parts = [tokens[..., self.numbers] * present[..., None]]
        for column, count in self.categorical:
            given = tokens[..., column]
            wrong = present & ~((given >= 0) & (given < count) & (given == np.floor(given)))
            if wrong.any():
                row, token = np.argwhere(wrong)[0]
                raise ValueError(
                    f"{name}: row {row}, token {token} has {given[row, token]:g} in column "
                    f"{column}: expected a category, a whole number from 0 to {count - 1}"
                )
            parts.append((given[..., None] == np.arange(count)) & present[..., None])
        return np.concatenate(parts, axis=2, dtype=np.float32)

    def collapse(self, tokens: Float[Tensor, "*rows T"]) -> Float[Tensor, "*rows C"]:
        """Coordinates to columns: of each category its most probable value, as a number."""
        if not self.categorical:
            return tokens
        columns = tokens.new_zeros(*tokens.shape[:-1], self.columns)
        sizes = [len(self.numbers), *self.values]
        numbers, *categories = tokens.split(sizes, dim=-1)
        columns[..., self.numbers] = numbers
        for (column, _), probabilities in zip(self.categorical, categories, strict=True):
            columns[..., column] = probabilities.argmax(dim=-1).to(columns.dtype)
        return columns

    def units(self, mean: Float[Tensor, "T"], std: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
        """The unit of each coordinate, from mean and standard deviation over the training split.

        In these units the squared errors of a token, averaged over its coordinates, are the
        weighted mean over its *columns*, each of which has error 1 where its mean is predicted: a
        category counts as much as a number, however many values it has. Of a number the unit is
        its standard deviation over the square root of its weight; of a category the error is its
        Brier score (1950) over that of the training split's frequencies.
        """
        if not self.categorical and not self.weights:
            return std
        weights = torch.tensor(self.weights or (1.0,) * self.columns, dtype=torch.float64)
        count, share = len(self.numbers), self.token_dim / self.columns
        units = [(std[:count].double().square() / (weights[self.numbers] * share)).sqrt()]
        for (column, values), frequencies in zip(
            self.categorical, mean[count:].double().split(self.values), strict=True
        ):
            brier = float(1 - frequencies.square().sum())
            brier = brier if brier > SMALLEST else 1.0  # only one value occurs
            units.append((brier / (weights[column] * share)).sqrt().expand(values))
        return torch.cat(units).to(std.dtype)


class OfCoordinates:
    """A dataset whose tokens have :class:`Coordinates`: the methods of ``Dataset`` by which it
    tells them from the user's columns."""

    coordinates: Coordinates

    def to_user(self, tokens: Float[Tensor, "*rows T"]) -> Float[Tensor, "*rows C"]:
        return self.coordinates.collapse(tokens)

    def from_user(self, tokens: Float32[np.ndarray, "B P C"]) -> Float32[np.ndarray, "B P T"]:
        return self.coordinates.expand("tokens", tokens, np.full(len(tokens), tokens.shape[1]))

    def units(self, mean: Float[Tensor, "T"], std: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
        return self.coordinates.units(mean, std)


SMALLEST = 1e-6
"""A Brier score below it is rounding."""


def _categorical(columns: int, given: Any) -> tuple[tuple[int, int], ...]:
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        raise ValueError(f"categorical is {given!r}: expected {{column: number of values}}")
    found = {}
    for name, count in given.items():
        number = int(name) if isinstance(name, str) and name.isdecimal() else name
        column = checks.whole_number("a column of categorical", number, 0, columns - 1)
        found[column] = checks.whole_number(f"categorical[{column}]", count, 2, MOST_VALUES)
    return tuple(sorted(found.items()))


def _weights(columns: int, given: Any) -> tuple[float, ...]:
    if given is None:
        return ()
    if isinstance(given, np.ndarray | Tensor):
        given = given.tolist()
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != columns:
        raise ValueError(f"weights is {given!r}: expected {columns} numbers, one a column")
    found = [checks.positive(f"weights[{column}]", value) for column, value in enumerate(given)]
    return tuple(value * columns / sum(found) for value in found)
