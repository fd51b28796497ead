"""Numbers along an axis."""

from __future__ import annotations

from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter


def plain_numbers(axis: Axis) -> None:
    """Every number for itself, as in 0.0002 or 5e−05: no factor at the end of the axis."""
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}".replace("-", "\N{MINUS SIGN}"))
    )
