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


def cell(value: float, *, share: bool = False) -> str:
    """Three digits, or whole percent; a dash for NaN."""
    if math.isnan(value):
        return MISSING
    return f"{value:.0%}" if share else f"{value:.3g}"


def span(found: Estimate) -> str:
    """A single estimate with its interval, if it has one."""
    value, low, high = (float(number) for number in found)
    bare = math.isnan(low) or math.isnan(high)
    return cell(value) if bare else f"{cell(value)} ({cell(low)} to {cell(high)})"
