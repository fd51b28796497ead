"""Scalars by tag, and the table ``metrics.csv`` of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from agents.runs.loop import Position
from htm_env.files import atomic_write_text

Scalars = Mapping[str, float | None]
"""By TensorBoard tag; None where there is no value, such as clades of data without a hierarchy."""


class CSVLogger:
    """A table with one row a log point: position first, then the scalars as they first appeared.

    Args:
        path: the file; an earlier one is replaced.
        rows: the rows of a run that is resumed. Those that it wrote after its last checkpoint are
            not among them, and so are cut.
    """

    def __init__(self, path: str | Path, rows: Sequence[Mapping[str, float | None]] = ()) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, float | None]] = [dict(row) for row in rows]
        """Everything written so far; a checkpoint holds it."""
        self._columns: list[str] = []
        self._rewrite()

    def write(self, position: Position, scalars: Scalars) -> None:
        row = asdict(position) | dict(scalars)
        self.rows.append(row)
        if set(row) <= set(self._columns):
            with open(self.path, "a", newline="") as file:
                file.write(self._lines([row]))
        else:
            self._rewrite()

    def _rewrite(self) -> None:
        self._columns = list(dict.fromkeys(name for row in self.rows for name in row))
        header = ",".join(self._columns) + "\n" if self._columns else ""
        atomic_write_text(self.path, header + self._lines(self.rows))

    def _lines(self, rows: Sequence[Mapping[str, float | None]]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        writer.writerows(rows)  # None is written as nothing
        return text.getvalue()
