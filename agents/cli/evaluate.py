"""``htm evaluate``: the scores of a trained run on held-out data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from jaxtyping import Float64
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from threadpoolctl import threadpool_limits
from torch import Tensor

from agents.cli.description import about_bits, print_bits
from agents.cli.options import EvaluateOptions
from agents.cli.semantics import Meaning, other_runs
from agents.cli.tables import print_scores, print_table
from agents.config.errors import UsageError, as_usage_error, json_object, set_threads
from agents.config.run import Task
from agents.evaluation.evaluate import means, reference_scores, sample_returns, sample_scores
from agents.evaluation.search import improved
from agents.evaluation.yardsticks import (
    BY_RETURN,
    mean_and_error,
    plain_yardsticks,
    planners_of_returns,
    tree_yardsticks,
)
from agents.inspection.probes import errors_by_label, labelled_embeddings, probed_samples
from agents.inspection.semantic_report import semantic_report
from agents.inspection.trained import (
    NOT_TRAINED,
    why_not_trained,
    why_not_trained_by_return,
)
from agents.learners.base import Learner
from agents.registry import algorithm, load_learner
from agents.runs.directory import RunDirectory
from htm_env.best_known import best_known
from htm_env.datasets import Dataset
from htm_env.measures.semantics import Labelled, semantic_scores

YARDSTICKS = {
    "own_hierarchy": "own hierarchy, this autoencoder",
    "nearest_sorted": "nearest merges, sorted pairs, this autoencoder",
    "nearest": "nearest merges, this autoencoder",
    "random": "random merges, this autoencoder",
    "flat": "set autoencoder without trees, same width",
    "principal_components": "principal components, same width",
    "mean": "the mean of the training tokens",
}
"""What the rows of the table of yardsticks are called."""
YARDSTICKS_OF_RETURN = {
    "own_hierarchy": "own hierarchy",
    "greedy": "greedy by the reward",
    "nearest": "nearest merges",
    "random": "random merges",
}
SHOWN_LABELS = 20
"""Labels of the printed table, those with the largest errors."""


def evaluate_run(options: EvaluateOptions) -> None:
    """Print the test scores of a run's last checkpoint.

    Where the data has a hierarchy, the tree scores stand beside those of its own and of random
    merges of the same samples; beneath is the error of other means, or, where the merger is known,
    the return of fixed orders. Data with labels adds what the roots say of them, and the error of
    each, ``--bits`` what a sample costs, and ``--semantics`` what roots, nodes and trees mean.
    """
    with threadpool_limits(options.threads):  # of scikit-learn
        if not options.semantics:
            _evaluate(options)
            return
        # First of all, since where nothing can be written nothing is computed.
        with RunDirectory(options.directory).locked():
            _evaluate(options)


def _evaluate(options: EvaluateOptions) -> None:
    set_threads(options.threads)
    learner = load_learner(options.directory, options.data, needs_data=True)
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
    against = other_runs(options, learner)
    planner = improved(learner, options.search)
    own: dict[str, Tensor] = {}  # of every sample, where that is needed
    if options.search or learner.task.knows_merger(dataset):
        model, reward = learner.autoencoder, learner.reward
        own = sample_scores(planner, model, dataset, options.episodes, reward=reward)
        scores = means(own)
    else:
        scores = learner.evaluate(dataset, options.episodes)
    episodes = options.episodes if dataset.size is None else min(options.episodes, dataset.size)
    scores |= _against_best_known(learner, task, scores, episodes)
    references = {}
    if scores["mean_height"] is not None:  # else there are no trees
        references = reference_scores(learner.autoencoder, dataset, options.episodes)
    if "return" in own:
        beside, table = _returns(learner, dataset, options, own["return"].cpu())
    else:
        beside, table = _errors(learner, task, dataset, options, scores)
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
        "search": options.search,
    }
    embeddings: dict[str, list[Labelled]] = {}
    if dataset.has_labels:
        labels, embeddings = _about_labels(learner, task, dataset, options.episodes)
        beside |= labels
    if options.bits:
        if scores["mean_height"] is None:
            raise UsageError(f"--bits is of trees, and {learner.algo} makes none")
        beside |= about_bits(planner, learner, task, dataset, options.episodes)
    meaning = None
    if options.semantics:
        from agents.inspection.semantic_pictures import semantic_figures  # loads matplotlib

        table_of_roots = beside.get("semantics") or {}
        console = Console(stderr=True)
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as progress:
            shown = progress.add_task("meaning", total=None)
            report = semantic_report(
                learner,
                task,
                against,
                embeddings,
                table_of_roots,
                options.episodes,
                on_measure=lambda what: progress.update(shown, description=f"measuring {what}"),
            )
            progress.update(shown, description="drawing pictures")
            figures = dict(semantic_figures(learner, task, options.episodes))
        meaning = Meaning(options.directory, about, report, against, figures)
        meaning.write()
        beside |= {"meaning": report.as_dict()}
    if options.json:
        print(json.dumps(about | scores | references | beside, indent=2))
        return
    title = f"{task.env} {learner.algo}, {episodes} test episodes"
    # Without a hierarchy there is nothing to compare trees with but errors, which come next.
    print_scores(title, scores, about, references if dataset.has_hierarchy else None)
    print(f"{table.what} of the same samples by other means")
    print_table(table.rows, show_header=table.what == "return")
    if beside["not_trained_enough"] is not None:
        print(NOT_TRAINED.format(beside["not_trained_enough"]))
    if options.bits:
        print_bits(beside)
    if dataset.has_labels:
        _print_labels(beside)
    if meaning is not None:
        meaning.show()


def _against_best_known(
    learner: Learner, task: Task, scores: Mapping[str, float | None], episodes: int
) -> dict[str, float | None]:
    """Regret and score, where the best trees of these episodes are known for this autoencoder, or
    for the data's own merger and reward."""
    model = learner.autoencoder
    known = best_known(task.env, task.env_kwargs, model.weights_hash())
    if known is None:
        return {}
    if not model.decodes and (task.merger or getattr(learner.config, "reward", None)):
        return {}
    error = scores.get("nmse")
    if error is None:
        earned = scores.get("return")
        error = None if earned is None else -earned
    if error is None or episodes > len(known.errors):
        return {}
    return dict(known.score(error, episodes)._asdict())


class OtherMeans(NamedTuple):
    """A table of this run beside what else could be done with its samples."""

    what: str
    rows: list[dict[str, str]]


def _errors(
    learner: Learner,
    task: Task,
    dataset: Dataset,
    options: EvaluateOptions,
    scores: Mapping[str, float | None],
) -> tuple[dict[str, Any], OtherMeans]:
    """The ``nmse`` of fixed orders and of what has no tree."""
    nmse, orders = scores["nmse"], {}
    assert nmse is not None  # every learner has an error
    if scores["mean_height"] is not None:
        orders = tree_yardsticks(learner.autoencoder, dataset, options.episodes)
    found = orders | _plain_yardsticks(learner, task, dataset, options)
    found = {name: found[name] for name in YARDSTICKS if name in found}
    about = {"yardsticks": found, "not_trained_enough": why_not_trained(learner, nmse, found)}
    rows = [{"": "this run", "nmse": f"{nmse:.5g}"}]
    rows += [{"": YARDSTICKS[name], "nmse": f"{error:.5g}"} for name, error in found.items()]
    return about, OtherMeans("nmse", rows)


def _returns(
    learner: Learner, dataset: Dataset, options: EvaluateOptions, own: Float64[Tensor, "N"]
) -> tuple[dict[str, Any], OtherMeans]:
    """The return of fixed orders, and what this run earns more than each, sample by sample."""
    if options.flat_merges is not None:
        raise UsageError(
            "--flat-merges trains an autoencoder, and nothing is decoded where the merger is known"
        )
    model, reward = learner.autoencoder, learner.reward
    found = {
        name: sample_returns(order, model, dataset, options.episodes, reward=reward)
        for name, order in planners_of_returns(model, dataset).items()
    }
    gains = {name: mean_and_error(own - returns) for name, returns in found.items()}
    earned = {name: float(returns.mean()) for name, returns in found.items()}
    best = max((name for name in earned if name in BY_RETURN), key=earned.__getitem__)
    about = {
        "return_standard_error": mean_and_error(own).error,
        "yardsticks": earned,
        "gains": {name: gain._asdict() for name, gain in gains.items()},
        "strongest_order": best,
        "not_trained_enough": why_not_trained_by_return(learner, float(own.mean()), earned),
    }
    columns = "", "return", "standard error", "this run is ahead by", "standard error of that"
    cells = [("this run", *mean_and_error(own), *[None] * 2)]
    cells += [
        (YARDSTICKS_OF_RETURN[name], *mean_and_error(returns), *gains[name])
        for name, returns in found.items()
    ]
    shown = [
        {name: cell if isinstance(cell, str) else _number(cell) for name, cell in row}
        for row in (zip(columns, cells_of_row, strict=True) for cells_of_row in cells)
    ]
    return about, OtherMeans("return", shown)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _plain_yardsticks(
    learner: Learner, task: Task, dataset: Dataset, options: EvaluateOptions
) -> dict[str, float]:
    """Errors of what has no tree: principal components, the mean, and where asked for ``flat``."""
    dim = learner.autoencoder.embedding_dim
    found = plain_yardsticks(dataset, task.dataset("train"), dim, options.episodes)
    if options.flat_merges is not None:
        fields = vars(task) | {"embedding_dim": dim, "mode": "joint"}
        flat = algorithm("flat").learner(fields.pop("env"), **fields)
        flat.train(merges=options.flat_merges)
        error = flat.evaluate(dataset, options.episodes, sampled=False)["nmse"]
        assert error is not None
        found["flat"] = error
    return found


def _about_labels(
    learner: Learner, task: Task, dataset: Dataset, count: int
) -> tuple[dict[str, Any], dict[str, list[Labelled]]]:
    """What roots say of labels, or why nothing is measured, and the error of every label; and the
    embeddings that were measured."""
    embeddings: dict[str, list[Labelled]] = {}
    try:
        embeddings = labelled_embeddings(learner, task)
        found: dict[str, Any] = {
            "semantics": {name: semantic_scores(*rows) for name, rows in embeddings.items()},
            "semantics_samples": probed_samples(task),
        }
    except ValueError as error:  # too few labels to fit anything
        found, embeddings = {"semantics": None, "no_semantics": str(error)}, {}
    return found | {"labels": errors_by_label(learner, dataset, count)}, embeddings


def _print_labels(found: dict[str, Any]) -> None:
    if found["semantics"] is None:
        print(f"labels are not read from embeddings: {found['no_semantics']}")
    else:
        print(
            "labels, which training never sees, from an embedding: scores on "
            f"{found['semantics_samples']} samples of the test split"
        )
        print_table(
            [
                {"embedding": name}
                | {score.replace("_", "\n"): f"{value:.3f}" for score, value in scores.items()}
                for name, scores in found["semantics"].items()
            ]
        )
    labels = list(found["labels"].items())
    shown = f"the {SHOWN_LABELS} largest of {len(labels)}" if len(labels) > SHOWN_LABELS else "all"
    print(f"error by label ({shown})")
    print_table(
        [
            {"label": name, "samples": str(samples), error_name: f"{error:.5g}"}
            for name, row in labels[:SHOWN_LABELS]
            for (_, samples), (error_name, error) in [row.items()]
        ]
    )
