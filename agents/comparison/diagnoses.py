"""Retraining and cross-play: how good trees are without the autoencoder they were learned with.

Policy and autoencoder adapt to each other in joint training. *Retraining* freezes the policy and
trains a fresh autoencoder on its greedy trees; *cross-play* puts every policy's trees through every
other run's autoencoder of the same problem.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from agents.comparison.plan import RETRAINED, PlannedRun
from agents.comparison.results import Task, converted, load_result, read_table, write_table
from agents.comparison.retrained import RetrainedConfig
from agents.config.options import TEST_EPISODES
from agents.evaluation.evaluate import CHUNK, EVALUATION_SEED, root_errors
from agents.learners.fixed_order import FixedOrder
from agents.registry import algorithm, load_learner
from agents.runs.directory import RunDirectory
from htm_env.autoencoder import HTMAutoencoder


def retrained_runs(runs: Sequence[PlannedRun], out: Path) -> list[PlannedRun]:
    """A run for each finished one with a learned policy: a fresh autoencoder on its trees.

    A fixed order needs none: its own run already trained an autoencoder on its trees.
    """
    planned = []
    for run in runs:
        learner = algorithm(run.algo).learner
        if not run.finished or not _makes_trees(run) or issubclass(learner, FixedOrder):
            continue
        retrained = RetrainedConfig(run=str(run.directory.path.resolve()))
        config = replace(run.config, algo="retrained", mode="joint", config=asdict(retrained))
        path = out / RETRAINED / run.problem / run.directory.path.name
        planned.append(
            PlannedRun(
                f"{run.name} retrained", run.problem, run.algo, run.seed, RunDirectory(path), config
            )
        )
    return planned


RunKey = tuple[Task, str, int]
"""Identifies a run: its task, algorithm and seed."""


@dataclass(frozen=True)
class CrossPlayRow:
    """One policy's trees through one autoencoder; both are runs on the same problem."""

    env: str
    env_kwargs: str
    embedding_dim: int
    mode: str
    algo: str
    """Whose trees."""
    seed: int
    autoencoder_algo: str
    """Whose autoencoder."""
    autoencoder_seed: int
    nmse: float | None
    """On the held-out test episodes, greedy trees; None where it is not finite."""
    weights_hash: str
    """Of the autoencoder that the policy learned with."""
    autoencoder_weights_hash: str

    @property
    def task(self) -> Task:
        return Task(self.env, self.env_kwargs, self.embedding_dim, self.mode)

    @property
    def error(self) -> float:
        """``nmse``; infinity where it was not finite."""
        return math.inf if self.nmse is None else self.nmse

    @property
    def pair(self) -> tuple[Task, str, int, str, int]:
        """Identifies a row."""
        return self.task, self.algo, self.seed, self.autoencoder_algo, self.autoencoder_seed

    @property
    def hashes(self) -> dict[RunKey, str]:
        """The weights of both runs' autoencoders when the row was measured."""
        return {
            (self.task, self.algo, self.seed): self.weights_hash,
            (self.task, self.autoencoder_algo, self.autoencoder_seed): (
                self.autoencoder_weights_hash
            ),
        }

    @property
    def own(self) -> bool:
        """True <--> the two were trained together."""
        return (self.algo, self.seed) == (self.autoencoder_algo, self.autoencoder_seed)


def cross_play(
    runs: Sequence[PlannedRun], path: Path, tell: Callable[[str], None] = lambda line: None
) -> None:
    """Write the table of every finished policy's trees through every autoencoder of its problem.

    Pairs that the table has are not computed again, unless one of the two runs was made anew; it is
    written after each policy, so that the work can be interrupted. ``tell`` gets a line for each
    policy.
    """
    usable = [run for run in runs if run.finished and _makes_trees(run)]
    hashes = {_run_key(run): _weights_hash(run) for run in usable}
    known = up_to_date(read_cross_play(path), hashes) if path.exists() else []
    rows = {row.pair: row for row in known}
    for problem in dict.fromkeys(run.problem for run in usable):
        group = [run for run in usable if run.problem == problem]
        for policy in group:
            missing = [run for run in group if _pair(policy, run) not in rows]
            if missing:
                tell(f"cross-play: the trees of {policy.name} through {len(missing)} autoencoders")
                for run, error in zip(missing, _errors(policy, missing), strict=True):
                    pair = _pair(policy, run)
                    finite = error if torch.tensor(error).isfinite() else None
                    both = hashes[_run_key(policy)], hashes[_run_key(run)]
                    rows[pair] = CrossPlayRow(*pair[0], *pair[1:], finite, *both)
                write_cross_play(path, rows.values())


def up_to_date(rows: Iterable[CrossPlayRow], hashes: Mapping[RunKey, str]) -> list[CrossPlayRow]:
    """The rows of which neither run was made anew since, as far as ``hashes`` has the runs."""
    return [
        row for row in rows if all(hashes.get(run, own) == own for run, own in row.hashes.items())
    ]


def _run_key(run: PlannedRun) -> RunKey:
    config = run.config
    kwargs = json.dumps(config.env_kwargs, sort_keys=True)
    assert config.embedding_dim is not None  # that of the learner
    task = Task(config.env, kwargs, config.embedding_dim, config.mode)
    return task, run.algo, run.seed


def _result(run: PlannedRun) -> dict[str, Any]:
    """Of a finished run."""
    result = load_result(run.directory)
    assert result is not None
    return result


def _makes_trees(run: PlannedRun) -> bool:
    return _result(run)["test"]["mean_height"] is not None


def _weights_hash(run: PlannedRun) -> str:
    return str(_result(run)["weights_hash"])


def _pair(policy: PlannedRun, other: PlannedRun) -> tuple[Task, str, int, str, int]:
    return *_run_key(policy), other.algo, other.seed


@torch.no_grad()
def _errors(policy: PlannedRun, others: Sequence[PlannedRun]) -> list[float]:
    """The held-out ``nmse`` of a policy's greedy trees through each autoencoder, as
    :func:`agents.evaluation.evaluate.evaluate` computes it."""
    learner = load_learner(policy.directory.path)
    dataset = learner.task.dataset("test")
    std = dataset.std.to(learner.device)
    episodes = dataset.fixed(TEST_EPISODES).to(learner.device)
    generator = torch.Generator(learner.device).manual_seed(EVALUATION_SEED)
    planned = [
        (batch, learner.plan(batch, generator, greedy=True)) for batch in episodes.parts(CHUNK)
    ]
    means = []
    for other in others:
        autoencoder = HTMAutoencoder.load(other.directory.autoencoder_path, learner.device)
        errors = [root_errors(autoencoder, batch, merges, std) for batch, merges in planned]
        means.append(float(torch.cat(errors).double().mean()))
    return means


def write_cross_play(path: Path, rows: Iterable[CrossPlayRow]) -> None:
    """Write the table, all or nothing."""
    write_table(path, CrossPlayRow, rows)


def read_cross_play(path: Path) -> list[CrossPlayRow]:
    """What :func:`write_cross_play` wrote; ``ValueError`` naming a table that it did not."""
    return read_table(path, partial(converted, CrossPlayRow), "of cross-play")
