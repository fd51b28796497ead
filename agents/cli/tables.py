"""Tables of scores as commands print them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

Scores = dict[str, float | None]


def print_scores(
    title: str,
    scores: Scores,
    about: dict[str, Any],
    references: dict[str, Scores] | None = None,
) -> None:
    """A table with a row a score: the run's, and the references' where they have it."""
    columns = {"this run": scores} | (references or {})
    print(title)
    rows = [
        {"": name}
        | {column.replace("_", " "): _cell(found, name) for column, found in columns.items()}
        for name in scores
    ]
    rows.append({"": "weights_hash", "this run": about["weights_hash"]})
    print_table(rows, show_header=len(columns) > 1)


def print_table(rows: Sequence[Mapping[str, str]], *, show_header: bool = True) -> None:
    """Print rows of cells by column; the first column is text, the others are numbers."""
    table = Table(show_header=show_header)
    for name in rows[0]:
        table.add_column(name, justify="right" if table.columns else "left")
    for row in rows:
        table.add_row(*row.values())
    Console(file=sys.stdout).print(table)


def _cell(scores: Scores, name: str) -> str:
    """A score in a table: empty where it was not taken, a dash where the data has none."""
    if name not in scores:
        return ""
    value = scores[name]
    return "-" if value is None else f"{value:.5g}"
