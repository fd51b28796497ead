"""Small comparisons, and runs in this process instead of many: starting one costs seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from agents.cli import main
from agents.comparison import compare
from agents.comparison.jobs import State
from agents.comparison.results import ResultRow, Task
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


def run_here(jobs, workers, watch=lambda: None, keep_open=()) -> None:
    """In place of ``run_jobs``: the same commands, one after the other, in this process."""
    for job in jobs:
        if job.state is State.WAITING:
            status = main(list(job.command[3:]))  # behind python -m agents.cli
            job.state = State.FAILED if status else State.DONE
            job.reason = f"exit status {status}" if status else ""
            watch()


def here(patch: pytest.MonkeyPatch) -> None:
    """Let comparisons run in this process, and draw nothing of the single runs."""
    patch.setattr(compare, "run_jobs", run_here)
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
