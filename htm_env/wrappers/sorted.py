"""Slots in a canonical order, for clients with a plain network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from htm_env.actions import remapped_actions
from htm_env.forest import action_to_pair, pair_to_action
from htm_env.types import NONE
from htm_env.wrappers.flat import FIRST_KEYS, MASK

ROWS = (*FIRST_KEYS, "centroids", "order", "leaf_order")
"""The keys that have one row a slot, which says nothing about other slots."""


class Sorting:
    """The permutation that puts active slots first, in their order along a space-filling curve.

    Raises ``ValueError`` for a space without ``order``, and for one with other keys than
    :data:`ROWS` and ``action_mask``.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        keys = {*space} if isinstance(space, spaces.Dict) else set()
        if not {*FIRST_KEYS, "order"} <= keys <= {*ROWS, MASK}:
            raise ValueError(
                f"the observation is {sorted(keys) or type(space).__name__}; expected a Dict of "
                f"{', '.join(FIRST_KEYS)}, order, and at most centroids, leaf_order, {MASK}"
            )
        slots = len(space["order"].low)  # type: ignore[index]
        self.pairs = action_to_pair(np.arange(slots * (slots - 1)), slots)

    def __call__(
        self, observation: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Observations ``(B, ...)`` in the new order, and ``(B, A)``: the environment's number of
        each action."""
        order, (first, second) = observation["order"], self.pairs
        count = order.shape[1]
        slots = np.argsort(np.where(order == NONE, count, order), axis=1, kind="stable")  # (B, P)
        actions = pair_to_action(slots[:, first], slots[:, second], count)  # (B, A)
        rows = np.arange(len(order))[:, None]
        seen = {
            key: value[rows, actions if key == MASK else slots]
            for key, value in observation.items()
        }
        return seen, actions

    def remapped(self, actions: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Actions ``(B,)``, illegal ones replaced as ``"remap"`` does it, but in the new order;
        ``active`` ``(B, P)`` as observed in it."""
        legal = np.maximum(*self.pairs) < active.sum(1, keepdims=True)  # (B, A)
        rows = np.flatnonzero(~legal[np.arange(len(actions)), actions])
        chosen = torch.as_tensor(actions, dtype=torch.int64).clone()
        if len(rows):
            chosen[rows] = remapped_actions(chosen[rows], torch.from_numpy(legal[rows]))
        return chosen.numpy()


class Sorted(gym.Wrapper, RecordConstructorArgs):
    """One environment whose slot ``k`` is the ``k``-th active one along a space-filling curve.

    The tokens lie in the slots in random order and merges empty any of them, so that a plain
    network on all slots has to learn every pair by itself. Here neighbours in space are mostly
    neighbours in the slots, and empty slots come last. Observations, actions and masks are those
    of the environment, permuted anew after every merge; under ``"remap"`` the legal action for an
    illegal one is found in the new order. Nothing that the environment does not observe is used.

    The environment needs ``observe=("order",)``. Raises what :class:`Sorting` raises.
    """

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.sorting = Sorting(env.observation_space)
        config = env.get_wrapper_attr("simulator").config
        self.remaps = config.invalid_action == "remap"

    def reset(self, **arguments: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return self._permuted(*self.env.reset(**arguments))

    def step(
        self, action: int | np.integer
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        chosen = int(action)
        if self.remaps:
            chosen = int(self.sorting.remapped(np.array([chosen]), self.active[None])[0])
        inside = int(self.actions[chosen])
        observation, reward, terminated, truncated, info = self.env.step(inside)
        made = chosen if info["executed_action"] == inside else NONE
        invalid = np.array(bool(info["invalid"]) or chosen != action)
        info = {**info, "invalid": invalid, "executed_action": np.int64(made)}
        seen, info = self._permuted(observation, info)
        return seen, float(reward), terminated, truncated, info

    def action_masks(self) -> np.ndarray:
        """True <--> legal, bool ``(A,)``; all True where the episode has ended."""
        legal: np.ndarray = self.env.get_wrapper_attr("action_masks")()[self.actions]
        return legal

    def _permuted(
        self, observation: Mapping[str, np.ndarray], info: dict[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What is observed, and the mask in ``info``, in the order of the slots as it is now."""
        seen, actions = self.sorting({key: value[None] for key, value in observation.items()})
        self.actions, self.active = actions[0], seen["active"][0]
        if MASK in info:
            info = {**info, MASK: info[MASK][self.actions]}
        return {key: value[0] for key, value in seen.items()}, info
