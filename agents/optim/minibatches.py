"""A batch in about equal parts, and what was measured on them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Int64
from torch import Tensor


def equal_parts(
    total: int, size: int, device: str | torch.device = "cpu"
) -> list[Int64[Tensor, "part"]]:
    """The rows ``0 .. total - 1`` in parts that differ by one row at most, each about ``size``.

    A part takes every so many rows, so that trees of the same sample, which are neighbours, come
    into different parts where there are several.
    """
    parts = max(1, round(total / size))
    return [torch.arange(part, total, parts, device=device) for part in range(parts)]


def mean_scalars(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """The mean of every scalar over the rows where it is finite; NaN where it never is."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for tag, value in row.items():
            values.setdefault(tag, []).append(value)
    return {tag: mean_of_finite(numbers) for tag, numbers in values.items()}


def mean_of_finite(values: list[float]) -> float:
    """The mean of those that are finite; NaN if none is."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
