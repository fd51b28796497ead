"""What search at inference gains on particle jets, against the evaluations that it takes:
``python -m benchmarks.jets_search``.

The gap is the mean over fixed jets of the log-likelihood of a tree, less that of greedy merging on
the same jet. An evaluation is one log-likelihood of one splitting, those of making the first tree
included. ``--runs DIR ...`` adds searches from the trees of trained runs. Options of searches are
chosen on ``--split validation``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import torch

from agents.evaluation.evaluate import Planner
from agents.evaluation.search import SearchingPlanner, tree_search
from agents.fixed import fixed_policy
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

STARTS = ("greedy", "random")
"""Fixed orders that searches start from."""
BUDGETS = (250, 500, 1000, 2000, 4000, 12272)
"""The last is what the published search with a learned policy took at least."""
BEAMS = ("beam_5", "beam_20", "beam_100")
PUBLISHED = ((1914, 1.9), (12272, 2.6))
"""Evaluations and gaps of the published beam search and learned policy with search, at their
smallest, on other jets of the same model."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jets", type=int, default=JETS, help="how many of the fixed jets")
    parser.add_argument("--split", default="test", help="of the jets")
    parser.add_argument("--starts", nargs="*", default=STARTS, help="names of fixed orders")
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="folders of trained runs")
    parser.add_argument("--budgets", nargs="*", type=int, default=BUDGETS, help="evaluations")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of table and figure")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    dataset = make_dataset(ENV, split=options.split)
    batch = dataset.fixed(options.jets)
    (reference,) = fixed_entries(dataset, ["greedy"])
    greedy, _ = log_likelihoods(reference, batch, dataset)
    rows = []
    try:
        for start, budget, entry in entries(dataset, options.starts, options.runs, options.budgets):
            found = row(entry, batch, dataset, greedy)
            rows.append({"start": start, "budget of the search": budget} | found)
            del rows[-1]["trees"]
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    given = sys.argv[1:] if arguments is None else arguments
    report("jets_search", rows, options.out, made_by=origin("benchmarks.jets_search", given))
    draw(rows, options.out / "jets_search.png")


def entries(
    dataset: Dataset, starts: Sequence[str], runs: Sequence[Path], budgets: Sequence[int]
) -> Iterator[tuple[str, int, Entry]]:
    """Beams, then every start by itself and with each budget."""
    for entry in fixed_entries(dataset, BEAMS):
        yield entry.name, 0, entry
    for start in starts:
        for budget in (0, *budgets):
            yield start, budget, searched(dataset, start, budget)
    for folder in runs:
        for budget in (0, *budgets):
            *_, entry = run_entries(dataset, folder, budget)
            yield folder.name, budget, entry


def searched(dataset: Dataset, start: str, budget: int) -> Entry:
    """A fixed order whose trees are improved."""
    model, evaluations = counted_model(dataset)
    planner: Planner = fixed_policy(start, model, dataset)
    if budget:
        planner = SearchingPlanner(planner, tree_search(model, dataset.std, budget))
    return Entry(start, planner, evaluations)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Gap against evaluations, a line a start."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    names = list(dict.fromkeys(row["start"] for row in rows if row["start"] not in BEAMS))
    beams = [row for row in rows if row["start"] in BEAMS]
    lines = {"beams of 5, 20, 100": beams} | {
        f"search from {name}": [
            row for row in rows if row["start"] == name and row["budget of the search"]
        ]
        for name in names
    }
    for (label, points), marker in zip(lines.items(), "s" + "o" * len(names), strict=True):
        if points:
            axes.errorbar(
                [row["evaluations a jet"] for row in points],
                [row["gap to greedy"] for row in points],
                [row["standard error"] for row in points],
                marker=marker,
                markersize=4,
                capsize=2,
                label=label,
            )
    axes.plot(*zip(*PUBLISHED, strict=True), "k*", label="published: beam, policy with search")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("evaluations of a splitting, a jet")
    axes.set_ylabel("log-likelihood above greedy merging")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
