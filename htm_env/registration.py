"""The environment ids."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import gymnasium as gym

IDS = ("HTM-Trees-v0", "HTM-Crosses-v0", "HTM-Digits-v0", "HTM-Keys-v0", "HTM-v0")
FLAT_IDS = {env_id.replace("-v", "-Flat-v"): env_id for env_id in IDS}
"""Ids whose observation is one vector, and the id that each flattens."""
ENTRY_POINTS = "htm_env.env:HTMEnv", "htm_env.vector_env:HTMVectorEnv"
"""The single and the batched environment."""


def register_environments() -> None:
    """Make the ids known to ``gym.make`` and ``gym.make_vec``; once is enough."""
    for env_id in IDS:
        _register(env_id, *ENTRY_POINTS, env_id)
    for flat_id, env_id in FLAT_IDS.items():
        module = "htm_env.wrappers.flat"
        _register(flat_id, f"{module}:make_flat", f"{module}:make_flat_vector", env_id)


def register_dataset(env_id: str, dataset: Any, datasets: MutableMapping[str, Any]) -> None:
    """Add a dataset under an id of its own to ``datasets`` and to Gymnasium's registry.

    Raises ``ValueError`` for an id that is taken by other data or environment, and for what is no
    class of a dataset. The same class again, as when a module is loaded anew, takes its place.
    """
    missing = [name for name in ("make", "keywords", "episodes") if not hasattr(dataset, name)]
    if missing or not isinstance(dataset, type):
        raise ValueError(f"the dataset of {env_id!r} is {dataset!r}; expected an htm_env.Dataset")
    before = datasets.get(env_id)
    again = (before.__module__, before.__qualname__) if isinstance(before, type) else None
    if again != (dataset.__module__, dataset.__qualname__):
        if before is not None or env_id in gym.registry:
            raise ValueError(f"the id {env_id!r} is taken; choose another")
        _register(env_id, *ENTRY_POINTS, env_id)
    datasets[env_id] = dataset


def _register(name: str, single: str, batched: str, env_id: str) -> None:
    if name not in gym.registry:
        gym.register(
            name, entry_point=single, vector_entry_point=batched, kwargs={"env_id": env_id}
        )
