"""The report's sections on retraining and cross-play."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from agents.comparison.diagnoses import CrossPlayRow
from agents.comparison.markdown import cell, table
from agents.comparison.plots import matrix_figure
from agents.comparison.results import Task
from agents.comparison.table import Comparison, task_name
from agents.evaluation.figures import write_png


def retrained_section(comparison: Comparison, retrained: Comparison) -> str:
    """Own error beside that of a fresh autoencoder on the same policy's trees."""
    text = """## Retrained: how good are the trees by themselves?

The learned policy of each run was frozen, and a fresh autoencoder (the default one, whatever the
run's own was) trained on its greedy trees for the same budget; both errors are medians over the
runs that were retrained. A ratio below 1: the trees are better than joint training could show;
above 1: policy and autoencoder had adapted to each other.
"""
    for task in retrained.tasks:
        rows = []
        for algo in retrained.algos_on(task):
            seeds = [row.seed for row in retrained.ends(task, algo)]
            known = [row.seed in seeds for row in comparison.ends(task, algo)]
            own = comparison.errors(task, algo)[known]
            middle = float(np.median(own)) if len(own) else float("nan")
            again = float(np.median(retrained.errors(task, algo)))
            rows.append(
                [f"`{algo}`", str(len(seeds)), cell(middle), cell(again), cell(again / middle)]
            )
        header = ["merges chosen by", "runs", "nmse, own", "nmse, retrained", "ratio"]
        text += f"\n{task_name(task).title}:\n\n{table(header, rows)}\n"
    return text


def cross_play_section(rows: Sequence[CrossPlayRow], figures: Path) -> str:
    """A matrix for each task, and how an algorithm's runs do with each other's autoencoders."""
    text = """## Cross-play: how far did the two only learn each other?

The greedy trees of every policy (rows) through the autoencoders of all runs (columns): median nmse
over the pairs of runs; on the diagonal each policy with its own autoencoder. *Other seeds* are
the autoencoders of the same algorithm's other runs: far above the own one, the two speak a private
language.
"""
    for task in sorted({row.task for row in rows}):
        here = [row for row in rows if row.task == task]
        algos, values = cross_play_matrix(here, task)
        name = task_name(task)
        labels = ("trees of", "autoencoder of")
        figure = matrix_figure(values, algos, labels, logarithmic=True)
        write_png(figures / f"cross_play-{name.short}.png", figure)
        lines = [
            [f"`{algo}`", *(cell(value) for value in values[number]), cell(_siblings(here, algo))]
            for number, algo in enumerate(algos)
        ]
        header = ["trees of", *(f"`{algo}`" for algo in algos), "other seeds"]
        text += f"\n{name.title}:\n\n{table(header, lines)}\n\n"
        text += f"![cross-play](figures/cross_play-{name.short}.png)\n"
    return text


def cross_play_matrix(
    rows: Sequence[CrossPlayRow], task: Task
) -> tuple[list[str], Float[np.ndarray, "A A"]]:
    """The algorithms of a task, and the median ``nmse`` of their trees (rows) through their
    autoencoders (columns): over all pairs of runs, and over the own ones on the diagonal."""
    algos = list(dict.fromkeys(row.algo for row in rows if row.task == task))
    values = np.full((len(algos), len(algos)), np.nan)
    for i, algo in enumerate(algos):
        for j, other in enumerate(algos):
            errors = [
                np.inf if row.nmse is None else row.nmse
                for row in rows
                if row.task == task
                and (row.algo, row.autoencoder_algo) == (algo, other)
                and (i != j or row.own)
            ]
            if errors:
                values[i, j] = np.median(errors)
    return algos, values


def _siblings(rows: Sequence[CrossPlayRow], algo: str) -> float:
    """The median over the autoencoders of the algorithm's other runs; NaN without any."""
    errors = [
        np.inf if row.nmse is None else row.nmse
        for row in rows
        if row.algo == row.autoencoder_algo == algo and not row.own
    ]
    return float(np.median(errors)) if errors else float("nan")
