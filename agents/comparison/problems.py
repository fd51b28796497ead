"""The problems that comparisons are made on: data with a stated bottleneck, each under a name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from agents.comparison.options import PROBLEM_NAMES
from agents.comparison.results import Task
from agents.config.options import check_environment
from agents.config.run import RunConfig
from htm_env.datasets import DATASETS, dataset_class, make_dataset
from htm_env.datasets.width import suitable_width
from htm_env.weights import AUTO, EMBEDDING_DIMS, automatic_width


@dataclass(frozen=True)
class Problem:
    """One data set with the embedding dimension of its autoencoders."""

    name: str
    """Short; names its folder, so letters, digits, ``-`` and ``_``."""
    title: str
    """For a person."""
    env: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    embedding_dim: int | None = 32
    """``D``; well under the coordinates of a sample, or the merge order would hardly matter. None
    where the merger is known, which has its own."""

    def at_width(self, embedding_dim: int | str) -> Problem:
        """The same data with another ``D``; ``"auto"``: as the data suggests.

        Raises ``ValueError`` where the merger is known.
        """
        if self.embedding_dim is None:
            raise ValueError(f"the merger of {self.name} is known; expected no width to choose")
        if automatic_width(self.env, embedding_dim):
            embedding_dim = suitable_width(make_dataset(self.env, **self.env_kwargs)).dim
        dim = int(embedding_dim)
        return replace(self, name=f"{self.name}-D{dim}", embedding_dim=dim)


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem("trees7", "Trees, 7 tokens", "HTM-Trees-v0", {"heights": [3]}, 6),
        Problem("crosses10", "Crosses, 10 tokens", "HTM-Crosses-v0", {"num_crosses": [5]}, 24),
        Problem("trees15", "Trees, 15 tokens", "HTM-Trees-v0", {"heights": [4]}, 8),
        Problem("digits", "Digits", "HTM-Digits-v0", {}, 32),
        Problem("keys", "Key scenes", "HTM-Keys-v0", {}, 16),
        Problem("jets", "Particle jets", "HTM-Jets-v0", {}, None),
    )
}
"""The named problems; every other one is an environment id with arguments of one's own."""


def find_problem(
    name: str, env_kwargs: Mapping[str, Any] | None = None, embedding_dim: int | str | None = None
) -> Problem:
    """The named problem, or the environment id with these arguments.

    Raises ``ValueError`` for a name that is neither, for arguments beside a named problem, which
    has its own, and for data that cannot be read.
    """
    if name in PROBLEMS:
        if env_kwargs or embedding_dim is not None:
            raise ValueError(
                f"{name} is a problem with arguments of its own; give its id "
                f"{PROBLEMS[name].env} to choose others"
            )
        return PROBLEMS[name]
    env_id = check_environment(name, PROBLEM_NAMES)
    kwargs = dict(env_kwargs or {})
    if dataset_class(env_id).default_merger is not None:
        dim = None if embedding_dim in (None, AUTO) else int(embedding_dim)
        return Problem(env_id, env_id, env_id, kwargs, dim)
    if automatic_width(env_id, embedding_dim):
        embedding_dim = suitable_width(make_dataset(env_id, **kwargs)).dim
    dim = EMBEDDING_DIMS[env_id] if embedding_dim is None else int(embedding_dim)
    return Problem(env_id, env_id, env_id, kwargs, dim)


def folder_name(problem: str) -> str:
    """The problem's name as that of a folder: the id of a module has a colon, perhaps a slash."""
    return re.sub(r"[:/]+", "-", problem)


def merger_is_known(task: Task | RunConfig) -> bool:
    """True <--> its merges have known results, so that no autoencoder learns or is frozen."""
    plain = task.env.rpartition(":")[2]  # no module is imported for the title of a table
    return bool(task.merger) or (
        plain in DATASETS and dataset_class(plain).default_merger is not None
    )


class Name(NamedTuple):
    """Name of a task: in file names, and in texts."""

    short: str
    title: str


def task_name(task: Task) -> Name:
    """The problem's name if it has one, else its id and arguments."""
    kwargs = json.loads(task.env_kwargs)
    arguments = task.env_kwargs if kwargs else ""
    short = re.sub(r"[\W_]+", "-", f"{task.env}{arguments}").strip("-") + f"-{task.embedding_dim}"
    title = f"{task.env} {arguments}".strip()
    for problem in PROBLEMS.values():
        dim = task.embedding_dim if problem.embedding_dim is None else problem.embedding_dim
        known = (problem.env, problem.env_kwargs, dim)
        if known == (task.env, kwargs, task.embedding_dim) and not task.merger:
            short, title = problem.name, problem.title
    if merger_is_known(task):
        merger = re.sub(r"[\W_]+", "-", f"-{task.merger}") if task.merger else ""
        return Name(short + merger, title + (f", merger {task.merger}" if task.merger else ""))
    title += f", D={task.embedding_dim}"
    if task.mode == "frozen":
        return Name(f"{short}-frozen", f"{title}, frozen autoencoder")
    return Name(short, title)


def data_title(task: Task) -> str:
    """The title of a task without its embedding dimension."""
    kwargs = json.loads(task.env_kwargs)
    title = f"{task.env} {task.env_kwargs if kwargs else ''}".strip()
    for problem in PROBLEMS.values():
        if (problem.env, problem.env_kwargs) == (task.env, kwargs):
            title = problem.title
    if merger_is_known(task):
        return title
    return f"{title}, frozen autoencoder" if task.mode == "frozen" else title
