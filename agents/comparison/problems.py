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
from htm_env.datasets import make_dataset
from htm_env.datasets.width import suitable_width
from htm_env.weights import EMBEDDING_DIMS, automatic_width


@dataclass(frozen=True)
class Problem:
    """One data set with the embedding dimension of its autoencoders."""

    name: str
    """Short; names its folder, so letters, digits, ``-`` and ``_``."""
    title: str
    """For a person."""
    env: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    embedding_dim: int = 32
    """``D``; well under the coordinates of a sample, or the merge order would hardly matter."""

    def at_width(self, embedding_dim: int | str) -> Problem:
        """The same data with another ``D``; ``"auto"``: as the data suggests."""
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
    if automatic_width(env_id, embedding_dim):
        embedding_dim = suitable_width(make_dataset(env_id, **kwargs)).dim
    dim = EMBEDDING_DIMS[env_id] if embedding_dim is None else int(embedding_dim)
    return Problem(env_id, env_id, env_id, kwargs, dim)


def folder_name(problem: str) -> str:
    """The problem's name as that of a folder: the id of a module has a colon, perhaps a slash."""
    return re.sub(r"[:/]+", "-", problem)


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
        known = (problem.env, problem.env_kwargs, problem.embedding_dim)
        if known == (task.env, kwargs, task.embedding_dim):
            short, title = problem.name, problem.title
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
    return f"{title}, frozen autoencoder" if task.mode == "frozen" else title
