"""What search at inference gains on particle jets, against the evaluations that it takes:
``python -m benchmarks.jets_search``.

The gap is the mean over fixed jets of the log-likelihood of a tree, less that of greedy merging on
the same jet. An evaluation is one log-likelihood of one splitting, those of making the first tree
included. "Anew" is how many they would be, at most, if nothing were stored: every pair of every
forest that is searched, and every merge that a proposal changes. ``--runs DIR ...`` adds searches
from the trees of trained runs, with the budgets of greedy trees.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from math import comb, prod
from pathlib import Path
from typing import Any

import matplotlib
import torch

from agents.evaluation.evaluate import Planner
from agents.evaluation.search import SearchingPlanner
from agents.fixed import fixed_policy
from agents.search import tree_search
from agents.search.annealing import PROPOSALS
from benchmarks.jets import (
    ENV,
    JETS,
    Entry,
    counted_model,
    fixed_entries,
    log_likelihoods,
    row,
    run_entries,
)
from benchmarks.measuring import Row
from benchmarks.table import RESULTS, origin, report
from htm_env.datasets import Dataset, make_dataset

BUDGETS = (250, 1000, 4000, 12272)
"""Of searches from greedy trees and those of runs. The last is what the published search with a
learned policy took at least."""
RANDOM_BUDGETS = (1000,)
"""Of searches from random trees."""
BEAMS = {"beam_5": 5, "beam_20": 20, "beam_100": 100}
"""Fixed orders, and how many forests they keep."""
PUBLISHED = {
    "published beams": ((1914, 1.9), (365634, 2.7)),
    "published policy with search": ((12272, 2.6), (286233, 3.2)),
}
"""Evaluations and gaps at the smallest and the largest budget, on other jets of the same model, by
the publication's own way of counting."""
GAP, ERROR = "gap to greedy", "standard error of the gap"
EVALUATIONS, ANEW = "evaluations a jet", "evaluations a jet, anew, at most"
"""The same counted with and without what is stored."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jets", type=int, default=JETS, help="how many of the fixed jets")
    parser.add_argument("--split", default="test", help="of the jets")
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="folders of trained runs")
    for name, budgets in (("budgets", BUDGETS), ("random-budgets", RANDOM_BUDGETS)):
        trees = "random trees" if budgets is RANDOM_BUDGETS else "greedy trees and those of runs"
        parser.add_argument(
            f"--{name}", nargs="*", type=int, default=budgets, help=f"of searches from {trees}"
        )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of table and figure")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    dataset = make_dataset(ENV, split=options.split)
    batch = dataset.fixed(options.jets)
    (reference,) = fixed_entries(dataset, ["greedy"])
    greedy, _ = log_likelihoods(reference, batch, dataset)
    sizes = batch.num_tokens.tolist()
    rows: list[Row] = []
    try:
        for start, budget, entry in entries(dataset, options):
            found = row(entry, batch, dataset, greedy)
            del found["trees"]
            made = {"start": start, "budget of the search": budget} | found
            own = next((row for row in rows if row["start"] == start), made)  # without a search
            made[ANEW] = anew(sizes, BEAMS.get(start, 1), budget, own[EVALUATIONS])
            rows.append(made)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    given = sys.argv[1:] if arguments is None else arguments
    report("jets_search", rows, options.out, made_by=origin("benchmarks.jets_search", given))
    draw(rows, options.out / "jets_search.png")


def entries(dataset: Dataset, options: argparse.Namespace) -> Iterator[tuple[str, int, Entry]]:
    """Beams, then every start by itself and with each budget."""
    for entry in fixed_entries(dataset, BEAMS):
        yield entry.name, 0, entry
    for start, budgets in (("greedy", options.budgets), ("random", options.random_budgets)):
        for budget in (0, *budgets):
            yield start, budget, searched(dataset, start, budget)
    for folder in options.runs:
        (own,) = run_entries(dataset, folder)
        yield own.name, 0, own
        for budget in options.budgets:
            _, entry = run_entries(dataset, folder, budget)
            yield own.name, budget, entry


def anew(sizes: Sequence[int], width: int, budget: int, own: float) -> float | None:
    """Evaluations a jet if nothing were stored, at most.

    ``own``: those of making the first trees, with what is stored. Without any there are none anew;
    None for a policy that evaluates other pairs than greedy merging does.
    """
    start = mean(pairs_of_forests(size, width) for size in sizes) if own else 0.0
    if width == 1 and own and abs(own - mean((size - 1) ** 2 for size in sizes)) > 1e-6:
        return None
    if not budget:
        return start
    # A proposal changes two merges, where there are any to exchange; the tree's own come first.
    proposed = mean(size - 1 + 2 * PROPOSALS * budget * (size > 2) for size in sizes)
    return start + proposed


def pairs_of_forests(size: int, width: int) -> int:
    """Pairs of all forests that a beam keeps at a time: ``(n^3 - n) / 6`` for greedy merging."""
    return sum(
        min(width, number_of_forests(size, trees)) * comb(trees, 2) for trees in range(size, 1, -1)
    )


def number_of_forests(size: int, trees: int) -> int:
    """Binary forests of so many trees over ``size`` leaves, the order within pairs left out."""
    merges = size - trees
    return comb(size + merges - 1, trees - 1) * prod(range(1, 2 * merges, 2))


def mean(values: Iterable[float]) -> float:
    found = [*values]
    return sum(found) / len(found)


def searched(dataset: Dataset, start: str, budget: int) -> Entry:
    """A fixed order whose trees are improved."""
    model, evaluations = counted_model(dataset)
    planner: Planner = fixed_policy(start, model, dataset)
    if budget:
        planner = SearchingPlanner(planner, tree_search(model, dataset.std, budget))
    return Entry(start, planner, evaluations)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Gap against evaluations, a line a start and a dotted one of them anew."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.8, 4.6), layout="constrained")
    names = list(dict.fromkeys(row["start"] for row in rows if row["start"] not in BEAMS))
    beams = [row for row in rows if row["start"] in BEAMS]
    lines = {"beams of 5, 20, 100, pairs stored": beams} | {
        f"search from {name} trees, splittings stored": [
            row for row in rows if row["start"] == name and row["budget of the search"]
        ]
        for name in names
    }
    for (label, points), marker in zip(lines.items(), "s" + "o" * len(names), strict=True):
        if not points:
            continue
        gaps, errors = [row[GAP] for row in points], [row[ERROR] for row in points]
        style: dict[str, Any] = {"marker": marker, "markersize": 4}
        stored = axes.errorbar(
            [row[EVALUATIONS] for row in points], gaps, errors, capsize=2, label=label, **style
        )
        if all(row[ANEW] for row in points):
            style |= {"color": stored.lines[0].get_color(), "fillstyle": "none"}
            axes.plot([row[ANEW] for row in points], gaps, ":", linewidth=1, **style)
    axes.plot([], [], "k:", marker="o", fillstyle="none", label="the same, nothing stored, at most")
    for (label, points), marker in zip(PUBLISHED.items(), "*P", strict=True):
        label = f"{label}: other jets, no errors,\ncounted as published"
        axes.plot(*zip(*points, strict=True), f"k{marker}", label=label)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("evaluations of a splitting, a jet")
    axes.set_ylabel("log-likelihood above greedy merging")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
