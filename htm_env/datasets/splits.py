"""Which rows of given data are for training, validation and testing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from htm_env import checks
from htm_env.datasets.base import SPLITS, uniforms

_SPLIT_SEED = 0


def split_shares(fractions: Sequence[float]) -> tuple[float, ...]:
    """The share of each split; ``ValueError`` where they are not three numbers above 0 whose sum is
    1."""
    if not isinstance(fractions, Sequence) or isinstance(fractions, str) or len(fractions) != 3:
        raise ValueError(f"split_fractions is {fractions!r}: expected three numbers")
    shares = tuple(checks.positive("split_fractions", fraction) for fraction in fractions)
    if not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise ValueError(f"split_fractions is {fractions!r}: expected the sum 1, not {sum(shares)}")
    return shares


def split_rows(
    count: int, fractions: Sequence[float] = (0.8, 0.1, 0.1), name: str = "dataset"
) -> tuple[Int64[np.ndarray, "_"], ...]:
    """The rows of each split: a fixed permutation of ``count`` rows, cut by the fractions.

    ``name`` is what an error calls the data.

    Raises:
        ValueError: there are not three fractions above 0 with sum 1, or a split would be empty.
    """
    shares = split_shares(fractions)
    validation, test = round(count * shares[1]), round(count * shares[2])
    sizes = (count - validation - test, validation, test)
    if min(sizes) < 1:
        found = ", ".join(f"{size} {name}" for size, name in zip(sizes, SPLITS, strict=True))
        raise ValueError(
            f"{name}: {count} rows with split_fractions {shares} give {found}: "
            f"expected at least one row in each; {_advice(count)}"
        )
    order = np.argsort(uniforms(np.array([_SPLIT_SEED], dtype=np.uint64), count)[0], kind="stable")
    return tuple(np.split(order, np.cumsum(sizes[:2])))


def _advice(count: int) -> str:
    """How few rows can be split."""
    if count < len(SPLITS):
        return "give a set several times, with split_of= the split of each"
    return "give split_fractions=[0.5, 0.25, 0.25], or the split of each row with split_of="


def rows_as_told(name: str, split: Int64[np.ndarray, "N"]) -> tuple[Int64[np.ndarray, "_"], ...]:
    """The rows of each split, in the order in which they are given."""
    found = tuple(np.flatnonzero(split == index) for index in range(len(SPLITS)))
    for rows, own in zip(found, SPLITS, strict=True):
        if not len(rows):
            raise ValueError(
                f"{name} has no row of the split {own!r}: expected at least one; a training row "
                "may be given again as such where none is to be held out"
            )
    return found
