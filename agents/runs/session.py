"""One run from its configuration to its result: training, checkpoints, logs and evaluation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor

from agents.config.budget import Budget
from agents.config.dataclasses_json import flattened
from agents.config.errors import RunWarning
from agents.config.options import OWN_DATA, TEST_EPISODES
from agents.config.run import RunConfig, Task
from agents.config.schedules import too_few_updates
from agents.evaluation.encoded import Encoded
from agents.evaluation.evaluate import EVALUATION_SEED, validation_episodes
from agents.evaluation.figures import write_figure
from agents.optim.ranks import Processes
from agents.runs.data import AbsentDataset, RunData, after, recorded_data
from agents.runs.directory import CSVLogger, RunDirectory
from agents.runs.host import this_host
from agents.runs.interruption import stop_requests
from agents.runs.loop import EVALUATIONS, CheckpointDue, Logged, Position, Training
from agents.runs.progress import shown, waiting
from agents.runs.records import TreeCourse
from agents.runs.tensorboard import TensorBoardLogger
from agents.runs.together import Joinable, begin, check_ranks, gather
from agents.runs.trees import nested_lists, over_training, side_by_side
from htm_env.autoencoder import TreeEncoder
from htm_env.checks import brief
from htm_env.datasets import Dataset
from htm_env.drawing.rendering import figure_to_array
from htm_env.types import TokenBatch
from htm_env.weights import usable_device

FIGURES = 4
"""Pictures of the learner over the whole budget, the last after it; divides the evaluations."""
LISTED = 6
"""Validation samples whose trees are written as nested lists, from the first on."""
PICTURED = range(EVALUATIONS // FIGURES, EVALUATIONS, EVALUATIONS // FIGURES)


@runtime_checkable
class Agent(Joinable, Protocol):
    """A learner as a run uses it: trained, evaluated, drawn, saved and restored."""

    algo: str
    task: Task
    generator: torch.Generator
    autoencoder: TreeEncoder

    @property
    def learns(self) -> bool: ...

    def run_config(self, budget: Budget | None = None) -> RunConfig: ...

    def greedy_trees(
        self, batch: TokenBatch, generator: torch.Generator
    ) -> Int64[Tensor, "B M 2"]: ...

    def encode(self, batch: TokenBatch, merges: Int64[Tensor, "B M 2"]) -> Encoded: ...

    def use_data(self, task: Task, dataset: Dataset) -> None: ...

    def evaluate(
        self, dataset: Dataset, count: int = TEST_EPISODES, *, sampled: bool = True
    ) -> dict[str, float | None]: ...

    def figure(self, dataset: Dataset) -> Any: ...


AgentType = TypeVar("AgentType", bound=Agent)


def open_agent(
    folder: str | Path,
    build: Callable[[RunConfig], AgentType],
    data: str | PathLike[str] | None = None,
    *,
    needs_data: bool = False,
) -> AgentType:
    """The learner of a run in the state of its last checkpoint.

    Args:
        folder: of the run.
        build: makes the untrained learner of a configuration.
        data: a file to take for the run's data, from which the learner's ``task`` and ``dataset``
            then are; a :class:`RunWarning` says where it is other data.
        needs_data: raise ``FileNotFoundError`` where the data is not there. Without it the learner
            is opened with a warning: it can embed sets that it is given, and nothing else.

    Where the device of the run cannot be used here, the learner runs on the processor, with a
    warning and with random numbers of its own: a generator's state means nothing on another device.

    Raises ``FileNotFoundError`` without a run or a checkpoint, ``ValueError`` for files that cannot
    be read, and for data whose tokens have another dimension.
    """
    directory, away = RunDirectory(folder), False
    run, recorded = directory.load_config(), directory.load_data_record()
    try:
        usable_device(run.device)
    except ValueError as error:
        away = True
        message = f"{error}; {directory.path} is opened on the processor"
        warnings.warn(message, RunWarning, stacklevel=3)
        run = replace(run, device="cpu")
    state = directory.load_checkpoint()
    if state is None:
        raise FileNotFoundError(f"no checkpoint yet at {directory.checkpoint_path}")
    learner = _built(RunData(directory.path, run, recorded), build, data, state, needs_data)
    if away:
        state["learner"]["generator"] = learner.generator.get_state()
    _restore(learner, state, directory)
    return learner


def _built(
    original: RunData,
    build: Callable[[RunConfig], AgentType],
    data: str | PathLike[str] | None,
    state: dict[str, Any],
    needs_data: bool,
) -> AgentType:
    """The untrained learner in the shape of the run's data, with the data that is there or given.

    The shape counts: a flat autoencoder, a buffer or a copy of the environment has as many slots as
    the data that it was made for.
    """
    run = original.run
    if data is None:
        try:
            learner = build(run)
        except FileNotFoundError:
            if not original.is_missing:
                raise
            if needs_data:
                raise FileNotFoundError(original.missing) from None
            learner = build(original.stand_in())
            original.forbid_sets(learner.dataset)
            _warn(original.missing)
            assert original.recorded is not None  # else there is no stand-in
            absent = AbsentDataset(learner.dataset, original.recorded, original.missing)
            learner.use_data(run, absent)
        else:
            _warn(original.difference(learner.dataset) if original.recorded else None)
        return learner
    given = original.moved_to(data)
    dataset = given.dataset("train")
    with _fitting(RunDirectory(original.folder)):
        token_dim = len(state["learner"]["autoencoder"]["token_mean"])
    original.check_token_dim(dataset, token_dim)
    differs = original.difference(dataset)
    if differs is None:  # the same, or not known
        return build(given)
    _warn(differs)
    learner = build(original.stand_in() if original.is_missing else run)
    if original.is_missing:
        original.forbid_sets(learner.dataset)
    learner.use_data(given, dataset)
    return learner


def _warn(message: str | None) -> None:
    if message is not None:
        warnings.warn(message, RunWarning, stacklevel=5)


def start_run(
    learner: Agent,
    budget: Budget,
    folder: str | Path,
    *,
    progress_bar: bool = True,
    began: float | None = None,
    calibrate: bool = False,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Train from the start in a folder of its own, and return the result.

    A :class:`RunWarning` says where the budget allowed too few updates. ``began`` is the moment
    (``time.perf_counter()``) from which the time of starting up counts, if not this one. With
    ``calibrate``, the speed of this machine is measured where it was not today (see
    :func:`agents.runs.host.this_host`). ``processes`` are those that learn with this one, the
    first of them; the others :func:`agents.runs.together.assist` it.

    Raises ``FileExistsError`` where the folder holds a run, ``KeyboardInterrupt`` when interrupted,
    after writing the checkpoint, ``FloatingPointError`` when training does not stay finite, and
    ``ValueError`` naming the process that writes to the folder already.
    """
    began = perf_counter() if began is None else began
    directory = RunDirectory(folder)
    with directory.locked():
        with stop_requests() as requested:
            directory.check_free()
            check_plan(learner)
            run, data = learner.run_config(budget), recorded_data(learner.dataset)
        requested.obey()
        if processes is not None:  # what it refuses leaves nothing behind
            begin(learner, processes, directory.resolved(run), None)
        with stop_requests() as requested:
            directory.save_config(run, data, None if processes is None else processes.count)
        requested.obey()
        return _run(learner, budget, directory, None, progress_bar, began, calibrate, processes)


def resume_run(
    folder: str | Path,
    build: Callable[[RunConfig], Agent],
    data: str | PathLike[str] | None = None,
    *,
    allow_changed_data: bool = False,
    progress_bar: bool = True,
    began: float | None = None,
    calibrate: bool = False,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Continue a run from its last checkpoint, or from the start if it has none, to its result.

    Under a budget of merges on one thread the result is that of an uninterrupted run, bit for bit;
    a :class:`RunWarning` says where versions are not those that the run began with. ``build`` makes
    the untrained learner of a configuration. ``data`` is a file to take for the run's data from now
    on; ``began``, ``calibrate`` and ``processes`` are those of :func:`start_run`.

    Raises what :func:`start_run` raises, ``FileNotFoundError`` or ``ValueError`` where the folder
    holds no run that can be resumed, and ``ValueError`` for other data than the run began with.
    With ``allow_changed_data`` that is a :class:`RunWarning`, but for data of another shape, and
    where the budget is used.
    """
    began = perf_counter() if began is None else began
    directory = RunDirectory(folder)
    directory.load_config()  # before the lock, which makes the folder where there is none
    with directory.locked():
        run, recorded = directory.load_config(), directory.load_data_record()
        state = directory.recover()
        budget = run.budget
        if budget is None or (state is not None and state["training"] is None):
            raise ValueError(f"{directory.path} holds a saved agent, not a run that can be resumed")
        original = RunData(directory.path, run, recorded)
        if data is not None:
            if run.env != OWN_DATA:
                raise ValueError(
                    f"{directory.path} learns from {run.env}, which no file can replace"
                )
            run = original.moved_to(data)
        try:
            learner = build(run)
        except FileNotFoundError:
            if data is None and original.is_missing:
                raise FileNotFoundError(original.missing) from None
            raise
        original.check_token_dim(learner.dataset)
        original.check_slots(learner.dataset)
        differs = original.difference(learner.dataset) if recorded else None
        if differs is not None and not allow_changed_data:
            raise ValueError(f"{differs}; --allow-changed-data goes on with it")
        if differs is not None and state is not None and _is_over(budget, state):
            raise ValueError(
                f"{differs}; the budget of {budget} is used, so nothing is learned from it"
            )
        _warn(differs)
        _warn(directory.other_versions())
        found = after(recorded_data(learner.dataset), recorded)
        ranks = directory.load_ranks()
        check_ranks(directory.path, state, ranks, processes)
        if found != recorded or data is not None:
            directory.save_config(run, found, ranks)
        if processes is not None:
            begin(learner, processes, directory.load_config(), state)
            directory.save_ranks(processes.count)
        return _run(learner, budget, directory, state, progress_bar, began, calibrate, processes)


def _is_over(budget: Budget, state: dict[str, Any]) -> bool:
    """True <--> a checkpoint has used the budget."""
    loop, merges = state["training"], state["learner"]["merges_made"]
    return budget.progress(loop["seconds"], merges - loop["first_merge"]) >= 1.0


def _run(
    learner: Agent,
    budget: Budget,
    directory: RunDirectory,
    state: dict[str, Any] | None,
    progress_bar: bool,
    began: float,
    calibrate: bool,
    processes: Processes | None,
) -> dict[str, Any]:
    directory.add_host(this_host(learner.device, calibrate=calibrate))
    validation = learner.task.dataset("validation")

    def validate() -> dict[str, float | None]:
        scores = learner.evaluate(validation, validation_episodes(validation), sampled=False)
        return {f"validation/{name}": value for name, value in scores.items()}

    training = Training(learner, budget, validate, ranks=learner.ranks)
    if state is not None:
        _restore(learner, state, directory)
        with _fitting(directory):
            training.restore(state["training"])
        # Of this very state, whatever an earlier release or a bad disk left there.
        learner.autoencoder.save(directory.autoencoder_path)
    table = CSVLogger(directory.metrics_path, [] if state is None else state["rows"])
    events = TensorBoardLogger(directory.path, None if state is None else training.position.merges)

    def picture(position: Position) -> None:
        with training.spending("pictures"):
            figure = learner.figure(validation)
            write_figure(directory.figure_path, figure, dpi=None)
            events.image("validation/merge_trees", figure_to_array(figure), position.merges)

    course = TreeCourse()
    with suppress(ValueError):  # a damaged file costs the rows before, not the run
        if state is not None:
            course = directory.load_trees().until(training.position.merges)

    def list_trees(position: Position) -> None:
        nonlocal course
        with training.spending("pictures"):
            batch = validation.fixed(LISTED).to(learner.device)
            generator = torch.Generator(learner.device).manual_seed(EVALUATION_SEED)
            lists = nested_lists(batch, learner.greedy_trees(batch, generator))
            if lists:
                course = course.then(position.merges, lists)
                directory.save_trees(course)
                events.text("validation/trees", side_by_side(lists), position.merges)
                events.text("validation/one_tree", over_training(course), position.merges)

    training.spent["start_up"] += perf_counter() - began
    try:
        with stop_requests() as requested:
            title = f"{learner.task.env} {learner.algo}"
            for event in shown(training, title, progress_bar, requested):
                if isinstance(event, Logged):
                    table.write(event.position, event.scalars)
                    events.write(event.position, event.scalars)
                    if event.evaluation is not None:
                        list_trees(event.position)
                    if event.evaluation in PICTURED:
                        training.activity = "a picture"
                        picture(event.position)
                elif isinstance(event, CheckpointDue):
                    with training.spending("checkpoints"):
                        own = {"learner": learner.state(), "training": training.state()}
                        others = [] if processes is None else gather(processes, own)
                        directory.save_checkpoint(
                            own["learner"], learner.autoencoder, own["training"], table.rows, others
                        )
            requested.obey(elsewhere=training.stopped)
        with waiting(f"{title}  the last picture, test and validation scores", progress_bar):
            picture(training.position)
            list_trees(training.position)
            with training.spending("evaluation"):
                result = _result(learner, training.position, directory)
            result["spent"] = training.spent
        events.hyperparameters(
            flattened(directory.load_config().as_dict()),
            {f"test/{name}": value for name, value in result["test"].items()},
        )
    finally:
        events.close()
    directory.save_result(result)
    _warn(result["too_few_updates"])
    return result


def _result(learner: Agent, position: Position, directory: RunDirectory) -> dict[str, Any]:
    validation = learner.task.dataset("validation")
    return {
        "env": learner.task.env,
        "env_kwargs": directory.load_config().env_kwargs,
        "algo": learner.algo,
        "seed": learner.task.seed,
        "seconds": position.seconds,
        "merges": position.merges,
        "updates": position.updates,
        "test": learner.evaluate(learner.task.dataset("test")),
        "validation": learner.evaluate(validation, validation_episodes(validation)),
        "mode": learner.task.mode,
        "embedding_dim": learner.autoencoder.embedding_dim,
        "weights_hash": learner.autoencoder.weights_hash(),
        "ranks": learner.ranks.count,
        "too_few_updates": too_few_updates(position.updates) if learner.learns else None,
    }


def _restore(learner: Agent, state: dict[str, Any], directory: RunDirectory) -> None:
    with _fitting(directory):
        learner.restore(state["learner"])


@contextmanager
def _fitting(directory: RunDirectory) -> Iterator[None]:
    """Name the files where a state cannot be restored."""
    try:
        yield
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        message = (
            f"{directory.checkpoint_path} does not fit the learner of {directory.config_path}: "
            f"{error}"
        )
        raise ValueError(brief(message)) from error


def check_plan(learner: Agent) -> None:
    """Encode one sample: raises ``ValueError`` for data that the learner cannot use."""
    one = learner.dataset.fixed(1).to(learner.device)
    learner.encode(one, learner.greedy_trees(one, torch.Generator(learner.device)))
