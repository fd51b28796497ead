"""``htm tune``: successive halving of trials, on whatever engine.

Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter optimization
(AISTATS 2016).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agents.comparison.plan import (
    DEFAULT_SECONDS,
    PlannedRun,
    check_device,
    check_same_runs,
    run_config,
)
from agents.comparison.problems import Problem, find_problem
from agents.comparison.report import check_processors
from agents.comparison.results import ResultRow, run_rows, write_table
from agents.comparison.workshop import Workshop, check_alone, engine_of
from agents.config.budget import Budget
from agents.config.dataclasses_json import merged, nested
from agents.config.errors import UsageError, as_usage_error, json_object
from agents.config.files import quoted
from agents.config.options import given_budget
from agents.runs.directory import RunDirectory
from agents.tuning.options import TuneOptions
from agents.tuning.samplers import make_sampler
from agents.tuning.space import Values, space_from_dict
from htm_env.files import atomic_write_text

TRIALS, BEST, RUNS = "trials.csv", "best.json", "runs"
SHOWN = 5
"""Trials of the last rung that are printed."""


@dataclass(frozen=True)
class TrialRow:
    """One trial in one rung."""

    rung: int
    trial: int
    budget: str
    """Of each run, such as ``27000 merges``."""
    seeds: int
    """Runs that it was averaged over."""
    error: float | None
    """Validation ``nmse``, or minus the return; None where a run's was not finite."""
    options: str
    """JSON, by dotted paths."""


def tune(options: TuneOptions) -> None:
    """Search, and write ``trials.csv`` and ``best.json``.

    Raises :class:`UsageError` for options that make no sense, ``ValueError`` for a folder that
    belongs to another search or is in use, ``ChildProcessError`` naming runs that failed, and
    ``KeyboardInterrupt`` when interrupted.
    """
    check_alone("htm tune")
    try:
        with engine_of(options, options.out) as workshop:
            best = _Search(options, workshop).best()
            with workshop.turn():
                atomic_write_text(options.out / BEST, json.dumps(best, indent=2) + "\n")
    except KeyboardInterrupt as interruption:
        raise type(interruption)("interrupted, continue with the same command") from None
    print(f"trials    {quoted(options.out / TRIALS)}")
    print(f"best      htm train --config {quoted(options.out / BEST)}")


def budgets(whole: Budget, rungs: int, factor: int) -> list[Budget]:
    """The budgets of the rungs, from small to whole; at least one merge each."""
    shares = [factor ** (rungs - 1 - rung) for rung in range(rungs)]
    if whole.seconds is not None:
        return [Budget(seconds=whole.seconds / share) for share in shares]
    assert whole.merges is not None  # one of the two
    return [Budget(merges=max(1, whole.merges // share)) for share in shares]


def survivors(errors: Mapping[int, float], factor: int) -> list[int]:
    """One of ``factor`` trials, at least one: those of the smallest errors, the best first.

    Of equal errors the trial that was drawn first counts as better.
    """
    ranked = sorted(errors, key=lambda trial: (errors[trial], trial))
    return ranked[: max(1, len(ranked) // factor)]


class _Search:
    """The course of one search."""

    def __init__(self, options: TuneOptions, workshop: Workshop) -> None:
        self.options, self.workshop = options, workshop
        check_device(options.device, options.engine)
        with as_usage_error("--space: "):
            space = space_from_dict(json_object("--space", options.space))
        with as_usage_error("--sampler: "):
            self.sampler = make_sampler(options.sampler, space, options.sampler_seed)
        self.fixed = json_object("--algo-options", options.algo_options)
        kwargs = json_object("--env-kwargs", options.env_kwargs) if options.env_kwargs else None
        with as_usage_error("--env: "):
            self.problem: Problem = find_problem(options.env, kwargs, options.embedding_dim)
        whole = given_budget(options.seconds, options.merges) or Budget(DEFAULT_SECONDS)
        self.budgets = budgets(whole, options.rungs, options.factor)
        self.values: dict[int, Values] = {}
        self.rows: list[TrialRow] = []

    def best(self) -> dict[str, Any]:
        """Search, and return the configuration of the best run of the last rung."""
        errors = dict(self._first_rung())
        for rung in range(1, self.options.rungs):
            going_on = sorted(survivors(errors, self.options.factor))
            errors = dict(zip(going_on, self._errors(rung, going_on), strict=True))
        ranked = sorted(errors, key=lambda trial: (errors[trial], trial))
        for trial in ranked[:SHOWN]:
            values = json.dumps(self.values[trial])
            print(f"trial {trial:<3d} validation {errors[trial]:.4g}  {values}")
        if not math.isfinite(errors[ranked[0]]):
            raise FloatingPointError("no trial of the last rung had a finite validation error")
        return self._runs(self.options.rungs - 1, ranked[0])[0].config.as_dict()

    def _first_rung(self) -> Iterator[tuple[int, float]]:
        while len(self.values) < self.options.trials:
            left = self.options.trials - len(self.values)
            count = min(left, self.options.batch) if self.sampler.learns else left
            new = range(len(self.values), len(self.values) + count)
            asked = self.sampler.ask(count)
            if len(asked) != count:
                raise ValueError(
                    f"the sampler {self.options.sampler!r} gave the values of {len(asked)} "
                    f"trials; expected {count}"
                )
            self.values |= zip(new, asked, strict=True)
            for trial, error in zip(new, self._errors(0, new), strict=True):
                self.sampler.tell(self.values[trial], error)
                yield trial, error

    def _errors(self, rung: int, trials: Sequence[int]) -> list[float]:
        """Train the trials of a rung; the validation error of each."""
        runs = {trial: self._runs(rung, trial) for trial in trials}
        every = [run for of_trial in runs.values() for run in of_trial]
        check_same_runs(every, "search")
        failed = self.workshop.train(every, f"htm tune, rung {rung + 1} of {self.options.rungs}")
        if failed:
            raise ChildProcessError(
                f"{len(failed)} of the runs failed, the same command tries again: "
                f"{'; '.join(failed)}"
            )
        rows: list[ResultRow] = [row for run in every for row in run_rows(run.directory)]
        check_processors(rows)
        found = []
        for trial, of_trial in runs.items():
            errors = [_validation_error(run.directory) for run in of_trial]
            error = sum(errors) / len(errors)
            found.append(error)
            finite = error if math.isfinite(error) else None
            options = json.dumps(self.values[trial])
            budget = str(self.budgets[rung])
            self.rows.append(TrialRow(rung + 1, trial, budget, len(errors), finite, options))
        with self.workshop.turn():
            write_table(self.options.out / TRIALS, TrialRow, self.rows)
        return found

    def _runs(self, rung: int, trial: int) -> list[PlannedRun]:
        """The runs of a trial in a rung, one a seed."""
        options = self.options
        changes = merged(self.fixed, nested(self.values[trial]))
        budget, device = self.budgets[rung], options.device
        config = run_config(self.problem, options.algo, changes, options.mode, budget, device)
        if config is None:
            raise UsageError(f"{options.env} has no hierarchy for {options.algo} to follow")
        planned = []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            name = f"rung{rung + 1}/trial{trial}-{seed}"
            directory = RunDirectory(options.out / RUNS / name)
            seeded = replace(config, seed=seed)
            planned.append(PlannedRun(name, options.env, options.algo, seed, directory, seeded))
        return planned


def _validation_error(directory: RunDirectory) -> float:
    """``nmse``, or minus the return where nothing is decoded; infinity where it is not finite."""
    result = directory.load_result()
    assert result is not None  # it did not fail
    scores = result["validation"]
    score = scores["return"] if "return" in scores else scores.get("nmse")
    if score is None:
        return math.inf
    return -score if "return" in scores else score
