"""Means over samples or draws with what is not known of them: standard errors and intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000
CONFIDENCE = 0.95


class Mean(NamedTuple):
    """A mean with its standard error."""

    mean: float
    error: float | None
    """None for a single value."""


class Interval(NamedTuple):
    """A mean with its bootstrap interval."""

    mean: float
    low: float
    high: float


def mean_with_error(values: Float[np.ndarray, "N"]) -> Mean | None:
    """The mean of the values that are not NaN, with its standard error; None without any."""
    counted = values[~np.isnan(values)].astype(np.float64)
    if not len(counted):
        return None
    error = float(counted.std(ddof=1)) / len(counted) ** 0.5 if len(counted) > 1 else None
    return Mean(float(counted.mean()), error)


def bootstrap_interval(
    values: Float[np.ndarray, "N"],
    generator: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval | None:
    """The mean of the values that are not NaN, between percentiles of resampled means (Efron 1979,
    "Bootstrap methods: another look at the jackknife"); None where there are none."""
    counted = values[~np.isnan(values)].astype(np.float64)
    if not len(counted):
        return None
    # How often each value is drawn, so that a resample is one row of a product.
    counts = generator.multinomial(len(counted), [1 / len(counted)] * len(counted), size=resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(counts @ counted / len(counted), [tail, 1 - tail])
    return Interval(float(counted.mean()), float(low), float(high))
