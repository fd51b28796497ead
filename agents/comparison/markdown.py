"""Tables and numbers as Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from agents.comparison.statistics import Estimate

MISSING = "-"
"""In place of a missing number."""


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of cells by column; the first column is text, the others are numbers.

    Cells are Markdown, but for the bars within them.
    """
    header = list(rows[0])
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *(row.values() for row in rows)]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def code(text: str) -> str:
    """A text as it is, between more backticks than it has itself side by side."""
    if "`" not in text:
        return f"`{text}`"
    fence = "`" * (1 + max(map(len, re.findall("`+", text))))
    return f"{fence} {text} {fence}"


def plain(text: str) -> str:
    """A text whose tags, code, emphasis and links are shown instead of followed."""
    return re.sub(r"[\\<`*]|\](?=[(\[])", r"\\\g<0>", text)


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
