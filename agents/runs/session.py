"""One run from its configuration to its result: training, checkpoints, logs and evaluation."""

from __future__ import annotations

import platform
import warnings
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from agents.config.budget import Budget
from agents.config.dataclasses_json import config_from_dict, flattened
from agents.evaluation.evaluate import VALIDATION_EPISODES
from agents.evaluation.figures import write_png
from agents.learners.base import Learner
from agents.registry import algorithm
from agents.runs.directory import RunDirectory
from agents.runs.interruption import Interruption
from agents.runs.loggers import CSVLogger, Logger
from agents.runs.loop import EVALUATIONS, CheckpointDue, Logged, Position, Training, Updated
from agents.runs.progress import ProgressBar
from agents.runs.tensorboard import TensorBoardLogger
from htm_env.drawing.rendering import figure_to_array
from htm_env.simulator import usable_device

FIGURES = 4
"""Pictures of the learner over the whole budget, the last after it; divides the evaluations."""
PICTURED = range(EVALUATIONS // FIGURES, EVALUATIONS, EVALUATIONS // FIGURES)
LIBRARIES = ("torch", "pytorch-optimizer", "numpy", "gymnasium", "safetensors")


def learner_config(learner: Learner) -> dict[str, Any]:
    """What :func:`build_learner` needs to make the same learner again, before any training."""
    task = learner.task
    return {
        "env": task.env_id,
        "env_kwargs": task.env_kwargs,
        "algo": learner.algo,
        "config": asdict(learner.config),
        "embedding_dim": learner.autoencoder.embedding_dim,
        "mode": task.mode,
        "seed": task.seed,
        "device": task.device,
    }


def run_config(learner: dict[str, Any], budget: Budget) -> dict[str, Any]:
    """The content of ``config.json``: how the learner is made, its budget, and with what."""
    versions = {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
    return learner | {"budget": asdict(budget), "versions": versions}


def build_learner(config: dict[str, Any]) -> Learner:
    """The untrained learner that ``config.json`` describes.

    Raises ``ValueError`` for an algorithm or a field that does not exist, or a key that is missing.
    """
    try:
        entry = algorithm(config["algo"])
        learner = entry.learner(
            config["env"],
            config_from_dict(type(entry.config), config["config"]),
            env_kwargs=config["env_kwargs"],
            embedding_dim=config["embedding_dim"],
            mode=config["mode"],
            seed=config["seed"],
            device=config["device"],
        )
    except KeyError as error:
        raise ValueError(f"the configuration of the run has no {error}") from error
    learner.algo = config["algo"]
    return learner


def load_learner(directory: RunDirectory) -> Learner:
    """The learner of a run as its last checkpoint has it.

    Where the device of the run cannot be used here, it comes to the processor, with a warning and
    with random numbers of its own: a generator's state means nothing on another device.

    Raises ``FileNotFoundError`` without a run or a checkpoint, ``ValueError`` for files that cannot
    be read.
    """
    config = directory.load_config()
    away = False
    try:
        usable_device(config.get("device", "cpu"))
    except ValueError as error:
        away = True
        warnings.warn(f"{error}; {directory.path} is opened on the processor", stacklevel=2)
        config = config | {"device": "cpu"}
    learner = build_learner(config)
    state = directory.load_checkpoint()
    if state is None:
        raise FileNotFoundError(f"no checkpoint yet at {directory.checkpoint_path}")
    if away:
        state["learner"]["generator"] = learner.generator.get_state()
    _restore(learner, state, directory)
    return learner


def start_run(
    learner: Learner, budget: Budget, directory: RunDirectory, *, progress_bar: bool = True
) -> dict[str, Any]:
    """Train from the start in a folder of its own, and return the result.

    Raises ``FileExistsError`` where the folder holds a run, ``KeyboardInterrupt`` when interrupted,
    after writing the checkpoint, and ``FloatingPointError`` when training does not stay finite.
    """
    directory.check_free()
    check_plan(learner)
    directory.save_config(run_config(learner_config(learner), budget))
    return _run(learner, budget, directory, None, progress_bar)


def resume_run(directory: RunDirectory, *, progress_bar: bool = True) -> dict[str, Any]:
    """Continue a run from its last checkpoint, or from the start if it has none, to its result.

    Under a budget of merges on one thread the result is that of an uninterrupted run, bit for bit.
    Raises what :func:`start_run` raises, and ``FileNotFoundError`` or ``ValueError`` where the
    folder holds no run that can be resumed.
    """
    config = directory.load_config()
    directory.clear_leftovers()
    state = directory.load_checkpoint()
    if "budget" not in config or (state is not None and state["training"] is None):
        raise ValueError(f"{directory.path} holds a saved agent, not a run that can be resumed")
    learner = build_learner(config)
    return _run(learner, Budget(**config["budget"]), directory, state, progress_bar)


def _run(
    learner: Learner,
    budget: Budget,
    directory: RunDirectory,
    state: dict[str, Any] | None,
    progress_bar: bool,
) -> dict[str, Any]:
    validation = learner.task.dataset("validation")

    def validate() -> dict[str, float | None]:
        scores = learner.evaluate(validation, VALIDATION_EPISODES, sampled=False)
        return {f"validation/{name}": value for name, value in scores.items()}

    training = Training(learner, budget, validate)
    if state is not None:
        _restore(learner, state, directory)
        training.restore(state["training"])
    table = CSVLogger(directory.metrics_path, [] if state is None else state["rows"])
    events = TensorBoardLogger(directory.path, None if state is None else training.position.merges)
    bar = ProgressBar(f"{learner.task.env_id} {learner.algo}") if progress_bar else None
    loggers: list[Logger] = [table, events] if bar is None else [table, events, bar]

    def picture(position: Position) -> None:
        figure = learner.figure(validation)
        write_png(directory.figure_path, figure)
        events.image("validation/merge_trees", figure_to_array(figure), position.merges)

    try:
        with Interruption() as interruption:
            for event in training.events(interruption.requested):
                if isinstance(event, Updated) and bar is not None:
                    bar.update(event.position, event.scalars)
                elif isinstance(event, Logged):
                    for logger in loggers:
                        logger.write(event.position, event.scalars)
                    if event.evaluation in PICTURED:
                        picture(event.position)
                elif isinstance(event, CheckpointDue):
                    directory.save_checkpoint(learner, training.state(), table.rows)
            if interruption.requested():
                raise KeyboardInterrupt
        picture(training.position)
        result = _result(learner, training.position, directory)
        events.hyperparameters(
            flattened(directory.load_config()),
            {f"test/{name}": value for name, value in result["test"].items()},
        )
    finally:
        for logger in loggers:
            logger.close()
    directory.save_result(result)
    return result


def _result(learner: Learner, position: Position, directory: RunDirectory) -> dict[str, Any]:
    validation = learner.task.dataset("validation")
    return {
        "env": learner.task.env_id,
        "env_kwargs": directory.load_config()["env_kwargs"],
        "algo": learner.algo,
        "seed": learner.task.seed,
        "seconds": position.seconds,
        "merges": position.merges,
        "updates": position.updates,
        "test": learner.evaluate(learner.task.dataset("test")),
        "validation": learner.evaluate(validation, VALIDATION_EPISODES),
        "mode": learner.task.mode,
        "embedding_dim": learner.autoencoder.embedding_dim,
        "weights_hash": learner.autoencoder.weights_hash(),
    }


def _restore(learner: Learner, state: dict[str, Any], directory: RunDirectory) -> None:
    try:
        learner.restore(state["learner"])
    except (KeyError, TypeError, RuntimeError) as error:  # of another version, or not a learner's
        raise ValueError(
            f"{directory.checkpoint_path} does not fit the learner of {directory.config_path}: "
            f"{error}"
        ) from error


def check_plan(learner: Learner) -> None:
    """Raise what the learner has against its data before anything is written."""
    generator = torch.Generator(learner.device)
    learner.plan(learner.dataset.fixed(1).to(learner.device), generator, greedy=True)
