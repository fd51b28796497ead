"""``htm train``: from its options and a file to the configuration of a run, and to its result."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.cli.options import TrainOptions
from agents.comparison.options import PROBLEM_NAMES
from agents.config.budget import Budget
from agents.config.dataclasses_json import checked_fields, flattened, merged, nested
from agents.config.errors import UsageError, as_usage_error, json_object, one_line, set_threads
from agents.config.files import quoted, read_file, write_file
from agents.config.options import OWN_DATA, check_environment, given_budget
from agents.config.run import RunConfig
from agents.registry import build_learner, check_algorithm, configured, file_name
from agents.runs.interruption import starting_up

if TYPE_CHECKING:
    from agents.learners.base import Learner
    from agents.optim.ranks import Processes
    from agents.runs.directory import RunDirectory

DEFAULT_SECONDS = 100.0
"""The budget of a run that is given none."""


def train(options: TrainOptions) -> None:
    """Start or resume a run; prints its test scores, its time and where everything is."""
    began = time.perf_counter()
    asked, changes = requested(options), nested(options.changes)
    processes = _processes(options)
    if processes is not None and processes.index > 0:
        from agents.runs.together import assist

        set_threads(options.threads)
        assist(build_learner, processes)
        return
    continued = _continued(options)
    if continued is None:
        _check_complete(asked, options)

    with starting_up():  # torch is loaded
        from agents.cli.tables import print_scores
        from agents.comparison.problems import find_problem
        from agents.runs.directory import RunDirectory
        from agents.runs.session import resume_run, start_run

    set_threads(options.threads)
    if asked.get("env") in PROBLEM_NAMES:
        with as_usage_error("--env: "):
            arguments = asked.get("env_kwargs"), asked.get("embedding_dim")
            problem = find_problem(asked["env"], *arguments)
        for name in ("env", "env_kwargs", "embedding_dim"):
            asked[name] = getattr(problem, name)
    if continued is not None:
        directory = RunDirectory(continued)
        _check_resumed(asked, changes, options, directory)
    else:
        budget = asked.pop("budget", None) or Budget(DEFAULT_SECONDS)
        learner = _new_learner(asked, changes, options)
        run = learner.run_config(budget)
        if options.save_config is not None:
            write_file(options.save_config, run.as_dict())
            return
        _print_width(asked.get("embedding_dim"), learner)
        if learner.dataset.column_names is not None:
            columns = one_line(", ".join(learner.dataset.column_names))
            print(f"columns   {columns} are the numbers of a token")
        advice = learner.advice()
        if advice is not None:
            print(f"advice    {advice} (--candidates knn)", file=sys.stderr)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        env = re.sub(r"[:/]+", "-", run.env)
        new = Path("runs") / f"{env}-{file_name(run.algo)}-{run.seed}-{stamp}"
        directory = RunDirectory(options.resume or options.out or new)
    try:
        if continued is not None:
            result = resume_run(
                continued,
                build_learner,
                options.data,
                allow_changed_data=options.allow_changed_data,
                began=began,
                calibrate=options.calibrate,
                processes=processes,
            )
        else:
            result = start_run(
                learner,
                budget,
                directory.path,
                began=began,
                calibrate=options.calibrate,
                processes=processes,
            )
    except KeyboardInterrupt as interruption:
        if not directory.holds_run:
            raise
        command = "htm" if processes is None else processes.command
        raise type(interruption)(
            f"interrupted, continue with: {command} train --resume {quoted(directory.path)}"
        ) from None
    except FloatingPointError as error:
        raise FloatingPointError(
            f"{error}; the last checkpoint with finite numbers is in "
            f"{directory.checkpoint_path.parent}"
        ) from error
    print_scores(f"{result['env']} {result['algo']}, held-out test data", result["test"], result)
    spent = ", ".join(f"{name.replace('_', '-')} {s:.1f}" for name, s in result["spent"].items())
    print(f"seconds   {spent}, {result['updates']} updates")
    print(f"run       {quoted(directory.path)}")
    print(f"pictures  {quoted(directory.figure_path)}")
    print(f"logs      tensorboard --logdir {quoted(directory.path)}")


def _processes(options: TrainOptions) -> Processes | None:
    """The processes that ``torchrun`` started to learn together; None where this one is alone."""
    if not os.environ.get("WORLD_SIZE"):  # one process needs no torch for it
        return None
    from agents.optim.ranks import Processes

    return Processes.of_environment(options.rank_timeout)


def _continued(options: TrainOptions) -> Path | None:
    """The folder of the run to resume; None where none was started there."""
    folder = options.resume
    return folder if folder is not None and (folder / "config.json").exists() else None


def requested(options: TrainOptions) -> dict[str, Any]:
    """The fields of a :class:`RunConfig` that the file or flags give; flags win.

    Raises :class:`UsageError` for a file that cannot be read, for a field that does not exist or is
    of another type, for two budgets, and for an unknown environment or algorithm.
    """
    values: dict[str, Any] = {}
    if options.config is not None:
        with as_usage_error(f"--config {options.config}: "):
            values = checked_fields(RunConfig, read_file(options.config))
    for name in ("env", "algo", "embedding_dim", "mode", "merger", "seed", "device"):
        if getattr(options, name) is not None:
            values[name] = getattr(options, name)
    if options.env_kwargs is not None:
        values["env_kwargs"] = json_object("--env-kwargs", options.env_kwargs)
    budget = given_budget(options.seconds, options.merges)
    if budget is not None:
        values["budget"] = budget
    if "env" in values:
        with as_usage_error("--env: "):
            values["env"] = check_environment(values["env"], PROBLEM_NAMES)
    if options.data is not None and _continued(options) is None:
        if values.setdefault("env", OWN_DATA) != OWN_DATA:
            raise UsageError(f"--data is for {OWN_DATA}; {values['env']} has data of its own")
        values["env_kwargs"] = values.get("env_kwargs", {}) | {"dataset": str(options.data)}
    if "algo" in values:
        with as_usage_error("--algo: "):
            check_algorithm(values["algo"])
    return values


def _check_complete(asked: dict[str, Any], options: TrainOptions) -> None:
    """Raise :class:`UsageError` naming everything that a new run is not given."""
    missing = []
    if "env" not in asked:
        missing.append("--env NAME, such as HTM-Trees-v0 or trees7 (--data FILE for your own data)")
    elif asked["env"] == "HTM-v0" and "dataset" not in asked.get("env_kwargs", {}):
        missing.append("your data: --data FILE, or dataset= in --env-kwargs")
    if "algo" not in asked:
        missing.append("--algo NAME, such as reinforce (or module:Class of your own)")
    if missing:
        hint = f"; {options.resume} holds no run to resume" if options.resume else ""
        raise UsageError(f"htm train needs {', and '.join(missing)}{hint}")


def _new_learner(asked: dict[str, Any], changes: dict[str, Any], options: TrainOptions) -> Learner:
    """The learner that is asked for; :class:`UsageError` for options that it cannot have."""
    config = asked.pop("config", {})
    if options.config is not None:  # by itself first, so that the file is named
        with as_usage_error(f"--config {options.config}: "):
            configured(asked["algo"], config)
    with as_usage_error():
        config = asdict(configured(asked["algo"], merged(config, changes)))
    run = RunConfig(**asked, config=config)
    try:
        with starting_up():
            return build_learner(run)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _print_width(asked: Any, learner: Learner) -> None:
    """The width of an embedding and its reason, where the data chose it."""
    from htm_env.datasets.width import suitable_width
    from htm_env.weights import automatic_width

    if learner.task.mode == "joint" and automatic_width(learner.task.env, asked):
        dim, reason = suitable_width(learner.dataset)
        print(f"embedding {dim} numbers: {reason}")


def _flag(budget: Budget) -> str:
    """The budget as it is asked for."""
    return f"--{'merges' if budget.seconds is None else 'seconds'} {str(budget).split()[0]}"


def _check_resumed(
    asked: dict[str, Any], changes: dict[str, Any], options: TrainOptions, directory: RunDirectory
) -> None:
    """Raise :class:`UsageError` where an option differs from what the run was started with."""
    started = directory.load_config()
    if asked.get("embedding_dim") == "auto":  # as it was resolved
        del asked["embedding_dim"]
    given = flattened(asked.pop("config", {})) | flattened(changes)
    before = {**vars(started), **flattened(started.config)}
    kwargs = asked.get("env_kwargs", {})
    if isinstance(kwargs.get("dataset"), str):
        kwargs["dataset"] = str(Path(kwargs["dataset"]).resolve())
    for name, value in json.loads(json.dumps({**asked, **given}, default=str)).items():
        old = json.loads(json.dumps(before.get(name), default=str))
        if value != old and name == "budget":
            raise UsageError(
                f"--resume {directory.path} keeps the budget of {old}, which schedules follow; to "
                f"train for longer: htm train --config {directory.config_path} "
                f"{_flag(asked['budget'])} --out NEW"
            )
        if value != old:
            raise UsageError(
                f"--resume {directory.path} keeps the settings of the run: {name} is {value!r}, "
                f"but was {old!r}"
            )
    if options.out is not None and options.out.resolve() != directory.path.resolve():
        raise UsageError(f"--resume {directory.path} continues there; --out is {options.out}")
