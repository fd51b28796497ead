"""Schedules over the share of the budget that is used, ``progress`` in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

Points = tuple[tuple[float, float], ...]
"""(share of the budget, value), shares rising; see :func:`piecewise_linear`."""
ALWAYS: Points = ((0.0, 1.0),)
"""1 from the beginning to the end."""
FEWEST_UPDATES = 100
"""With fewer over the whole budget, every update moves a schedule by more than 1 %."""


def check_points(name: str, points: Sequence[tuple[float, float]]) -> None:
    """Raise ``ValueError`` unless these are points with rising shares, all between 0 and 1."""
    shares = [share for share, _ in points]
    inside = all(0 <= number <= 1 for point in points for number in point)
    if not points or not inside or any(after < before for before, after in pairwise(shares)):
        raise ValueError(
            f"{name} is {points}; expected (share, value) pairs between 0 and 1, shares rising"
        )


def piecewise_linear(points: Sequence[tuple[float, float]], progress: float) -> float:
    """The value at ``progress`` on straight lines between ``(progress, value)`` points.

    Constant before the first point and after the last one. Raises ``ValueError`` where there is no
    point, or where their progress falls.
    """
    if not points or any(later[0] < point[0] for point, later in pairwise(points)):
        raise ValueError(f"the points are {points}; expected (share, value) pairs, shares rising")
    before = points[0]
    for point in points:
        if progress <= point[0]:
            if point[0] == before[0]:
                return point[1]
            share = max(0.0, (progress - before[0]) / (point[0] - before[0]))
            return before[1] + share * (point[1] - before[1])
        before = point
    return points[-1][1]


def too_few_updates(updates: int) -> str | None:
    """One sentence where a run made too few updates for its schedules; None where it did not."""
    if updates >= FEWEST_UPDATES:
        return None
    return (
        f"only {updates} updates: every one moved the schedules over the budget by more than 1 %, "
        f"so this says little of the algorithm; expected at least {FEWEST_UPDATES}"
    )


def cosine_decay(progress: float, floor: float = 0.0) -> float:
    """1 at the start, ``floor`` at the end, half a cosine between (Loshchilov & Hutter 2017)."""
    progress = min(max(progress, 0.0), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def warm_up(updates: int, length: int) -> float:
    """Rises in a line to 1 over the first ``length`` updates."""
    return min(1.0, (updates + 1) / length) if length > 0 else 1.0
