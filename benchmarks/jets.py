"""Log-likelihood of trees over particle jets, of fixed orders, searches and trained runs:
``python -m benchmarks.jets``.

All rows are of the same fixed test jets, and each is compared with greedy search on the same jets:
the mean over jets depends on how many particles they have, the gap hardly does. An evaluation is
one log-likelihood of one splitting that a planner asked for; of trees that are made without any it
is 0. ``--runs DIR ...`` adds rows of trained runs, of every algorithm, and ``--search N`` the same
runs with a search. Random trees are one a jet.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from agents import load
from agents.evaluation.evaluate import Planner
from agents.evaluation.search import improved
from agents.fixed import fixed_policy
from agents.runs.directory import RunDirectory
from benchmarks.measuring import Row
from benchmarks.table import RESULTS, origin, report
from htm_env.autoencoder import TreeEncoder
from htm_env.datasets import Dataset, make_dataset
from htm_env.datasets.jets import tree_log_likelihood
from htm_env.rewards import CountedReward, reward_on
from htm_env.types import TokenBatch
from htm_env.weights import make_autoencoder

ENV = "HTM-Jets-v0"
JETS = 500
REFERENCE = "greedy"
"""The row that the others are compared with."""
FIXED = (
    *("random", "cambridge_aachen", "kt", "structure"),
    *(REFERENCE, "beam_5", "beam_20", "beam_100"),
)
EXACT_UP_TO = (11, 9)
"""Particles of the jets of the groups that have the exact trees as a row too."""


class Entry(NamedTuple):
    """A row of the table before it is measured."""

    name: str
    planner: Planner
    evaluations: CountedReward
    """Counts what the planner asks for."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jets", type=int, default=JETS, help="how many of the fixed test jets")
    parser.add_argument("--fixed", nargs="*", default=FIXED, help="names of fixed orders")
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="folders of trained runs")
    parser.add_argument("--search", type=int, default=0, help="budget that improves runs' trees")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    dataset = make_dataset(ENV, split="test")
    try:
        entries = [*fixed_entries(dataset, options.fixed)]
        for folder in options.runs:
            entries += run_entries(dataset, folder, options.search)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    rows = table(dataset.fixed(options.jets), dataset, entries)
    given = sys.argv[1:] if arguments is None else arguments
    report("jets", rows, options.out, made_by=origin("benchmarks.jets", given))


def table(batch: TokenBatch, dataset: Dataset, entries: Sequence[Entry]) -> list[Row]:
    """The rows of all jets, then those of the small ones, of which the exact tree is known."""
    rows = group_rows(dataset.max_tokens, batch, dataset, entries)
    exact = [*fixed_entries(dataset, ["exact"])]
    for largest in EXACT_UP_TO:
        rows += group_rows(largest, batch, dataset, [*entries, *exact])
    return rows


def group_rows(
    largest: int, batch: TokenBatch, dataset: Dataset, entries: Sequence[Entry]
) -> list[Row]:
    """A row for each entry on the jets of at most so many particles, if there are any."""
    jets = batch.rows((batch.num_tokens <= largest).nonzero().squeeze(1))
    if not len(jets.tokens):
        return []
    (reference,) = fixed_entries(dataset, [REFERENCE])
    greedy, _ = log_likelihoods(reference, jets, dataset)
    about = {"particles, at most": largest, "jets": len(jets.tokens)}
    return [about | row(entry, jets, dataset, greedy) for entry in entries]


def row(entry: Entry, batch: TokenBatch, dataset: Dataset, greedy: Float[Tensor, "B"]) -> Row:
    """Means over jets; the standard error of the gap is over jets too."""
    before = entry.evaluations.count
    found, seconds = log_likelihoods(entry, batch, dataset)
    gaps, jets = found - greedy, len(greedy)
    return {
        "trees": entry.name,
        "log-likelihood": float(found.mean()),
        "gap to greedy": float(gaps.mean()),
        "standard error of the gap": float(gaps.std() / jets**0.5) if jets > 1 else None,
        "evaluations a jet": (entry.evaluations.count - before) / jets,
        "processor milliseconds a jet": 1000 * seconds / jets,
    }


def log_likelihoods(
    entry: Entry, batch: TokenBatch, dataset: Any
) -> tuple[Float[Tensor, "B"], float]:
    """That of each jet's tree, and the seconds that a processor took to make the trees."""
    started = time.process_time()
    merges = entry.planner.plan(batch, torch.Generator().manual_seed(0), greedy=True)
    seconds = time.process_time() - started
    return tree_log_likelihood(batch, merges, dataset.geometry), seconds


def fixed_entries(dataset: Dataset, names: Sequence[str]) -> Iterator[Entry]:
    """Fixed orders on the merger that is known for jets."""
    for name in names:
        model, evaluations = counted_model(dataset)
        yield Entry(name, fixed_policy(name, model, dataset), evaluations)


def run_entries(dataset: Dataset, folder: Path, search: int = 0) -> Iterator[Entry]:
    """A trained run's own trees, and with ``search`` those that a search of this budget makes.

    Names have the algorithm, the seed, and the seconds of a run that has ended.
    Raises ``ValueError`` for a run of another environment.
    """
    learner = load(folder)
    if learner.task.env != ENV:
        raise ValueError(f"the run {folder} is of {learner.task.env}; expected one of {ENV}")
    name, evaluations = f"{learner.algo}, seed {learner.task.seed}", counted_reward(dataset)
    if (result := RunDirectory(folder).load_result()) is not None:
        name += f", {result['seconds']:.0f} s"
    learner.autoencoder.merge_costs = evaluations.merge_costs
    for budget in sorted({0, search}):
        searched = f", search {budget}" if budget else ""
        yield Entry(f"{name}{searched}", improved(learner, budget), evaluations)


def counted_model(dataset: Dataset) -> tuple[TreeEncoder, CountedReward]:
    """The merger that is known for jets, and the counter of the evaluations of its costs."""
    evaluations = counted_reward(dataset)
    return make_autoencoder(ENV, dataset, None, costs=evaluations.merge_costs), evaluations


def counted_reward(dataset: Dataset) -> CountedReward:
    """The log-likelihood of splittings, and how often it was asked for."""
    return CountedReward(reward_on(dataset))


if __name__ == "__main__":
    main()
