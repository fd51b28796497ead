"""Tables and numbers as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from agents.comparison.statistics import Estimate

MISSING = "-"
"""In place of a missing number."""


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of cells by column; the first column is text, the others are numbers."""
    header = list(rows[0])
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: float, *, share: bool = False, digits: int = 3) -> str:
    """Some digits, or whole percent; a dash for NaN."""
    if math.isnan(value):
        return MISSING
    return f"{value:.0%}" if share else f"{value:.{digits}g}"


def span(found: Estimate, digits: int = 3) -> str:
    """A single estimate with its interval, if it has one."""
    numbers = [float(number) for number in found]
    value, low, high = (cell(number, digits=digits) for number in numbers)
    return value if any(map(math.isnan, numbers[1:])) else f"{value} ({low} to {high})"
