"""The environment as PettingZoo's agent-environment cycle, with one agent."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv

AGENT = "merger_0"
"""The name of the one agent."""


class OneAgent(AECEnv):  # type: ignore[misc, unused-ignore]  # an extra
    """An environment in which one agent acts until the episode ends.

    Its observations, and so its mask, are those of the environment inside. ``infos`` has that
    environment's ``info``.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__()
        self.env = env
        self.metadata = {**env.metadata, "name": "htm", "is_parallelizable": True}
        self.render_mode = env.render_mode
        self.possible_agents = [AGENT]
        self.agents: list[str] = []

    @property
    def unwrapped(self) -> AECEnv:
        return self

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.env.observation_space

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.env.action_space

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        self.observation: dict[str, np.ndarray]
        self.observation, info = self.env.reset(seed=seed, options=options)
        self.agents, self.agent_selection = [AGENT], AGENT
        self.rewards, self._cumulative_rewards = {AGENT: 0.0}, {AGENT: 0.0}
        self.terminations, self.truncations = {AGENT: False}, {AGENT: False}
        self.infos = {AGENT: info}

    def observe(self, agent: str) -> dict[str, np.ndarray]:
        return self.observation

    def step(self, action: int | np.integer | None) -> None:
        if self.terminations[AGENT] or self.truncations[AGENT]:
            self._was_dead_step(action)  # PettingZoo's own: the agent leaves
            return
        self.observation, reward, terminated, truncated, info = self.env.step(action)
        self.rewards = {AGENT: float(reward)}
        self._cumulative_rewards = {AGENT: float(reward)}
        self.terminations, self.truncations = {AGENT: terminated}, {AGENT: truncated}
        self.infos = {AGENT: info}

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()
