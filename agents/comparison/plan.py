"""The runs of a comparison, and whether they fit those that its folder holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from agents.comparison.options import CompareOptions, names_in
from agents.comparison.problems import (
    PROBLEMS,
    Problem,
    find_problem,
    folder_name,
    merger_is_known,
)
from agents.comparison.results import Task, changed_options
from agents.config.budget import Budget
from agents.config.dataclasses_json import flattened, merged
from agents.config.errors import UsageError, as_usage_error, json_object
from agents.config.options import given_budget
from agents.config.run import RunConfig
from agents.encoders import NO_ENCODER, check_encoder
from agents.fixed import FIXED_POLICIES
from agents.registry import algorithm, build_learner, configured, file_name, unlabelled
from agents.runs.directory import RunDirectory
from agents.runs.session import check_plan
from htm_env.checks import brief
from htm_env.weights import AUTO, usable_device

DEFAULT_SECONDS = 22.0
"""Default budget: 48 runs, with start and test, take under fifteen minutes on two cores."""
RUNS, RETRAINED = "runs", "retrained"
"""The folders of a comparison that hold runs, as ``problem/algorithm-seed``."""
HERE = ("local", "folder")
"""Engines that train on this machine, so that it needs the device."""
RunKey = tuple[Task, str, int]
"""Identifies a run: its task, algorithm and seed."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison: its folder and the configuration expected there."""

    name: str
    problem: str
    algo: str
    """The name under which it is reported."""
    seed: int
    directory: RunDirectory
    config: RunConfig

    @property
    def finished(self) -> bool:
        return self.directory.load_result() is not None

    @property
    def key(self) -> RunKey:
        config, kwargs = self.config, json.dumps(self.config.env_kwargs, sort_keys=True)
        assert isinstance(config.embedding_dim, int)  # that of the learner
        mode, merger = config.mode or "joint", config.merger or ""
        task = Task(config.env, kwargs, config.embedding_dim, mode, merger)
        return task, self.algo, self.seed


def plan_runs(options: CompareOptions) -> tuple[list[PlannedRun], list[str]]:
    """All runs, seed by seed, so that early results cover all algorithms; and those left out.

    The data's own hierarchy cannot be followed where there is none. Raises :class:`UsageError` for
    options that make no sense, and whatever an algorithm has against its data.
    """
    check_device(options.device, options.engine)
    budget = given_budget(options.seconds, options.merges) or Budget(DEFAULT_SECONDS)
    problems, algos = _problems(options), names_in("--algos", options.algos)
    changes = _with_encoders(algos, options.encoders)
    given = json_object("--algo-options", options.algo_options)
    for name in given:
        if name not in changes:
            known = list(changes)
            raise UsageError(f"--algo-options has {name!r}; expected one of --algos: {known}")
        if not isinstance(given[name], dict):
            raise UsageError(
                f"--algo-options of {name} are {json.dumps(given[name])}; expected an object"
            )
    configs: dict[tuple[str, str], RunConfig] = {}
    left_out = []
    for problem in problems:
        for algo, encoder in changes.items():
            changed = merged(encoder, given.get(algo, {}))
            config = run_config(problem, algo, changed, options.mode, budget, options.device)
            if config is None:
                left_out.append(f"{problem.name} has no hierarchy for {algo} to follow: left out")
            else:
                configs[problem.name, algo] = config
    runs = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for (problem_name, algo), config in configs.items():
            name = f"{folder_name(problem_name)}/{file_name(algo)}-{seed}"
            seeded = replace(config, seed=seed)
            directory = RunDirectory(options.folder / RUNS / name)
            runs.append(PlannedRun(name, problem_name, algo, seed, directory, seeded))
    return runs, left_out


def check_folder(runs: list[PlannedRun], out: Path) -> None:
    """Raise ``ValueError`` where the folder's runs are not of this comparison.

    The planned runs need the configuration that they would be given now. All others need the same
    mode, budget and device, the same data under the same problem, and the same options under the
    same name.
    """
    planned = {run.directory.path.resolve(): run.config for run in runs}
    problems = {folder_name(run.problem): run.config for run in runs}
    options = {(folder_name(run.problem), run.algo): changed_options(run.config) for run in runs}
    for directory in found_runs(out, RUNS):
        found, problem = directory.load_config(), directory.path.parent.name
        expected = planned.get(directory.path.resolve())
        names = [field.name for field in fields(RunConfig)]
        if expected is None:
            shared = problems.get(problem)
            expected = shared or runs[0].config
            data = ["env", "env_kwargs", "embedding_dim"] if shared else []
            # Beside other data a known merger makes runs frozen.
            names = ["budget", "device", *data]
            names += [] if merger_is_known(found) != merger_is_known(expected) else ["mode"]
            own = changed_options(found)
            planned_options = options.get((problem, found.algo), own)
            if own != planned_options:
                raise ValueError(
                    f"{directory.path} has the options {own} and not {planned_options}; runs of "
                    "one name are pooled, so use a label or choose another --out"
                )
        _check_same(directory, found, expected, names, "comparison")


def check_same_runs(runs: Sequence[PlannedRun], what: str) -> None:
    """Raise ``ValueError`` where the folder of a planned run holds another one: it belongs to
    another ``what``."""
    names = [field.name for field in fields(RunConfig)]
    for run in runs:
        if run.directory.holds_run:
            _check_same(run.directory, run.directory.load_config(), run.config, names, what)


def _check_same(
    directory: RunDirectory, found: RunConfig, expected: RunConfig, names: list[str], what: str
) -> None:
    mine, other = (  # as JSON reads them back, with lists for tuples
        flattened(json.loads(json.dumps({name: run.as_dict()[name] for name in names})))
        for run in (expected, found)
    )
    for name in dict.fromkeys([*mine, *other]):
        if mine.get(name) != other.get(name):
            raise ValueError(
                f"{directory.path} belongs to another {what}, its {name} is "
                f"{other.get(name)!r} and not {mine.get(name)!r}; choose another --out"
            )


def found_runs(out: Path, folder: str) -> list[RunDirectory]:
    """Every run that was started in a folder of a comparison, by name."""
    return [RunDirectory(path.parent) for path in sorted((out / folder).glob("*/*/config.json"))]


def _problems(options: CompareOptions) -> list[Problem]:
    names = names_in("--envs", options.envs)
    kwargs = json_object("--env-kwargs", options.env_kwargs)
    dims = _embedding_dims(options.embedding_dim, names)
    for flag, given in (("--env-kwargs", kwargs), ("--embedding-dim", dims)):
        for name in given:
            if name not in names:
                raise UsageError(f"{flag} has {name!r}; expected one of --envs: {names}")
    with as_usage_error("--envs: "):
        problems = [find_problem(name, kwargs.get(name), dims.get(name)) for name in names]
        if options.dims is None:
            return problems
        widths = names_in("--dims", options.dims)
        asked = [AUTO if width == AUTO else int(width) for width in widths]
        swept = [problem.at_width(dim) for problem in problems for dim in asked]
        return list({problem.name: problem for problem in swept}.values())


def _embedding_dims(text: str | None, names: list[str]) -> dict[str, int | str]:
    """One number for all environment ids, or one each; named problems have their own."""
    if text is None:
        return {}
    if text.isdecimal() or text == AUTO:
        dim = AUTO if text == AUTO else int(text)
        return {name: dim for name in names if name not in PROBLEMS}
    return json_object("--embedding-dim", text)


def _with_encoders(algos: list[str], encoders: str | None) -> dict[str, dict[str, Any]]:
    """The rows of the comparison by name, each with what an encoder changes of its algorithm.

    Without ``--encoders`` nothing is changed. An algorithm without a policy network is one row.
    """
    if encoders is None:
        return {algo: {} for algo in algos}
    names = names_in("--encoders", encoders)
    with as_usage_error("--encoders: "):
        for name in names:
            check_encoder(name)
    rows: dict[str, dict[str, Any]] = {}
    for algo in algos:
        if not hasattr(algorithm(algo).config, "encoder"):
            rows[algo] = {}
            continue
        mark = ":" if algo == unlabelled(algo) else "-"  # an algorithm has one label
        for name in names:
            rows[algo if name == NO_ENCODER else f"{algo}{mark}{name}"] = {"encoder": name}
    return rows


def check_device(name: str, engine: str) -> None:
    """Raise :class:`UsageError` for a device that no machine has, or that this one cannot use
    though the engine trains here."""
    with as_usage_error("--device: "):
        if engine in HERE:
            usable_device(name)
        try:
            torch.device(name)
        except RuntimeError as error:
            raise ValueError(brief(str(error))) from None


def run_config(
    problem: Problem,
    algo: str,
    changes: Mapping[str, Any],
    mode: str | None,
    budget: Budget,
    device: str = "cpu",
) -> RunConfig | None:
    """The configuration of a run; None where it needs a hierarchy that the data does not have.

    It is tried on the processor, since the machine that plans may not have the ``device``. Raises
    :class:`UsageError` for changes that the algorithm cannot have.
    """
    with as_usage_error(f"the options of {algo}: "):
        config = configured(algo, changes)
    kwargs = dict(problem.env_kwargs)
    if isinstance(kwargs.get("dataset"), str):
        kwargs["dataset"] = str(Path(kwargs["dataset"]).resolve())
    run = RunConfig(
        problem.env, kwargs, problem.embedding_dim, mode, algo=algo, config=asdict(config)
    )
    try:
        learner = build_learner(run)
    except ValueError as error:
        about = f"{algo} with its options on {problem.name}: " if changes else ""
        raise UsageError(f"{about}{error}") from None
    fixed = FIXED_POLICIES.get(unlabelled(algo))
    if fixed is not None and not fixed.suits(learner.dataset, learner.autoencoder):
        return None
    check_plan(learner)
    return replace(learner.run_config(budget), device=device)
