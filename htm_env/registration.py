"""The environment ids."""

from __future__ import annotations

import gymnasium as gym

IDS = ("HTM-Trees-v0", "HTM-Crosses-v0", "HTM-Digits-v0", "HTM-Keys-v0", "HTM-v0")
FLAT_IDS = {env_id.replace("-v", "-Flat-v"): env_id for env_id in IDS}
"""Ids whose observation is one vector, and the id that each flattens."""


def register_environments() -> None:
    """Make the ids known to ``gym.make`` and ``gym.make_vec``; once is enough."""
    for env_id in IDS:
        _register(env_id, "htm_env.env:HTMEnv", "htm_env.vector_env:HTMVectorEnv", env_id)
    for flat_id, env_id in FLAT_IDS.items():
        module = "htm_env.wrappers.flat"
        _register(flat_id, f"{module}:make_flat", f"{module}:make_flat_vector", env_id)


def _register(name: str, single: str, batched: str, env_id: str) -> None:
    if name not in gym.registry:
        gym.register(
            name, entry_point=single, vector_entry_point=batched, kwargs={"env_id": env_id}
        )
