"""What ``htm train`` and ``htm evaluate`` do."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from agents.cli.options import EvaluateOptions, TrainOptions, train_options
from agents.config.budget import Budget
from agents.config.dataclasses_json import config_from_dict
from agents.config.errors import UsageError, json_object, set_threads
from agents.config.run import RunConfig, Task
from agents.evaluation.evaluate import reference_scores
from agents.registry import algorithm, build_learner, configured, load_learner, resume
from agents.runs.directory import RunDirectory
from agents.runs.session import start_run
from htm_env.datasets import environment_id

Scores = dict[str, float | None]
DEFAULT_SECONDS = 100.0
"""The budget of a run that is given none."""


def train(options: Any) -> None:
    """``htm train``: start or resume a run; prints its test scores and where everything is."""
    set_threads(options.threads)
    out = _default_folder(options) if options.out is None else options.out
    directory = RunDirectory(out if options.resume is None else options.resume)
    try:
        if options.resume is not None and directory.holds_run:
            _check_resumed(options, directory)
            result = resume(directory.path)
        else:
            learner, budget = _new_run(options)
            directory.check_free()
            result = start_run(learner, budget, directory)
    except KeyboardInterrupt:
        if not directory.checkpoint_path.exists():
            raise
        raise KeyboardInterrupt(
            f"interrupted, continue with: htm train --resume {directory.path}"
        ) from None
    except FloatingPointError as error:
        raise FloatingPointError(
            f"{error}; the last checkpoint with finite numbers is in "
            f"{directory.checkpoint_path.parent}"
        ) from error
    _print_scores(f"{result['env']} {result['algo']}, held-out test data", result["test"], result)
    print(f"run       {directory.path}")
    print(f"pictures  {directory.figure_path}")
    print(f"logs      tensorboard --logdir {directory.path}")


def evaluate_run(options: EvaluateOptions) -> None:
    """``htm evaluate``: prints the test scores of a run's last checkpoint.

    The tree scores stand beside those of random merges of the same samples, and of the data's own
    hierarchy where it has one.
    """
    set_threads(options.threads)
    if options.episodes < 1:
        raise UsageError(f"--episodes is {options.episodes}; expected at least 1")
    directory = RunDirectory(options.directory)
    learner = load_learner(options.directory)
    if options.merge_rounds:
        learner.merge_in_rounds()
    task = learner.task
    task = replace(
        task, env_kwargs=task.env_kwargs | json_object("--env-kwargs", options.env_kwargs)
    )
    dataset = task.dataset("test")
    if dataset.token_dim != learner.autoencoder.token_dim:
        raise ValueError(
            f"tokens of this data have {dataset.token_dim} coordinates; {directory.path} was "
            f"trained on tokens of {learner.autoencoder.token_dim}"
        )
    scores = learner.evaluate(dataset, options.episodes)
    references = (
        reference_scores(learner.autoencoder, dataset, options.episodes)
        if learner.makes_trees
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
    semantics = None
    if dataset.has_labels:
        from agents.inspection.probes import (
            semantic_table,  # loads scikit-learn, which takes a second
        )

        semantics = semantic_table(learner)
    if options.json:
        meaning = {} if semantics is None else {"semantics": semantics}
        print(json.dumps(about | scores | references | meaning, indent=2))
        return
    title = f"{task.env} {learner.algo}, {episodes} test episodes"
    _print_scores(title, scores, about, references)
    if semantics is not None:
        _print_semantics(semantics)


def resumed_options(folder: str | Path) -> Any | None:
    """The options that the run in ``folder`` was started with; None where there is no run.

    Raises ``ValueError`` where its configuration cannot be read.
    """
    directory = RunDirectory(folder)
    if not directory.holds_run:
        return None
    run = directory.load_config()
    config = config_from_dict(type(algorithm(run.algo).config), run.config)
    names = ("env", "algo", "embedding_dim", "mode", "seed", "device")
    budget = {} if run.budget is None else vars(run.budget)
    return train_options(config, **{name: getattr(run, name) for name in names}, **budget)


def _new_run(options: Any) -> tuple[Any, Budget]:
    """A learner and a budget from the options; ``UsageError`` where these cannot be meant."""
    if options.env is None or options.algo is None:
        missing = "--env" if options.env is None else "--algo"
        hint = "" if options.resume is None else f"; {options.resume} holds no run to resume"
        raise UsageError(f"htm train needs {missing}{hint}")
    try:
        env_id = environment_id(options.env)
    except ValueError as error:
        raise UsageError(f"--env: {error}") from None
    try:
        config = configured(options.algo, asdict(options.config))
    except ValueError as error:
        raise UsageError(f"--algo: {error}") from None
    if options.seconds is not None and options.merges is not None:
        raise UsageError("--seconds and --merges are two budgets; give one of them")
    unlimited = options.seconds is None and options.merges is None
    try:
        budget = Budget(DEFAULT_SECONDS if unlimited else options.seconds, options.merges)
    except ValueError as error:
        raise UsageError(str(error)) from None
    kwargs = json_object("--env-kwargs", options.env_kwargs)
    task = Task(env_id, kwargs, options.embedding_dim, options.mode, options.seed, options.device)
    run = RunConfig(**vars(task), algo=options.algo, config=asdict(config))
    try:
        return build_learner(run), budget
    except ValueError as error:
        task.dataset("train")  # raises if it is the data that is wrong
        raise UsageError(str(error)) from None


def _check_resumed(options: Any, directory: RunDirectory) -> None:
    """Raise :class:`UsageError` where an option differs from what the run was started with."""
    started = resumed_options(directory.path)
    for name in (*TrainOptions.__dataclass_fields__, "config"):
        if name in ("out", "resume", "env_kwargs", "threads"):
            continue
        given, before = getattr(options, name), getattr(started, name)
        if given != before:
            flag = name.replace("_", "-")
            raise UsageError(
                f"--resume {directory.path} keeps the settings of the run: --{flag} is {given!r}, "
                f"but was {before!r}"
            )
    kwargs = json_object("--env-kwargs", options.env_kwargs)
    if isinstance(kwargs.get("dataset"), str):
        kwargs["dataset"] = str(Path(kwargs["dataset"]).resolve())
    if options.env_kwargs is not None and kwargs != directory.load_config().env_kwargs:
        raise UsageError(f"--resume {directory.path} keeps the settings of the run: --env-kwargs")
    if options.out is not None and options.out.resolve() != directory.path.resolve():
        raise UsageError(f"--resume {directory.path} continues there; --out is {options.out}")


def _default_folder(options: Any) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = str(options.env).removeprefix("htm_env:")
    return Path("runs") / f"{name}-{options.algo}-{options.seed}-{stamp}"


def _print_scores(
    title: str,
    scores: Scores,
    about: dict[str, Any],
    references: dict[str, Scores] | None = None,
) -> None:
    """A row a score: the run's, and what the references have of it."""
    columns = {"this run": scores} | (references or {})
    print(title)
    table = Table(show_header=len(columns) > 1)
    table.add_column()
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for name in scores:
        table.add_row(name, *(_cell(column, name) for column in columns.values()))
    table.add_row("weights_hash", about["weights_hash"])
    Console(file=sys.stdout).print(table)


def _cell(scores: Scores, name: str) -> str:
    """A score in a table: nothing where it was not taken, a dash where the data has none."""
    if name not in scores:
        return ""
    value = scores[name]
    return "-" if value is None else f"{value:.5g}"


def _print_semantics(rows: dict[str, dict[str, float]]) -> None:
    print("labels, which training never sees, from an embedding: scores on the test split")
    table = Table()
    table.add_column("embedding")
    for name in next(iter(rows.values())):
        table.add_column(name.replace("_", "\n"), justify="right")
    for name, scores in rows.items():
        table.add_row(name, *(f"{value:.3f}" for value in scores.values()))
    Console(file=sys.stdout).print(table)
