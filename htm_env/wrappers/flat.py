"""Observations as one vector of numbers, for clients that take no ``Dict``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from htm_env.env import HTMEnv
from htm_env.vector_env import HTMVectorEnv

MASK = "action_mask"
"""The key of the mask, in observations and in ``info``."""
LARGEST_NUMBER = 100.0
"""Embeddings and coordinates are clipped to this; under the shipped weights they are below 10."""
FIRST_KEYS = ("tokens", "active", "leaf_counts")


class Flattening:
    """The layout of a flat observation: one key of a ``Dict`` space after the other.

    ``tokens``, ``active`` and ``leaf_counts`` come first, then the other keys in alphabetical
    order, and the mask of legal actions last. Numbers are clipped to ``LARGEST_NUMBER``, bits are
    as they are, and counts, ranks and slots are divided by the number of slots.

    Raises ``ValueError`` for another space than an environment's ``Dict``.
    """

    def __init__(self, space: spaces.Space[Any], *, leave_out: tuple[str, ...] = ()) -> None:
        if not isinstance(space, spaces.Dict) or not {*FIRST_KEYS} <= {*space}:
            raise ValueError(
                f"the observation space is a {type(space).__name__}; expected the Dict of an id "
                "such as HTM-Trees-v0"
            )
        others = sorted({*space} - {*FIRST_KEYS, MASK})
        keys = [*FIRST_KEYS, *others, *([MASK] if MASK in space.spaces else [])]
        self.keys = tuple(key for key in keys if key not in leave_out)
        boxes = {key: cast(spaces.Box, space[key]) for key in self.keys}
        slots = len(boxes["active"].low)
        self.divisors = {key: slots if box.dtype == np.int32 else 1 for key, box in boxes.items()}
        low = np.concatenate([self._scaled(key, box.low).ravel() for key, box in boxes.items()])
        high = np.concatenate([self._scaled(key, box.high).ravel() for key, box in boxes.items()])
        self.space = spaces.Box(low, high, dtype=np.float32)

    def __call__(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """The vector ``(F,)`` of one observation, or the vectors ``(B, F)`` of a batch."""
        batch = observation["active"].shape[:-1]
        parts = [self._scaled(key, observation[key]).reshape(*batch, -1) for key in self.keys]
        return np.concatenate(parts, axis=-1)

    def _scaled(self, key: str, value: np.ndarray) -> np.ndarray:
        scaled = np.asarray(value, np.float32) / np.float32(self.divisors[key])
        return scaled.clip(-LARGEST_NUMBER, LARGEST_NUMBER)


class Flat(gym.ObservationWrapper, RecordConstructorArgs):
    """One environment that observes one float32 vector; see :class:`Flattening` for its layout.

    With ``observe=("action_mask",)`` the last numbers are the mask, one an action.
    """

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.flattening = Flattening(env.observation_space)
        self.observation_space = self.flattening.space

    def observation(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.flattening(observation)


class FlatVector(VectorWrapper, RecordConstructorArgs):
    """Batched copies that observe one float32 vector each, as :class:`Flat` does."""

    def __init__(self, env: VectorEnv) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.flattening = Flattening(env.single_observation_space)
        self.single_observation_space = self.flattening.space
        self.observation_space = batch_space(self.flattening.space, env.num_envs)

    def reset(self, **arguments: Any) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.env.reset(**arguments)
        return self.flattening(observation), info

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        observation, rewards, terminated, truncated, info = self.env.step(actions)
        if "final_obs" in info:
            final = info["final_obs"].copy()
            for copy in np.flatnonzero(info["_final_obs"]):
                final[copy] = self.flattening(final[copy])
            info = {**info, "final_obs": final}
        return self.flattening(observation), rewards, terminated, truncated, info

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """As :meth:`htm_env.vector_env.HTMVectorEnv.call`, but for the spaces of vectors."""
        if name in ("observation_space", "single_observation_space"):
            return (self.single_observation_space,) * self.num_envs
        inner: Any = self.env
        results: tuple[Any, ...] = inner.call(name, *args, **kwargs)
        return results

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of every copy, as :meth:`call` gives it."""
        return self.call(name)

    def set_attr(self, name: str, values: list[Any] | tuple[Any, ...] | Any) -> None:
        """As :meth:`htm_env.vector_env.HTMVectorEnv.set_attr`."""
        inner: Any = self.env
        inner.set_attr(name, values)


def make_flat(env_id: str, **arguments: Any) -> Flat:
    """The environment of the flat ids, such as ``HTM-Trees-Flat-v0``."""
    return Flat(HTMEnv(env_id, **arguments))


def make_flat_vector(env_id: str, **arguments: Any) -> FlatVector:
    """The batched environment of the flat ids."""
    return FlatVector(HTMVectorEnv(env_id, **arguments))
