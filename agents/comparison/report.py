"""``report.md``: the tables and figures of a comparison, for a person who has not seen the code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agents.comparison.diagnoses import CrossPlayRow
from agents.comparison.markdown import MISSING, cell, span, table
from agents.comparison.plots import errors_figure
from agents.comparison.report_diagnoses import cross_play_section, retrained_section
from agents.comparison.report_pooled import curves_section, improvement_section, pooled_section
from agents.comparison.results import ResultRow, Task
from agents.comparison.statistics import estimate, iqm, median, paired_ratio
from agents.comparison.table import Comparison, task_name
from agents.evaluation.figures import write_png
from agents.registry import unlabelled
from htm_env.files import atomic_write_text

HELD_AGAINST = (
    "structure",
    "structure_sorted",
    "structure_canonical",
    "nearest",
    "nearest_sorted",
    "original",
    "original_policy",
    "reinforce",
)
"""Rows that every other one is divided by, where they are among the rows; labelled ones too."""
PAIRS = 2
"""Seeds that two rows share at least, where they are compared pair by pair."""
INTRODUCTION = """\
# Comparison of merge policies

{runs} finished runs: {algos} algorithms on {tasks} problems. All runs on a problem were tested on
the same held-out samples, and those of one command had the same budget: the columns *merges* and
*seconds* show it.

- **nmse**: mean squared error of the tokens that one root embedding decodes to, in units of each
  coordinate's variance; 1 is about "predict the mean", 0 is perfect, smaller is better. Merges are
  chosen greedily, except where *sampled* from the policy.
- **clades found**: the share of the data's own groups that the merge trees contain; nothing rewards
  it. It is empty for data without a hierarchy.
- **IQM**: interquartile mean, the mean of the middle half of the runs (of three, of all of them).
  Intervals are 95 % percentiles of a bootstrap that resamples runs within each problem (Agarwal et
  al. 2021). With few seeds they are narrower than the truth.
- A run whose error was not finite counts as infinitely bad.
- `flat` makes no trees: it decodes a set, whose tokens are matched to the sample's by the best
  assignment. That favours it.
"""


def write_report(
    out: Path,
    rows: Sequence[ResultRow],
    retrained: Sequence[ResultRow] = (),
    crossed: Sequence[CrossPlayRow] = (),
) -> Path:
    """Write ``report.md`` and ``figures/`` to a folder; returns the report's path.

    Raises ``ValueError`` where no run is finished.
    """
    comparison = Comparison(rows)
    if not comparison.tasks:
        raise ValueError(f"none of the {len(comparison.unfinished)} runs is finished; no report")
    figures = out / "figures"
    finished = sum(row.split == "test" for row in rows)
    parts = [
        INTRODUCTION.format(runs=finished, algos=len(comparison.algos), tasks=len(comparison.tasks))
    ]
    if comparison.unfinished:
        names = [
            f"{algo} seed {seed} on {task_name(task).title}"
            for task, algo, _, seed in comparison.unfinished
        ]
        parts.append(f"Not finished, and so not counted: {'; '.join(names)}.\n")
    write_png(figures / "errors.png", errors_figure(comparison))
    parts.append("![held-out errors](figures/errors.png)\n")
    parts += [_task_section(comparison, task) for task in comparison.tasks]
    parts.append(pooled_section(comparison, figures))
    parts.append(improvement_section(comparison, figures))
    parts.append(curves_section(comparison, figures))
    if retrained:
        parts.append(retrained_section(comparison, Comparison(retrained)))
    if crossed:
        parts.append(cross_play_section(crossed, figures))
    path = out / "report.md"
    atomic_write_text(path, "\n".join(parts))
    return path


def _task_section(comparison: Comparison, task: Task) -> str:
    algos = sorted(
        comparison.algos_on(task), key=lambda algo: float(np.median(comparison.errors(task, algo)))
    )
    rows = []
    for algo in algos:
        ends = comparison.ends(task, algo)
        errors = comparison.errors(task, algo)
        rows.append(
            [
                f"`{algo}`",
                str(len(ends)),
                cell(float(np.median(errors))),
                span(estimate(iqm, errors[:, None])),
                cell(_median([row.sampled_nmse for row in ends])),
                cell(_median([row.tree_recall for row in ends]), share=True),
                cell(_median([row.mean_height for row in ends])),
                *(
                    f"{_median([getattr(row, name) for row in ends]):,.0f}"
                    for name in ("merges", "updates", "seconds")
                ),
            ]
        )
    header = [
        "merges chosen by",
        "runs",
        "nmse, median",
        "nmse, IQM (95 %)",
        "nmse, sampled",
        "clades found",
        "tree height",
        "merges",
        "updates",
        "seconds",
    ]
    text = f"## {task_name(task).title}\n\n{table(header, rows)}\n"
    against = [name for name in HELD_AGAINST if name in algos]
    against += [name for name in comparison.algos if name in algos and name != unlabelled(name)]
    if against:
        ratios = [
            [f"`{algo}`", *(_ratio(comparison, task, algo, other) for other in against)]
            for algo in algos
        ]
        text += (
            "\nMedian error divided by that of other rows (95 % interval; below 1 is better than "
            "they are; an\ninterval without 1 is a difference whose interval leaves out 0):\n\n"
            f"{table(['', *(f'/ `{name}`' for name in against)], ratios)}\n"
        )
    return text + _paired_table(comparison, task, algos, against)


def _paired_table(
    comparison: Comparison, task: Task, algos: Sequence[str], against: Sequence[str]
) -> str:
    """Only rows and columns that have a cell; nothing where no two algorithms share two seeds."""
    cells: dict[tuple[str, str], str] = {}
    for algo in algos:
        for other in against:
            mine, theirs = comparison.pairs(task, algo, other)
            if algo != other and len(mine) >= PAIRS:
                cells[algo, other] = span(paired_ratio(mine, theirs))
    columns = [other for other in against if any((algo, other) in cells for algo in algos)]
    if not columns:
        return ""
    rows = [
        [f"`{algo}`", *(cells.get((algo, other), MISSING) for other in columns)]
        for algo in algos
        if any((algo, other) in cells for other in columns)
    ]
    return (
        "\nThe same seeds, pair by pair: geometric mean of the ratios (95 % interval, Student's t\n"
        "of the logarithms):\n\n"
        f"{table(['', *(f'/ `{name}`' for name in columns)], rows)}\n"
    )


def _ratio(comparison: Comparison, task: Task, algo: str, other: str) -> str:
    if algo == other:
        return MISSING
    with np.errstate(divide="ignore", invalid="ignore"):
        found = estimate(
            lambda mine, theirs: median(mine) / median(theirs),
            comparison.errors(task, algo)[:, None],
            comparison.errors(task, other)[:, None],
        )
    return span(found)


def _median(values: Sequence[float | int | None]) -> float:
    """NaN where there is no value."""
    found = [value for value in values if value is not None]
    return float(np.median(found)) if found else float("nan")
