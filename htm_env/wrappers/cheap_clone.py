"""Copies of an episode's state in microseconds, for search over trees of actions."""

from __future__ import annotations

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from htm_env.env import EpisodeState


class CheapClone(gym.Wrapper, RecordConstructorArgs):
    """One environment with ``clone_state`` and ``restore_state`` at its outermost.

    ``copy.deepcopy`` of an environment copies its autoencoder and its data too, and so takes
    milliseconds. What wrappers inside this one keep, such as the steps that ``TimeLimit`` counts,
    is not in a state.
    """

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def clone_state(self) -> EpisodeState:
        """The episode in progress, with the generator of those that follow."""
        state: EpisodeState = self.env.get_wrapper_attr("clone_state")()
        return state

    def restore_state(self, state: EpisodeState) -> None:
        """Continue from a state that :meth:`clone_state` gave, however often."""
        self.env.get_wrapper_attr("restore_state")(state)
