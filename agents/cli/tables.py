"""Tables of scores as commands print them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.config.errors import one_line

Scores = dict[str, float | None]


def print_scores(
    title: str,
    scores: Scores,
    about: dict[str, Any],
    references: dict[str, Scores] | None = None,
) -> None:
    """A table with a row a score, without scores that the data does not have.

    Scores that ``references`` have too are in a table of their own beneath, with their columns.
    """
    columns = {"this run": scores} | (references or {})
    beside = {name for found in (references or {}).values() for name in found}
    print(title)
    rows = [
        {"": name, "this run": f"{value:.5g}"}
        for name, value in scores.items()
        if value is not None and name not in beside
    ]
    rows.append({"": "weights_hash", "this run": about["weights_hash"]})
    print_table(rows, show_header=False)
    rows = [
        {"": name}
        | {column.replace("_", " "): _cell(found[name]) for column, found in columns.items()}
        for name in scores
        if name in beside and any(found[name] is not None for found in columns.values())
    ]
    if rows:
        print("trees of the same samples")
        print_table(rows)


def print_table(rows: Sequence[Mapping[str, str]], *, show_header: bool = True) -> None:
    """Print rows of cells by column; the first column is text, the others are numbers.

    Cells are printed as they are, without control characters: labels may be anything.
    """
    table = Table(show_header=show_header)
    for name in rows[0]:
        table.add_column(name, justify="right" if table.columns else "left")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row.values()))
    Console(file=sys.stdout).print(table)


def _cell(value: float | None) -> str:
    """A score in a table; a dash where the data has none."""
    return "-" if value is None else f"{value:.5g}"
