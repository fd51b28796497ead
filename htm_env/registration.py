"""The environment ids."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

import gymnasium as gym


def flat_id(env_id: str) -> str:
    """The id of the same environment whose observation is one vector."""
    name, _, version = env_id.rpartition("-v")
    return f"{name}-Flat-v{version}"


IDS = (
    "HTM-Trees-v0",
    "HTM-Crosses-v0",
    "HTM-Digits-v0",
    "HTM-Keys-v0",
    "HTM-Jets-v0",
    "HTM-Kanji-v0",
    "HTM-v0",
)
FLAT_IDS = {flat_id(env_id): env_id for env_id in IDS}
"""Ids whose observation is one vector, and the id that each flattens."""
ENTRY_POINTS = "htm_env.env:HTMEnv", "htm_env.vector_env:HTMVectorEnv"
"""The single and the batched environment."""
FLAT_ENTRY_POINTS = "htm_env.wrappers.flat:make_flat", "htm_env.wrappers.flat:make_flat_vector"
"""The same, observing vectors."""
_ID = re.compile(r"([\w-]+/)?[\w.-]+-v\d+")


def register_environments() -> None:
    """Make the ids known to ``gym.make`` and ``gym.make_vec``; once is enough."""
    for env_id in IDS:
        _register(env_id)


def register_dataset(env_id: str, dataset: Any, datasets: MutableMapping[str, Any]) -> None:
    """Add a dataset under an id of its own to ``datasets``, and with its flat twin to Gymnasium's
    registry.

    Raises ``ValueError`` for an id of another form than ``Name-v0`` or that is taken by other data
    or environment, and for what is no class of a dataset. The same class again, as when a module is
    loaded anew, takes its place.
    """
    if not isinstance(env_id, str) or not _ID.fullmatch(env_id):
        raise ValueError(f"the id is {env_id!r}; expected a name and a version, as in 'Name-v0'")
    if not isinstance(dataset, type):
        given = f"an object of type {type(dataset).__name__}"
        raise ValueError(f"the dataset of {env_id!r} is {given}; expected an htm_env.Dataset class")
    missing = [name for name in ("make", "keywords", "episodes") if not hasattr(dataset, name)]
    if missing or (missing := sorted(getattr(dataset, "__abstractmethods__", ()))):
        raise ValueError(
            f"the dataset of {env_id!r} is the class {dataset.__name__} without {missing[0]!r}; "
            "expected an htm_env.Dataset class that has all of its methods"
        )
    before = datasets.get(env_id)
    again = (before.__module__, before.__qualname__) if isinstance(before, type) else None
    if again != (dataset.__module__, dataset.__qualname__):
        for name in (env_id, flat_id(env_id)):
            if before is not None or name in gym.registry:
                raise ValueError(f"the id {name!r} is taken; choose another")
        _register(env_id)
    datasets[env_id] = dataset


def _register(env_id: str) -> None:
    """Make an id and its flat twin known to Gymnasium."""
    entry_points = {env_id: ENTRY_POINTS, flat_id(env_id): FLAT_ENTRY_POINTS}
    for name, (single, batched) in entry_points.items():
        if name not in gym.registry:
            gym.register(
                name, entry_point=single, vector_entry_point=batched, kwargs={"env_id": env_id}
            )
