"""How near search comes to the best trees known of the frozen environments, and what one shape of
tree for all is worth where samples share a grid: ``python -m benchmarks.frozen_search``.

Starts are fixed orders and, with ``--runs DIR ...``, trained policies. The budget is the trees that
are evaluated of each sample. One shape: the tokens of every image of Digits in sorted order, and
one tree over their places for all, which hill climbing on the mean error finds, from the tree of
``balanced_sorted``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from agents.evaluation.evaluate import EVALUATION_SEED, Planner, planned, root_errors
from agents.evaluation.search import SearchingPlanner, searching
from agents.fixed import fixed_policy
from agents.fixed.slot_trees import in_slots, sorted_slots
from agents.registry import load_learner
from agents.search import tree_search
from agents.search.errors import TreeErrors
from agents.search.places import MOVES, merges_in, places_of
from benchmarks.measuring import Row
from benchmarks.table import RESULTS, origin, report
from htm_env.autoencoder import TreeEncoder
from htm_env.best_known import BestKnown, best_known_path
from htm_env.datasets import Dataset, make_dataset
from htm_env.types import TokenBatch
from htm_env.weights import SHIPPED, pretrained_autoencoder

EPISODES = 180
"""Test episodes: all that Digits has."""
BUDGETS = (0, 10, 100, 1000)
ORDERS = {
    "HTM-Trees-v0": ("nearest_sorted", "ward"),
    "HTM-Crosses-v0": ("even_sorted", "nearest_sorted"),
    "HTM-Digits-v0": ("balanced_sorted", "ward"),
    "HTM-Keys-v0": ("nearest_sorted", "ward"),
}
"""The best fixed orders on validation data, and another one."""
ENV = "HTM-Digits-v0"
"""The environment whose samples share a grid."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="folders of frozen runs")
    parser.add_argument("--budgets", nargs="*", type=int, default=BUDGETS)
    parser.add_argument("--envs", nargs="*", default=SHIPPED)
    parser.add_argument("--proposals", type=int, default=1000, help="of the search for one shape")
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given = sys.argv[1:] if arguments is None else arguments
    made_by = origin("benchmarks.frozen_search", given)
    rows = []
    for env in options.envs:
        rows += list(searched_rows(env, options.runs, options.budgets, options.episodes))
    report("frozen_search", rows, options.out, made_by=made_by)
    if options.proposals:
        shapes = one_shape_rows(options.proposals, options.episodes)
        report("one_shape", shapes, options.out, made_by=made_by)


def searched_rows(env: str, runs: list[Path], budgets: list[int], episodes: int) -> Iterator[Row]:
    """A row for every start and budget."""
    model, dataset = pretrained_autoencoder(env), make_dataset(env, split="test")
    known = BestKnown.load(best_known_path(env))
    for name in ORDERS[env]:
        order = fixed_policy(name, model, dataset)
        for budget in budgets:
            planner: Planner = order
            if budget:
                planner = SearchingPlanner(order, tree_search(model, dataset.std, budget))
            yield _row(known, name, budget, planner, model, dataset, episodes)
    for folder in runs:
        learner = load_learner(folder)
        if learner.task.env != env or learner.autoencoder.weights_hash() != known.weights_hash:
            continue
        name = f"{learner.algo}, seed {learner.task.seed}, {learner.merges_made} merges"
        for budget in budgets:
            planner = searching(learner, budget) if budget else learner
            yield _row(known, name, budget, planner, model, dataset, episodes)


@torch.no_grad()
def _row(
    known: BestKnown,
    start: str,
    budget: int,
    planner: Planner,
    model: TreeEncoder,
    dataset: Dataset,
    episodes: int,
) -> Row:
    batch = dataset.fixed(episodes)
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    began = time.process_time()
    merges = planned(planner, batch, generator, greedy=True)
    seconds = time.process_time() - began
    error = float(root_errors(model, batch, merges, dataset.std).double().mean())
    count = len(batch.tokens)
    best = float(known.errors[:count].mean())
    return {
        "environment": known.env,
        "start": start,
        "budget": budget,
        "nmse": error,
        "over the best known": error / best,
        "score": known.score(error, count).score,
        "seconds": seconds,
    }


# ---------------------------------------------------------------- one shape for all


def one_shape_rows(proposals: int, episodes: int) -> list[Row]:
    """Errors on test images of one tree for all, and of the best trees known of each."""
    model, dataset = pretrained_autoencoder(ENV), make_dataset(ENV, split="test")
    training = make_dataset(ENV).fixed(EPISODES)
    known, test = BestKnown.load(best_known_path(ENV)), dataset.fixed(episodes)
    count, std = len(test.tokens), dataset.std
    rows = {}
    start = fixed_policy("balanced_sorted", model, dataset)
    merges = start.plan(test, torch.Generator())
    rows["one tree: balanced_sorted"] = float(root_errors(model, test, merges, std).mean())
    for name, images in (("training", training), ("test", test)):
        shape = one_shape(model, images, std, proposals)
        merges = _in_all(shape, test)
        error = float(root_errors(model, test, merges, std).mean())
        rows[f"one tree, the best found for {name} images"] = error
    rows["a tree for each image: best known"] = float(known.errors[:count].mean())
    return [
        {"trees": name, "nmse": error, "score": known.score(error, count).score}
        for name, error in rows.items()
    ]


def _in_all(shape: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
    """One tree over the places of tokens in sorted order, as merges of every sample."""
    repeated = shape.expand(len(batch.tokens), -1, -1)
    return in_slots(repeated, sorted_slots(batch), batch.num_tokens)


@torch.no_grad()
def one_shape(
    model: TreeEncoder, batch: TokenBatch, std: torch.Tensor, proposals: int
) -> torch.Tensor:
    """``(1, M, 2)``: the tree over sorted tokens of least mean error that hill climbing finds.

    All samples have equally many tokens.
    """
    order = sorted_slots(batch)
    rows = torch.arange(len(order))[:, None]
    batch = batch._replace(tokens=batch.tokens[rows, order])
    errors_of, one = TreeErrors(model, batch, std), batch.num_tokens[:1]
    start = fixed_policy("balanced_sorted", model).plan(batch, torch.Generator())
    tree = places_of(start[:1], one)
    best = float(errors_of.of(tree.expand(len(order), -1))[0].mean())
    generator = torch.Generator().manual_seed(0)
    for proposal in range(proposals):
        draws = torch.rand(1, 2, generator=generator, dtype=torch.float64)
        move = MOVES[proposal % len(MOVES)](tree, one, draws)
        if not move.legal:
            continue
        after = move.applied(tree)
        error = float(errors_of.of(after.expand(len(order), -1))[0].mean())
        if error < best:
            tree, best = after, error
    return merges_in(tree, one)


if __name__ == "__main__":
    main()
