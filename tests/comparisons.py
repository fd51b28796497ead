"""Small comparisons, and runs in this process instead of many: starting one costs seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from agents.cli import main
from agents.comparison import workshop
from agents.comparison.results import ResultRow, Task
from agents.engines import Progress, UnitState
from agents.learners.base import Learner
from agents.learners.flat import Flat

SMALL_AUTOENCODER = {"autoencoder": {"hidden_dim": 8}, "batch_size": 4}
OPTIONS = {
    "reinforce": SMALL_AUTOENCODER | {"policy_hidden_dim": 8},
    "nearest": SMALL_AUTOENCODER,
    "chain": SMALL_AUTOENCODER,
    "structure": SMALL_AUTOENCODER,
    "flat": {"hidden_dim": 8, "batch_size": 4},
}
TREES = Task("HTM-Trees-v0", '{"heights": [3]}', 6, "joint")
DIGITS = Task("HTM-Digits-v0", "{}", 32, "joint")


def arguments(algos: str, merges: int, out: Path, *more: str) -> list[str]:
    """The command that compares them on trees of three tokens."""
    given = {name: OPTIONS[name] for name in algos.split(",")}
    return [
        "compare",
        "--envs",
        "HTM-Trees-v0",
        "--env-kwargs",
        '{"HTM-Trees-v0": {"heights": [3]}}',
        "--embedding-dim",
        "3",
        "--algos",
        algos,
        "--algo-options",
        json.dumps(given),
        "--merges",
        str(merges),
        "--out",
        str(out),
        *more,
    ]


def run_here(units, engine, watch=lambda progress: None) -> dict[str, Progress]:
    """In place of ``run_units``: the same commands, one after the other, in this process."""
    ends: dict[str, Progress] = {}
    for unit in units:
        status = main(unit.command()[3:])  # behind python -m agents.cli
        state = UnitState.FAILED if status else UnitState.DONE
        ends[unit.name] = Progress(state, f"exit status {status}" if status else "")
        watch(ends)
    return ends


def here(patch: pytest.MonkeyPatch) -> None:
    """Let comparisons run in this process, and draw nothing of the single runs."""
    patch.setattr(workshop, "run_units", run_here)
    for learner in (Learner, Flat):
        patch.setattr(learner, "figure", lambda self, dataset: Figure(figsize=(0.1, 0.1)))


def rows(
    task: Task, algo: str, seed: int, errors: list[float | None], budget: str = "30 seconds"
) -> list[ResultRow]:
    """A run with a validation point every 100 merges and 10 s; the last error is the test's."""
    made = []
    for point, error in enumerate(errors, start=1):
        last = point == len(errors)
        step = point - 1 if last else point
        tree = None if algo == "flat" else 0.5
        made.append(
            ResultRow(
                *task[:3],
                algo,
                "none",
                task.mode,
                seed,
                budget,
                "test" if last else "validation",
                10.0 * step,
                100 * step,
                step,
                error,
                error if last else None,
                None if task is DIGITS else tree,
                None,
                None if algo == "flat" else 3.0,
                "0123456789ab" if last else "",
            )
        )
    return made


def line_of(report: str, heading: str, algo: str) -> list[str]:
    """The first row of an algorithm behind a heading, cell by cell."""
    after = report[report.index(heading) :]
    line = next(line for line in after.splitlines() if line.startswith(f"| `{algo}`"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time and its bytes."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
