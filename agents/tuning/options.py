"""The options of ``htm tune``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agents.comparison.options import PROBLEM_NAMES
from agents.config.errors import UsageError, as_usage_error, check_at_least
from agents.config.options import check_environment
from agents.engines.options import EngineOptions
from agents.registry import check_algorithm
from agents.tuning.samplers import check_sampler


@dataclass(frozen=True)
class TuneOptions(EngineOptions):
    """Search for options of an algorithm by the validation error of runs that have them.

    Successive halving: all trials train for a small budget, the best go on to one that is --factor
    times as large, and so on; the last rung has the whole budget. A rung starts anew, since
    schedules follow the budget. Each run is a folder under OUT/runs; the same command again
    resumes. OUT/best.json is for htm train --config, OUT/trials.csv has all.
    """

    space: str
    """Options to search, by their paths: '{"batch_size": [8, 16], "policy.learning_rate": {"low":
    0.0001, "high": 0.01, "log": true}}'."""
    env: str = "trees7"
    """Problem or environment id, as for htm train."""
    algo: str = "reinforce"
    """Algorithm, as for htm train."""
    env_kwargs: str | None = None
    """Arguments of the data, such as '{"heights": [3]}'."""
    embedding_dim: int | Literal["auto"] | None = None
    """Width of an embedding; the problem's if not given."""
    mode: Literal["joint", "frozen"] | None = None
    """As for htm train."""
    device: str = "cpu"
    """Where all runs train: cpu, cuda, ... On a cluster the engine has to be asked for GPUs too."""
    algo_options: str | None = None
    """Options that all trials have, such as '{"batch_size": 16}'."""
    trials: int = 9
    """Trials of the first rung."""
    rungs: int = 3
    """Budgets; 1 is a plain search."""
    factor: int = 3
    """One of so many trials goes on to the next rung, whose budget is so many times as large."""
    seeds: int = 1
    """Runs of each trial, whose errors are averaged."""
    first_seed: int = 0
    """Seed of the first run of each trial."""
    seconds: float | None = None
    """Budget of a run in the last rung: seconds; 22 if no budget is given."""
    merges: int | None = None
    """Budget of a run in the last rung: merges. The search is the same on every machine then."""
    sampler: str = "random"
    """random, optuna (extra [optuna]), or module:Class of your own."""
    sampler_seed: int = 0
    """Seed of the sampler."""
    batch: int = 4
    """Trials that a sampler which learns from errors draws at a time."""
    out: Path = Path("runs/tune")
    """Folder of the search."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, trials=self.trials, rungs=self.rungs, seeds=self.seeds, batch=self.batch)
        check_at_least(2, factor=self.factor)
        check_at_least(0, first_seed=self.first_seed, sampler_seed=self.sampler_seed)
        fewest = self.factor ** min(self.rungs - 1, 64)  # more than any number of trials
        if self.trials < fewest:
            raise UsageError(
                f"--trials is {self.trials}; {self.rungs} rungs by a factor of {self.factor} need "
                f"at least {fewest}"
            )
        with as_usage_error("--env: "):
            check_environment(self.env, PROBLEM_NAMES)
        with as_usage_error("--algo: "):
            check_algorithm(self.algo)
        with as_usage_error("--sampler: "):
            check_sampler(self.sampler)
