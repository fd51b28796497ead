"""What a joint comparison cannot say by itself: are the trees good, or only well known?

A policy and the autoencoder that it grew up with suit each other. *Retraining* freezes the policy
and trains a fresh autoencoder on its greedy trees; *cross-play* puts every policy's trees through
every other run's autoencoder of the same problem.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from agents.comparison.plan import RETRAINED, PlannedRun
from agents.comparison.results import Task, load_result
from agents.comparison.retrained import RetrainedConfig
from agents.config.options import TEST_EPISODES
from agents.evaluation.evaluate import CHUNK, EVALUATION_SEED, root_errors
from agents.learners.fixed_order import FixedOrder
from agents.registry import algorithm, load_learner
from agents.runs.directory import RunDirectory
from htm_env.autoencoder import HTMAutoencoder
from htm_env.files import atomic_write_text


def retrained_runs(runs: Sequence[PlannedRun], out: Path) -> list[PlannedRun]:
    """A run for each finished one with a learned policy: a fresh autoencoder on its trees.

    A fixed order needs none: training an autoencoder on its trees is what its own run did.
    """
    planned = []
    for run in runs:
        learner = algorithm(run.algo).learner
        if not run.finished or not learner.makes_trees or issubclass(learner, FixedOrder):
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
"""What no two runs share: their task, algorithm and seed."""


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
    def pair(self) -> tuple[Task, str, int, str, int]:
        """What no two rows share."""
        return self.task, self.algo, self.seed, self.autoencoder_algo, self.autoencoder_seed

    @property
    def hashes(self) -> dict[RunKey, str]:
        """What the weights of both runs' autoencoders are, unless one was made anew since."""
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
    written after each policy, so that the work can be interrupted. ``tell`` hears of each policy in
    a line.
    """
    usable = [run for run in runs if run.finished and algorithm(run.algo).learner.makes_trees]
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
    """Those of which neither run was made anew since, as far as ``hashes`` know of them."""
    return [
        row for row in rows if all(hashes.get(run, own) == own for run, own in row.hashes.items())
    ]


def _run_key(run: PlannedRun) -> RunKey:
    config = run.config
    kwargs = json.dumps(config.env_kwargs, sort_keys=True)
    assert config.embedding_dim is not None  # that of the learner
    task = Task(config.env, kwargs, config.embedding_dim, config.mode)
    return task, run.algo, run.seed


def _weights_hash(run: PlannedRun) -> str:
    result = load_result(run.directory)
    assert result is not None  # the run is finished
    return str(result["weights_hash"])


def _pair(policy: PlannedRun, other: PlannedRun) -> tuple[Task, str, int, str, int]:
    return *_run_key(policy), other.algo, other.seed


@torch.no_grad()
def _errors(policy: PlannedRun, others: Sequence[PlannedRun]) -> list[float]:
    """The held-out ``nmse`` of a policy's greedy trees through each autoencoder, as
    :func:`agents.evaluation.evaluate.evaluate` would have it."""
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
    text = io.StringIO()
    names = [field.name for field in fields(CrossPlayRow)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    atomic_write_text(path, text.getvalue())


def read_cross_play(path: Path) -> list[CrossPlayRow]:
    """What :func:`write_cross_play` wrote; ``ValueError`` naming a table that it did not."""
    rows = []
    with open(path, newline="") as file:
        for number, values in enumerate(csv.DictReader(file), start=2):
            try:
                converted: dict[str, Any] = dict(values)
                for name in ("embedding_dim", "seed", "autoencoder_seed"):
                    converted[name] = int(values[name])
                converted["nmse"] = float(values["nmse"]) if values["nmse"] else None
                rows.append(CrossPlayRow(**converted))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path} line {number} is not of cross-play: {error}") from error
    return rows
