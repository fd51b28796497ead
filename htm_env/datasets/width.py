"""The width of an embedding that suits a data set, from principal components of sorted sets."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from htm_env.datasets.base import Dataset

HELD = 0.95
"""Share of the variance that the components hold."""
FEW_SETS = 0.8
"""Of the most components that so many sets can have: with this share, the sets are the limit."""
LEAST, MOST = 2, 128
"""Bounds of the width."""
SETS = 1024
"""Training sets that are looked at, at most."""
NUMBERS = 2**23
"""And their numbers, padding included."""


class Width(NamedTuple):
    """A number of coordinates for an embedding, and the reason for it."""

    dim: int
    reason: str


def suitable_width(dataset: Dataset) -> Width:
    """``D`` for ``embedding_dim="auto"``: principal components of the sorted training sets.

    The tokens of a set, in the units of the error, are sorted by their first coordinate, then the
    next, and padded with the mean; so a set is one vector. The width is the number of principal
    components that hold 95 % of the variance of these vectors, so that a linear code of that width
    would leave an ``nmse`` of about 0.05. It is at least 2 and at most 128, and in any case less
    than the numbers of the median training set, or nothing would be compressed: 1 where those are
    two. Of large data the first 1,024 training sets are taken, or fewer where they have more than 8
    million numbers. N sets vary along N - 1 components at most: the reason says where they are too
    few to tell the width.
    """
    room = max(LEAST, NUMBERS // (dataset.max_tokens * dataset.token_dim))
    tokens, present = dataset.training_sets(min(SETS, room))
    standardised = (tokens - dataset.mean.numpy()) / dataset.std.numpy()
    found = components_holding(sorted_tokens(standardised, present).reshape(len(tokens), -1))
    columns = dataset.token_dim - sum(dataset.categories) + len(dataset.categories)
    numbers = int(np.median(present.sum(axis=1)) * columns)
    dim = min(max(found, LEAST), MOST, numbers - 1)
    reason = (
        f"{found} components hold {HELD:.0%} of the variance of the sorted training sets; "
        f"the median set has {numbers} numbers"
    )
    if found >= FEW_SETS * (len(tokens) - 1) and dim <= max(found, LEAST) < numbers:
        reason += (
            f"; limited by the number of training sets, {len(tokens)}: give the width "
            "(--embedding-dim)"
        )
    return Width(dim, reason)


def components_holding(vectors: Float[np.ndarray, "N F"], share: float = HELD) -> int:
    """The fewest principal components that hold ``share`` of the variance; 0 where nothing varies.

    From the eigenvalues of the smaller one of the two matrices of products.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    count, size = centred.shape
    products = centred @ centred.T if count < size else centred.T @ centred
    variances = np.linalg.eigvalsh(products)[::-1].clip(min=0)
    total = variances.sum()
    if total <= 0:
        return 0
    return int(np.searchsorted(np.cumsum(variances) / total, share)) + 1


def sorted_tokens(
    tokens: Float[np.ndarray, "N P T"], present: Bool[np.ndarray, "N P"]
) -> Float[np.ndarray, "N P T"]:
    """The tokens of every sample by their first coordinate, then the next; empty slots are zeros.

    An order that every sample shares: Digits come as columns of patches, so that the numbers of a
    sample are its pixels, and places that never vary.
    """
    values = np.where(present[:, :, None], tokens, 0.0)
    keys = (*np.moveaxis(values, 2, 0)[::-1], ~present)  # the last key counts most
    order = np.lexsort(keys, axis=1)  # (N, P)
    return np.take_along_axis(values, order[:, :, None], axis=1)
