"""The environment ids."""

from __future__ import annotations

import gymnasium as gym

IDS = ("HTM-Trees-v0", "HTM-Crosses-v0", "HTM-Digits-v0", "HTM-Keys-v0", "HTM-v0")


def register_environments() -> None:
    """Make the ids known to ``gym.make`` and ``gym.make_vec``; once is enough."""
    for env_id in IDS:
        if env_id in gym.registry:
            continue
        gym.register(
            env_id,
            entry_point="htm_env.env:HTMEnv",
            vector_entry_point="htm_env.vector_env:HTMVectorEnv",
            kwargs={"env_id": env_id},
        )
