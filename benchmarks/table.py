"""Prints rows as a table, and writes them with the machine they were measured on.

``NAME.json`` is for programs, ``NAME.md`` for people: ``docs/benchmarks`` has those that are kept.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from agents.comparison import markdown

RESULTS = Path("runs/benchmarks")


def report(
    name: str,
    rows: Sequence[dict[str, Any]],
    folder: Path = RESULTS,
    device: str = "cpu",
    made_by: Mapping[str, str] | None = None,
) -> None:
    """Print the rows, and write ``folder/name.json`` and ``name.md``; they were measured on
    ``device``, and made as ``made_by`` says (see :func:`origin`)."""
    table = Table(title=name)
    columns = list(rows[0])
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    cells = [{column: text(row[column]) for column in columns} for row in rows]
    for line in cells:
        table.add_row(*line.values())
    Console().print(table)
    folder.mkdir(parents=True, exist_ok=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": _called(device),
        "torch": torch.__version__,
        **(made_by or {}),
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": machine, "rows": list(rows)}, indent=2) + "\n")
    measured_on = "; ".join(f"{key}: {value}" for key, value in machine.items())
    lines = [f"# {name}", measured_on, markdown.table(cells)]
    path.with_suffix(".md").write_text("\n\n".join(lines) + "\n")
    print(f"written to {path} and {path.with_suffix('.md')}")


PLACES = ("--out", "--folder")
"""Options that name folders of this machine."""


def origin(module: str, arguments: Sequence[str]) -> dict[str, str]:
    """The command of a table and the commit of its code, for a table that is kept.

    Without the folders that the table goes to and that hold what it is made of (:data:`PLACES`),
    which change no number.
    """
    kept = [
        word
        for before, word in pairwise(["", *arguments])
        if not {before, word} & set(PLACES) and word.partition("=")[0] not in PLACES
    ]
    words = ["python", "-m", module, *kept]
    return {"command": " ".join(words), "commit": _commit()}


def _commit() -> str:
    """The commit of this code, and whether files differ from it; "unknown" without git."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = " and changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _called(device: str) -> str:
    """The product name of a GPU; the given name of any other device."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


def text(value: Any) -> str:
    """The text of a cell; empty for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
