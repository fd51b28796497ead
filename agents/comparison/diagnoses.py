"""Retraining and cross-play: how good trees are without the autoencoder they were learned with.

Policy and autoencoder adapt to each other in joint training. *Retraining* freezes the policy and
trains a fresh autoencoder on its greedy trees; *cross-play* puts every policy's trees through every
other run's autoencoder of the same problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from agents.comparison.plan import RETRAINED, PlannedRun, RunKey
from agents.comparison.results import Task, check_json_object, read_table, write_table
from agents.config.dataclasses_json import LARGEST, check_bounds
from agents.config.files import quoted
from agents.config.options import TEST_EPISODES
from agents.evaluation.evaluate import CHUNK, EVALUATION_SEED, Planner, root_errors
from agents.learners.fixed_order import FixedOrder, FixedOrderConfig
from agents.optim.autoencoder_trainer import AutoencoderConfig
from agents.registry import algorithm, load_learner
from agents.runs.directory import RunDirectory
from htm_env.autoencoder import HTMAutoencoder


@dataclass(frozen=True)
class RetrainedConfig:
    """The run whose trees are taken, and the training of a fresh autoencoder on them."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    run: str = ""
    """Folder of the run, with a checkpoint."""
    batch_size: int = FixedOrderConfig.batch_size
    """Trees an update, as for fixed orders."""

    def __post_init__(self) -> None:
        check_bounds(self, batch_size=(1, LARGEST))


class Retrained(FixedOrder):
    """Trains a fresh autoencoder on the trees of a trained policy.

    The frozen policy's greedy trees are a fixed merge order like any other. The fresh autoencoder
    is this project's default whatever the run's own was, so that only the trees differ. Every tree
    is greedy, so ``sampled_nmse`` is ``nmse``.

    Raises ``FileNotFoundError`` or ``ValueError`` where ``config.run`` is not a trained run on the
    same environment that makes trees.
    """

    algo = "retrained"
    algorithms = ("retrained",)
    config_class = RetrainedConfig
    config: RetrainedConfig  # type: ignore[assignment]  # the trees come from a run, not by name

    def make_planner(self) -> Planner:
        if not self.config.run:
            raise ValueError("retrained needs the folder of a run; none is given")
        learner = load_learner(self.config.run)
        if learner.task.env != self.task.env:
            raise ValueError(
                f"{self.config.run} was trained on {learner.task.env}; expected {self.task.env}"
            )
        one = self.dataset.fixed(1).to(self.device)
        learner.plan(one, torch.Generator(self.device), greedy=True)  # raises without trees
        return learner


def retrained_runs(runs: Sequence[PlannedRun], out: Path) -> list[PlannedRun]:
    """A run for each finished one with a learned policy: a fresh autoencoder on its trees.

    A fixed order needs none: its own run already trained an autoencoder on its trees.
    """
    planned = []
    for run, _ in _with_trees(runs):
        if algorithm(run.algo).learner.fixed_trees:
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


@dataclass(frozen=True)
class CrossPlayRow:
    """One policy's trees through one autoencoder; both are runs on the same problem."""

    env: str
    env_kwargs: str
    embedding_dim: int
    mode: str
    algo: str
    """The algorithm that made the trees."""
    seed: int
    autoencoder_algo: str
    """The algorithm that trained the autoencoder."""
    autoencoder_seed: int
    nmse: float | None
    """On the held-out test episodes, greedy trees; None where it is not finite."""
    weights_hash: str
    """Hash of the autoencoder that the policy learned with."""
    autoencoder_weights_hash: str

    def __post_init__(self) -> None:
        check_json_object("env_kwargs", self.env_kwargs)
        check_bounds(self, embedding_dim=1, seed=0, autoencoder_seed=0)

    @property
    def task(self) -> Task:
        return Task(self.env, self.env_kwargs, self.embedding_dim, self.mode)

    @property
    def error(self) -> float:
        """``nmse``; infinity where it was not finite."""
        return math.inf if self.nmse is None else self.nmse

    @property
    def pair(self) -> tuple[RunKey, RunKey]:
        """The runs of the policy and of the autoencoder; identifies a row."""
        policy, other = (self.algo, self.seed), (self.autoencoder_algo, self.autoencoder_seed)
        return (self.task, *policy), (self.task, *other)

    @property
    def own(self) -> bool:
        """True <--> the two were trained together."""
        return self.pair[0] == self.pair[1]


def cross_play(
    runs: Sequence[PlannedRun], path: Path, tell: Callable[[str], None] = lambda line: None
) -> None:
    """Write the table of every finished policy's trees through every autoencoder of its problem.

    Pairs that the table has are not computed again, unless one of the two runs was made anew; it is
    written after each policy, so that the work can be interrupted. ``tell`` gets a line for each
    policy.
    """
    usable = _with_trees(runs)
    hashes = {run.key: weights_hash for run, weights_hash in usable}
    rows = {row.pair: row for row in up_to_date(path, hashes)}
    for policy, weights_hash in usable:
        others = [run for run, _ in usable if run.problem == policy.problem]
        missing = [run for run in others if (policy.key, run.key) not in rows]
        if missing:
            tell(f"cross-play: the trees of {policy.name} through {len(missing)} autoencoders")
            task, algo, seed = policy.key
            for run, error in zip(missing, _errors(policy, missing), strict=True):
                finite = error if math.isfinite(error) else None
                both = weights_hash, hashes[run.key]
                row = CrossPlayRow(*task[:4], algo, seed, run.algo, run.seed, finite, *both)
                rows[row.pair] = row
            write_table(path, CrossPlayRow, rows.values())


def up_to_date(path: Path, hashes: Mapping[RunKey, str]) -> list[CrossPlayRow]:
    """The rows of a table, perhaps none yet, of which neither run was made anew since, as far as
    ``hashes`` has the runs."""
    return [
        row
        for row in (read_cross_play(path) if path.exists() else [])
        if hashes.get(row.pair[0], row.weights_hash) == row.weights_hash
        and hashes.get(row.pair[1], row.autoencoder_weights_hash) == row.autoencoder_weights_hash
    ]


def _with_trees(runs: Sequence[PlannedRun]) -> list[tuple[PlannedRun, str]]:
    """The finished runs that make trees and decode them, each with the weights' hash of its
    autoencoder."""
    results = [(run, run.directory.load_result()) for run in runs]
    return [
        (run, result["weights_hash"])
        for run, result in results
        if result is not None
        and result["test"]["mean_height"] is not None
        and "return" not in result["test"]
    ]


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
        path = other.directory.autoencoder_path
        autoencoder = HTMAutoencoder.load(path, learner.device)
        result = other.directory.load_result()
        if result is not None and autoencoder.weights_hash() != result["weights_hash"]:
            raise ValueError(
                f"{path} is not the autoencoder that {other.directory.result_path} scores; htm "
                f"train --resume {quoted(other.directory.path)} writes both again"
            )
        errors = [root_errors(autoencoder, batch, merges, std) for batch, merges in planned]
        means.append(float(torch.cat(errors).double().mean()))
    return means


def read_cross_play(path: Path) -> list[CrossPlayRow]:
    """The rows of a table; ``ValueError`` naming one that is of another kind."""
    return read_table(path, CrossPlayRow, "of cross-play")
