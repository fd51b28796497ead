"""``report.md``: the tables and figures of a comparison, for readers who have not seen the code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from agents.comparison.diagnoses import CrossPlayRow
from agents.comparison.markdown import MISSING, cell, code, plain, span, table
from agents.comparison.plots import (
    curves_figure,
    errors_figure,
    intervals_figure,
    matrix_figure,
    profiles_figure,
    widths_figure,
)
from agents.comparison.problems import task_name
from agents.comparison.results import JOINED, ResultRow, Task
from agents.comparison.statistics import (
    Estimate,
    by_task,
    estimate,
    first_reached,
    iqm,
    median,
    paired_difference,
    paired_ratio,
    performance_profile,
    probability_of_improvement,
)
from agents.comparison.table import ERROR, Comparison, is_fixed
from agents.config.schedules import FEWEST_UPDATES
from agents.evaluation.figures import write_figure
from agents.registry import unlabelled
from htm_env.best_known import BestKnown, best_known
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
- **return**: where merges have known results and nothing is decoded, the summed reward of a tree;
  larger is better. It has no zero of its own, so such rows are compared by differences.
- **regret**, **score**: on a frozen environment, the error less that of the best trees known of the
  same samples (`htm best-known`; of returns the other way round), and `(random - error) / (random -
  best known)`: 0 is as good as random merges, 1 as the best trees known.
- **clades found**: the share of the data's own groups that the merge trees contain; nothing rewards
  it. It is empty for data without a hierarchy.
- **tree shapes**: the different shapes among the greedy trees of a learned policy on the test
  samples, whatever the names of the leaves; **distance to the cloned**: the mean Robinson-Foulds
  distance of these trees to those of the fixed order that was cloned, 0 the same, 1 no clade in
  common.
- **IQM**: interquartile mean, the mean of the middle half of the runs (of three, of all of them).
  Intervals are 95 % percentiles of a bootstrap that resamples runs within each problem (Agarwal et
  al. 2021). With few seeds they are narrower than the truth.
- A run whose error was not finite counts as infinitely bad.
- `flat` makes no trees: it decodes a set, whose tokens are matched to the sample's by the best
  assignment. That favours it.
"""
AGAINST = {
    "nmse": (
        "Median error divided by that of other rows (95 % interval; below 1 is better than they "
        "are; an\ninterval without 1 is a difference whose interval leaves out 0):",
        "/",
    ),
    "return": (
        "Median return less that of other rows (95 % interval; above 0 is better than they are):",
        "less",
    ),
}
"""Sentence over the table that holds rows against each other, and the sign between them."""
PAIRED = {
    "nmse": "The same seeds, pair by pair: geometric mean of the ratios (95 % interval, Student's t"
    "\nof the logarithms):",
    "return": "The same seeds, pair by pair: mean of the differences (95 % interval, Student's t):",
}
THRESHOLDS = 120
"""Places at which performance profiles are drawn."""


def write_report(
    out: Path,
    rows: Sequence[ResultRow],
    retrained: Sequence[ResultRow] = (),
    crossed: Sequence[CrossPlayRow] = (),
) -> Path:
    """Write ``report.md`` and ``figures/`` to a folder; returns the report's path.

    Raises ``ValueError`` where no run is finished, and where runs that were given seconds ran on
    different processors.
    """
    check_processors(rows)
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
            f"{plain(algo)} seed {seed} on {plain(task_name(task).title)}"
            for task, algo, _, seed in comparison.unfinished
        ]
        parts.append(f"Not finished, and so not counted: {'; '.join(names)}.\n")
    parts += _few_updates(comparison)
    write_figure(figures / "errors.png", errors_figure(comparison), dpi=None)
    parts.append("![held-out errors](figures/errors.png)\n")
    parts += [_task_section(comparison, task) for task in comparison.tasks]
    parts.append(widths_section(comparison, figures))
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


def check_processors(rows: Iterable[ResultRow]) -> None:
    """Raise ``ValueError`` where finished runs on one problem had a budget of seconds on different
    processors, be it one run that went on elsewhere: a second is not worth the same on them."""
    found: dict[Task, set[str]] = {}
    for row in rows:
        if row.split == "test" and row.budget.endswith("seconds") and row.processor:
            found.setdefault(row.task, set()).update(row.processor.split(JOINED))
    for task, processors in found.items():
        if len(processors) > 1:
            raise ValueError(
                f"the runs on {task_name(task).title} had a budget of seconds on different "
                f"processors ({'; '.join(sorted(processors))}), whose seconds are not the same; "
                "compare them under --merges, or report each processor's runs by themselves"
            )


def _few_updates(comparison: Comparison) -> list[str]:
    """A sentence on the runs that made too few updates for their schedules, if there are any."""
    few = []
    for task in comparison.tasks:
        for algo in comparison.algos_on(task):
            updates = [row.updates for row in comparison.ends(task, algo)]
            learns = task.mode == "joint" or not is_fixed(algo)
            if learns and min(updates) < FEWEST_UPDATES:
                few.append(f"{code(algo)} on {plain(task_name(task).title)} ({min(updates)})")
    if not few:
        return []
    return [
        f"Some runs made fewer than {FEWEST_UPDATES} updates, too few for schedules over the "
        f"budget, and say little of the algorithm: {'; '.join(few)}.\n"
    ]


def _task_section(comparison: Comparison, task: Task) -> str:
    algos = sorted(
        comparison.algos_on(task), key=lambda algo: float(np.median(comparison.errors(task, algo)))
    )
    measure, rows = comparison.measure(task), []
    name, sign, digits = measure
    categories = any(row.error_rate is not None for a in algos for row in comparison.ends(task, a))
    known = None
    if task.mode == "frozen" and not task.merger:
        ends = comparison.ends(task, algos[0])
        known = best_known(task.env, json.loads(task.env_kwargs), ends[0].weights_hash)
    for algo in algos:
        ends = comparison.ends(task, algo)
        errors = comparison.errors(task, algo)
        wrong = cell(_median([row.error_rate for row in ends]), share=True)
        rows.append(
            {
                "merges chosen by": code(algo),
                "runs": str(len(ends)),
                f"{name}, median": cell(sign * float(np.median(errors)), digits=digits),
                f"{name}, IQM (95 %)": span(measure.of(estimate(iqm, errors[:, None])), digits),
                **({"categories wrong": wrong} if categories else {}),
                **_against_best_known(ends, known),
                f"{name}, sampled": cell(
                    sign * _median([row.sampled_error for row in ends]), digits=digits
                ),
                "clades found": cell(_median([row.tree_recall for row in ends]), share=True),
                "tree height": cell(_median([row.mean_height for row in ends])),
            }
            | {
                column: f"{_median([getattr(row, column) for row in ends]):,.0f}"
                for column in ("merges", "updates", "seconds")
            }
            | _diagnoses(ends)
        )
    text = f"## {plain(task_name(task).title)}\n\n{table(rows)}\n"
    against = [name for name in HELD_AGAINST if name in algos]
    against += [name for name in comparison.algos if name in algos and name != unlabelled(name)]
    if against:
        sentence, mark = AGAINST[name]
        held = [
            {"": code(algo)}
            | {f"{mark} {code(other)}": _held(comparison, task, algo, other) for other in against}
            for algo in algos
        ]
        text += f"\n{sentence}\n\n{table(held)}\n"
    return text + _paired_table(comparison, task, algos, against)


def _diagnoses(ends: Sequence[ResultRow]) -> dict[str, str]:
    """What else the trees of a learned policy are like; dashes for other rows."""
    return {
        "tree shapes": cell(_median([row.tree_shapes for row in ends])),
        "distance to the cloned": cell(_median([row.cloned_distance for row in ends])),
    }


def _against_best_known(ends: Sequence[ResultRow], known: BestKnown | None) -> dict[str, str]:
    """Median regret and score of a row, where the best trees are known."""
    if known is None:
        return {}
    scores = [known.score(row.error, len(known.errors)) for row in ends]
    return {
        "regret": cell(_median([found.regret for found in scores])),
        "score": cell(_median([found.score for found in scores])),
    }


def _paired_table(
    comparison: Comparison, task: Task, algos: Sequence[str], against: Sequence[str]
) -> str:
    """Only rows and columns that have a cell; nothing where no two algorithms share two seeds."""
    cells: dict[str, dict[str, str]] = {}
    measure = comparison.measure(task)
    for algo in algos:
        for other in against:
            mine, theirs = comparison.pairs(task, algo, other)
            if algo != other and len(mine) >= PAIRS:
                found = (
                    paired_ratio(mine, theirs)
                    if measure is ERROR
                    else measure.of(paired_difference(mine, theirs))
                )
                cells.setdefault(algo, {})[other] = span(found)
    if not cells:
        return ""
    columns = [other for other in against if any(other in row for row in cells.values())]
    _, mark = AGAINST[measure.name]
    rows = [
        {"": code(algo)} | {f"{mark} {code(other)}": row.get(other, MISSING) for other in columns}
        for algo, row in cells.items()
    ]
    return f"\n{PAIRED[measure.name]}\n\n{table(rows)}\n"


def _held(comparison: Comparison, task: Task, algo: str, other: str) -> str:
    """The ratio of median errors, or the difference of median returns."""
    if algo == other:
        return MISSING
    measure = comparison.measure(task)
    if measure is not ERROR:
        found = estimate(
            lambda mine, theirs: median(mine) - median(theirs),
            comparison.errors(task, algo)[:, None],
            comparison.errors(task, other)[:, None],
        )
        return span(measure.of(found))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = estimate(
            lambda mine, theirs: median(mine) / median(theirs),
            comparison.errors(task, algo)[:, None],
            comparison.errors(task, other)[:, None],
        )
    return span(found)


def _median(values: Iterable[float | int | None]) -> float:
    """NaN where there is no value."""
    found = [value for value in values if value is not None]
    return float(np.median(found)) if found else float("nan")


# ---------------------------------------------------------------- all problems together


def widths_section(comparison: Comparison, figures: Path) -> str:
    """Errors of the same data at several widths of an embedding; empty where there is one each."""
    if not comparison.widths:
        return ""
    write_figure(figures / "widths.png", widths_figure(comparison), dpi=None)
    text = """## Error against the width of an embedding

Median of the runs at every D; the figure also shows their range. Where a wider embedding gains
little, the data is held; where the rows come together, the tree hardly matters any more.

![error against D](figures/widths.png)
"""
    for title, tasks in comparison.widths.items():
        rows = [
            {"merges chosen by": code(algo)}
            | {
                f"D={task.embedding_dim}": cell(float(np.median(comparison.errors(task, algo))))
                if comparison.ends(task, algo)
                else MISSING
                for task in tasks
            }
            for algo in comparison.algos
            if any(comparison.ends(task, algo) for task in tasks)
        ]
        text += f"\n{plain(title)}:\n\n{table(rows)}\n"
    return text


def pooled_section(comparison: Comparison, figures: Path) -> str:
    """Every algorithm's errors over a reference's: IQM, median and performance profiles."""
    pooled_tasks = comparison.pooled
    returns = [task for task in comparison.tasks if comparison.measure(task) is not ERROR]
    if len(returns) == len(comparison.tasks):
        return "## All problems together\n\n"
    if not pooled_tasks:
        return "## All problems together\n\nNo run has a finite error to divide by.\n"
    reference = comparison.reference
    unit = "all runs that did not diverge" if reference is None else code(reference)
    label = f"error / {unit.strip('`')}"
    ratios: dict[str, Estimate] = {}
    rows: dict[str, dict[str, str]] = {}
    for algo in comparison.algos:
        tasks = [task for task in comparison.tasks_of(algo) if task in pooled_tasks]
        if not tasks:
            continue
        scores = comparison.ratios(algo, tasks)
        pooled, middle = estimate(iqm, scores), median(by_task(scores))
        ratios[algo] = Estimate(*(10.0**number for number in pooled))
        rows[algo] = {
            "merges chosen by": code(algo),
            "problems": f"{len(tasks)} of {len(pooled_tasks)}",
            "IQM of ratios (95 %)": span(ratios[algo]),
            "median ratio": cell(10.0 ** float(middle[0])),
        }
    ranked = [rows[algo] for algo in sorted(ratios, key=lambda algo: float(ratios[algo].value))]
    write_figure(figures / "pooled.png", intervals_figure(ratios, f"IQM of {label}"), dpi=None)
    everywhere = [a for a in comparison.algos if set(pooled_tasks) <= set(comparison.tasks_of(a))]
    scores_of = {algo: comparison.ratios(algo, pooled_tasks) for algo in everywhere}
    finite = np.concatenate([[], *(scores.ravel() for scores in scores_of.values())])
    finite = finite[np.isfinite(finite)]
    text = f"""## All problems together

Errors of different problems lie orders of magnitude apart. Here each is divided by the median error
of {unit} on the same problem, and the logarithms of these ratios are averaged: the IQM of 0.5 means
half that error. A row that was not run everywhere is pooled over its own problems and is not
comparable with the others.

{table(ranked)}

![pooled](figures/pooled.png)

"""
    if returns:
        names = "; ".join(plain(task_name(task).title) for task in returns)
        text += f"Problems with returns, which no ratio can be made of, are left out: {names}.\n\n"
    unpooled = [t for t in comparison.tasks if t not in (*pooled_tasks, *returns)]
    nothing = [plain(task_name(t).title) for t in unpooled]
    if nothing:
        text += f"No run has a finite error on {'; '.join(nothing)}: left out here.\n\n"
    if everywhere and len(finite):
        places = np.linspace(finite.min() - 0.1, finite.max() + 0.1, THRESHOLDS)
        profiles = {
            algo: estimate(lambda draws: performance_profile(draws, places), scores)
            for algo, scores in scores_of.items()
        }
        write_figure(
            figures / "profiles.png", profiles_figure(10.0**places, profiles, label), dpi=None
        )
        text += (
            "Performance profiles: the share of runs whose error ratio is at most the number "
            "below;\nfurther left is better.\n\n![profiles](figures/profiles.png)\n\n"
        )
    return text


def improvement_section(comparison: Comparison, figures: Path) -> str:
    """Probabilities that one algorithm is better than another; empty where there is only one."""
    algos = comparison.algos
    if len(algos) < 2:
        return ""
    values = np.full((len(algos), len(algos)), np.nan)
    rows = []
    for row, algo in enumerate(algos):
        cells = {"": code(algo)}
        for column, other in enumerate(algos):
            cells[code(other)] = MISSING
            shared = [t for t in comparison.tasks_of(algo) if t in comparison.tasks_of(other)]
            if row == column or not shared:
                continue
            found = estimate(
                probability_of_improvement,
                comparison.scores(algo, shared),
                comparison.scores(other, shared),
            )
            values[row, column] = found.value
            interval = "" if np.isnan(found.low) else f" ({found.low:.2f} to {found.high:.2f})"
            cells[code(other)] = f"{found.value:.2f}{interval}"
        rows.append(cells)
    labels = ("a run of this ...", "... is better than one of this, with probability")
    write_figure(figures / "improvement.png", matrix_figure(values, algos, labels), dpi=None)
    return (
        "Probability of improvement: how often a run of the row is better than one of the\n"
        "column (Mann-Whitney, ties half; mean over the problems that both have):\n\n"
        f"{table(rows)}\n\n"
        "![probability of improvement](figures/improvement.png)\n"
    )


def curves_section(comparison: Comparison, figures: Path) -> str:
    """Validation scores along merges and seconds, and merges until a goal."""
    text = "## Along the training\n\nValidation score: median of the runs, and their range.\n\n"
    for along in ("merges", "seconds"):
        write_figure(figures / f"{along}.png", curves_figure(comparison, along), dpi=None)
        text += f"![along {along}](figures/{along}.png)\n\n"
    learned = [algo for algo in comparison.algos if not is_fixed(algo)]
    if not learned:
        return text
    target = learned[0]
    rows = []
    for algo in comparison.algos:
        cells = {"": code(algo)}
        for task in comparison.tasks:
            title = plain(task_name(task).title)
            curve = comparison.curve(task, algo, "merges")
            goal = comparison.curve(task, target, "merges")
            if curve is None or goal is None:
                cells[title] = MISSING
                continue
            reached = first_reached(curve.grid, curve.median, float(goal.median[-1]))
            share = "" if reached is None else f" ({reached / goal.grid[-1]:.2f})"
            cells[title] = "never" if reached is None else f"{reached:,.0f}{share}"
        rows.append(cells)
    return text + (
        f"Merges until the median validation score is what {code(target)} ends with (and their "
        f"share of its merges):\n\n{table(rows)}\n"
    )


# ---------------------------------------------------------------- diagnoses


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
            middle = _median(comparison.errors(task, algo)[known])
            again = float(np.median(retrained.errors(task, algo)))
            rows.append(
                {
                    "merges chosen by": code(algo),
                    "runs": str(len(seeds)),
                    "nmse, own": cell(middle),
                    "nmse, retrained": cell(again),
                    "ratio": cell(again / middle),
                }
            )
        text += f"\n{plain(task_name(task).title)}:\n\n{table(rows)}\n"
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
        pairs = [row for row in here if row.algo == row.autoencoder_algo and not row.own]
        others = {algo: [row.error for row in pairs if row.algo == algo] for algo in algos}
        figure = matrix_figure(values, algos, labels, logarithmic=True)
        write_figure(figures / f"cross_play-{name.short}.png", figure, dpi=None)
        lines = [
            {"trees of": code(algo)}
            | {code(other): cell(value) for other, value in zip(algos, row, strict=True)}
            | {"other seeds": cell(_median(others[algo]))}
            for algo, row in zip(algos, values, strict=True)
        ]
        text += f"\n{plain(name.title)}:\n\n{table(lines)}\n\n"
        text += f"![cross-play](figures/cross_play-{name.short}.png)\n"
    return text


def cross_play_matrix(
    rows: Sequence[CrossPlayRow], task: Task
) -> tuple[list[str], Float[np.ndarray, "A A"]]:
    """The algorithms of a task, and the median ``nmse`` of their trees (rows) through their
    autoencoders (columns): over all pairs of runs, and over the own ones on the diagonal."""
    here = [row for row in rows if row.task == task]
    algos = list(dict.fromkeys(row.algo for row in here))
    pairs: dict[tuple[str, str], list[float]] = {}
    for row in here:
        if row.own or row.algo != row.autoencoder_algo:
            pairs.setdefault((row.algo, row.autoencoder_algo), []).append(row.error)
    values = [[_median(pairs.get((algo, other), [])) for other in algos] for algo in algos]
    return algos, np.array(values)
