"""Rows of finished runs whose trees were searched on: what search at inference adds to each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from agents.comparison.plan import PlannedRun
from agents.comparison.results import ResultRow, read_results, run_rows, write_table
from agents.config.options import TEST_EPISODES
from agents.evaluation.evaluate import means, sample_scores
from agents.evaluation.search import improved
from agents.registry import load_learner, unlabelled
from agents.runs.directory import RunDirectory


def searched_name(algo: str, budget: int) -> str:
    """The name under which an algorithm with a search is reported: a label, or more of one."""
    return f"{algo}{':' if algo == unlabelled(algo) else '-'}search{budget}"


def search_runs(
    runs: Sequence[PlannedRun], path: Path, budget: int, tell: Callable[[str], None]
) -> None:
    """Write the test rows of all finished runs that make trees, each tree searched on.

    ``budget`` is that of ``htm evaluate --search``. Rows that the table has are not computed again,
    unless their run was made anew; it is written after each run, so that the work can be
    interrupted, and sorted, so that this makes no difference. ``tell`` gets a line for each run.
    """
    rows = {row.run: row for row in searched_rows(path, [run.directory for run in runs])}
    for run in runs:
        ends = [row for row in run_rows(run.directory) if row.split == "test"]
        if not ends or ends[0].mean_height is None:
            continue
        (end,) = ends
        options = json.loads(end.options or "{}") | {"search": budget}
        found = replace(
            end,
            algo=searched_name(end.algo, budget),
            options=json.dumps(options, sort_keys=True),
            sampled_nmse=None,
            sampled_return=None,
            tree_shapes=None,
            cloned_distance=None,
        )
        if found.run in rows:
            continue
        tell(f"search: {run.name}, budget {budget}")
        rows[found.run] = replace(found, **_scores(run, budget))
        write_table(path, ResultRow, sorted(rows.values(), key=lambda row: row.run))


def searched_rows(path: Path, runs: Sequence[RunDirectory]) -> list[ResultRow]:
    """The rows of a table, perhaps none yet, without those of runs that were made anew since."""
    if not path.exists():
        return []
    ends = [row for run in runs for row in run_rows(run) if row.split == "test"]

    def is_of(row: ResultRow, end: ResultRow) -> bool:
        name = searched_name(end.algo, json.loads(row.options)["search"])
        mine = row.task, row.algo, row.seed, row.weights_hash, row.merges, row.seconds
        return mine == (end.task, name, end.seed, end.weights_hash, end.merges, end.seconds)

    return [row for row in read_results([path]) if any(is_of(row, end) for end in ends)]


@torch.no_grad()
def _scores(run: PlannedRun, budget: int) -> dict[str, Any]:
    """The scores of the test split that depend on the trees, by their field of a row."""
    learner = load_learner(run.directory.path)
    dataset = learner.task.dataset("test")
    scores = means(
        sample_scores(
            improved(learner, budget),
            learner.autoencoder,
            dataset,
            TEST_EPISODES,
            sampled=False,
            reward=learner.reward,
        )
    )
    fields = {"nmse": "nmse", "return": "return_", "error_rate": "error_rate"}
    fields |= {name: name for name in ("tree_recall", "tree_f1", "mean_height")}
    return {own: scores.get(name) for name, own in fields.items()}
