"""``htm evaluate``: the scores of a trained run on held-out data."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from agents.cli.options import EvaluateOptions
from agents.config.errors import as_usage_error, json_object, set_threads
from agents.evaluation.evaluate import reference_scores
from agents.registry import load_learner

Scores = dict[str, float | None]


def evaluate_run(options: EvaluateOptions) -> None:
    """Print the test scores of a run's last checkpoint.

    The tree scores stand beside those of random merges of the same samples, and of the data's own
    hierarchy where it has one.
    """
    set_threads(options.threads)
    learner = load_learner(options.directory)
    if options.merge_rounds:
        learner.merge_in_rounds()
    env_kwargs = learner.task.env_kwargs | json_object("--env-kwargs", options.env_kwargs)
    task = replace(learner.task, env_kwargs=env_kwargs)
    with as_usage_error():
        dataset = task.dataset("test")
    if dataset.token_dim != learner.autoencoder.token_dim:
        raise ValueError(
            f"tokens of this data have {dataset.token_dim} coordinates; {options.directory} was "
            f"trained on tokens of {learner.autoencoder.token_dim}"
        )
    scores = learner.evaluate(dataset, options.episodes)
    references = (
        reference_scores(learner.autoencoder, dataset, options.episodes)
        if scores["mean_height"] is not None  # else there are no trees
        else {}
    )
    episodes = options.episodes if dataset.size is None else min(options.episodes, dataset.size)
    about = {
        "env": task.env,
        "env_kwargs": task.env_kwargs,
        "algo": learner.algo,
        "seed": task.seed,
        "mode": task.mode,
        "embedding_dim": learner.autoencoder.embedding_dim,
        "weights_hash": learner.autoencoder.weights_hash(),
        "episodes": episodes,
        "merge_rounds": options.merge_rounds,
    }
    meaning = {}
    if dataset.has_labels:
        from agents.inspection.probes import semantic_table  # loads scikit-learn

        meaning["semantics"] = semantic_table(learner)
    if options.json:
        print(json.dumps(about | scores | references | meaning, indent=2))
        return
    title = f"{task.env} {learner.algo}, {episodes} test episodes"
    print_scores(title, scores, about, references)
    if meaning:
        print("labels, which training never sees, from an embedding: scores on the test split")
        print_table(
            [
                {"embedding": name}
                | {score.replace("_", "\n"): f"{value:.3f}" for score, value in found.items()}
                for name, found in meaning["semantics"].items()
            ]
        )


def print_scores(
    title: str,
    scores: Scores,
    about: dict[str, Any],
    references: dict[str, Scores] | None = None,
) -> None:
    """A table with a row a score: the run's, and the references' where they have it."""
    columns = {"this run": scores} | (references or {})
    print(title)
    rows = [
        {"": name}
        | {column.replace("_", " "): _cell(found, name) for column, found in columns.items()}
        for name in scores
    ]
    rows.append({"": "weights_hash", "this run": about["weights_hash"]})
    print_table(rows, show_header=len(columns) > 1)


def print_table(rows: Sequence[Mapping[str, str]], *, show_header: bool = True) -> None:
    """Print rows of cells by column; the first column is text, the others are numbers."""
    table = Table(show_header=show_header)
    for name in rows[0]:
        table.add_column(name, justify="right" if table.columns else "left")
    for row in rows:
        table.add_row(*row.values())
    Console(file=sys.stdout).print(table)


def _cell(scores: Scores, name: str) -> str:
    """A score in a table: empty where it was not taken, a dash where the data has none."""
    if name not in scores:
        return ""
    value = scores[name]
    return "-" if value is None else f"{value:.5g}"
