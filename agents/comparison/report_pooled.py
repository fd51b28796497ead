"""The report's sections on all problems together, and on the course of the training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agents.comparison.markdown import MISSING, cell, span, table
from agents.comparison.plots import curves_figure, intervals_figure, matrix_figure, profiles_figure
from agents.comparison.statistics import (
    Estimate,
    by_task,
    estimate,
    first_reached,
    iqm,
    median,
    performance_profile,
    probability_of_improvement,
)
from agents.comparison.table import Comparison, is_fixed, task_name
from agents.evaluation.figures import write_png

POOLED = "## All problems together"
THRESHOLDS = 120
"""Places at which performance profiles are drawn."""


def pooled_section(comparison: Comparison, figures: Path) -> str:
    """Every algorithm's errors over a reference's: IQM, median and performance profiles."""
    pooled_tasks = comparison.pooled
    if not pooled_tasks:
        return f"{POOLED}\n\nNo run has a finite error to divide by.\n"
    reference = comparison.reference
    unit = "all runs that did not diverge" if reference is None else f"`{reference}`"
    label = f"error / {unit.strip('`')}"
    ratios: dict[str, Estimate] = {}
    rows = []
    for algo in comparison.algos:
        tasks = [task for task in comparison.tasks_of(algo) if task in pooled_tasks]
        if not tasks:
            continue
        scores = comparison.ratios(algo, tasks)
        pooled, middle = estimate(iqm, scores), median(by_task(scores))
        ratios[algo] = Estimate(*(10.0**number for number in pooled))
        rows.append(
            (
                float(pooled.value),
                [
                    f"`{algo}`",
                    f"{len(tasks)} of {len(pooled_tasks)}",
                    span(ratios[algo]),
                    cell(10.0 ** float(middle[0])),
                ],
            )
        )
    rows.sort(key=lambda row: row[0])
    write_png(figures / "pooled.png", intervals_figure(ratios, f"IQM of {label}"))
    everywhere = [a for a in comparison.algos if set(pooled_tasks) <= set(comparison.tasks_of(a))]
    finite = np.concatenate([[], *(comparison.ratios(a, pooled_tasks).ravel() for a in everywhere)])
    finite = finite[np.isfinite(finite)]
    text = f"""{POOLED}

Errors of different problems lie orders of magnitude apart. Here each is divided by the median error
of {unit} on the same problem, and the logarithms of these ratios are averaged: the IQM of 0.5 means
half that error. A row that was not run everywhere is pooled over its own problems and is not
comparable with the others.

{
        table(
            ["merges chosen by", "problems", "IQM of ratios (95 %)", "median ratio"],
            [cells for _, cells in rows],
        )
    }

![pooled](figures/pooled.png)

"""
    nothing = [task_name(t).title for t in comparison.tasks if t not in pooled_tasks]
    if nothing:
        text += f"No run has a finite error on {'; '.join(nothing)}: left out here.\n\n"
    if everywhere and len(finite):
        places = np.linspace(finite.min() - 0.1, finite.max() + 0.1, THRESHOLDS)
        profiles = {
            algo: estimate(
                lambda draws: performance_profile(draws, places),
                comparison.ratios(algo, pooled_tasks),
            )
            for algo in everywhere
        }
        write_png(figures / "profiles.png", profiles_figure(10.0**places, profiles, label))
        text += (
            "Performance profiles: the share of runs whose error ratio is at most what stands "
            "below;\nfurther left is better.\n\n![profiles](figures/profiles.png)\n\n"
        )
    return text


def improvement_section(comparison: Comparison, figures: Path) -> str:
    """How likely each algorithm is better than each other; nothing where there is only one."""
    algos = comparison.algos
    if len(algos) < 2:
        return ""
    values = np.full((len(algos), len(algos)), np.nan)
    rows = []
    for row, algo in enumerate(algos):
        cells = [f"`{algo}`"]
        for column, other in enumerate(algos):
            shared = [t for t in comparison.tasks_of(algo) if t in comparison.tasks_of(other)]
            if row == column or not shared:
                cells.append(MISSING)
                continue
            found = estimate(
                probability_of_improvement,
                comparison.scores(algo, shared),
                comparison.scores(other, shared),
            )
            values[row, column] = found.value
            interval = "" if np.isnan(found.low) else f" ({found.low:.2f} to {found.high:.2f})"
            cells.append(f"{found.value:.2f}{interval}")
        rows.append(cells)
    labels = ("a run of this ...", "... is better than one of this, with probability")
    write_png(figures / "improvement.png", matrix_figure(values, algos, labels))
    return (
        "Probability of improvement: how often a run of the row has a smaller error than one of "
        "the\ncolumn (Mann-Whitney, ties half; mean over the problems that both have):\n\n"
        f"{table(['', *(f'`{algo}`' for algo in algos)], rows)}\n\n"
        "![probability of improvement](figures/improvement.png)\n"
    )


def curves_section(comparison: Comparison, figures: Path) -> str:
    """Validation errors along merges and seconds, and merges until a goal."""
    text = "## Along the training\n\nValidation error: median of the runs, and their range.\n\n"
    for along in ("merges", "seconds"):
        write_png(figures / f"{along}.png", curves_figure(comparison, along))
        text += f"![along {along}](figures/{along}.png)\n\n"
    learned = [algo for algo in comparison.algos if not is_fixed(algo)]
    if not learned:
        return text
    target = learned[0]
    rows = []
    for algo in comparison.algos:
        cells = [f"`{algo}`"]
        for task in comparison.tasks:
            curve = comparison.curve(task, algo, "merges")
            goal = comparison.curve(task, target, "merges")
            if curve is None or goal is None:
                cells.append(MISSING)
                continue
            reached = first_reached(curve.grid, curve.median, float(goal.median[-1]))
            share = (
                "never" if reached is None else f"{reached:,.0f} ({reached / goal.grid[-1]:.2f})"
            )
            cells.append(share)
        rows.append(cells)
    header = ["", *(task_name(task).title for task in comparison.tasks)]
    return text + (
        f"Merges until the median validation error is what `{target}` ends with (and their share "
        f"of its merges):\n\n{table(header, rows)}\n"
    )
