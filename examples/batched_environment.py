"""Many episodes at once: 256 copies in one batch, random legal actions, returns by copy."""

import sys
import time

import gymnasium as gym
import numpy as np
from gymnasium.wrappers.vector import RecordEpisodeStatistics

import htm_env  # noqa: F401  # registers the ids

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
env = RecordEpisodeStatistics(gym.make_vec("HTM-Crosses-v0", num_envs=256))
generator = np.random.default_rng(0)
observations, info = env.reset(seed=0)
started, returns = time.perf_counter(), []
for _ in range(steps):
    # A copy whose episode has just ended starts the next one, whatever its action.
    actions = (generator.random(info["action_mask"].shape) * info["action_mask"]).argmax(1)
    observations, rewards, terminated, truncated, info = env.step(actions)
    if "episode" in info:
        returns.extend(info["episode"]["r"][info["_episode"]])
rate = 256 * steps / (time.perf_counter() - started)
print(f"{len(returns)} episodes, mean return {np.mean(returns):.4f}, {rate:,.0f} steps/s")
