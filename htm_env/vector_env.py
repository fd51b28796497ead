"""The natively batched environment: all copies are one population, one call a step."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import ismethod
from typing import Any

import numpy as np
import torch
from gymnasium import logger
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from htm_env import checks
from htm_env.env import EpisodesInProgress, HTMEnv, check_key, draw_key, tree_of
from htm_env.forest import Forest
from htm_env.simulator import EnvConfig, Simulator
from htm_env.trees.merge_tree import MergeTree
from htm_env.types import NONE, TokenBatch

METHODS = ("action_masks", "fixed_keys", "merge_tree", "render")
"""Methods of the single environment that can be called on every copy."""
MOST_COPIES = 2**20
FIXED = (
    *("action_space", "observation_space", "single_action_space", "single_observation_space"),
    *("autoreset_mode", "num_envs"),
)
"""Attributes that cannot be set."""


class HTMVectorEnv(EpisodesInProgress, VectorEnv):
    """``num_envs`` copies of :class:`htm_env.env.HTMEnv` in one batch.

    Copy ``m`` of ``reset(seed=s)`` is the single environment with seed ``s + m``. The arguments are
    the single environment's, and ``autoreset_mode``: Gymnasium's ``NEXT_STEP`` (default),
    ``SAME_STEP`` (with ``final_obs`` and ``final_info``) or ``DISABLED`` (reset the ended copies
    with ``reset(options={"reset_mask": ended})``). Raises what the single environment raises.
    """

    def __init__(
        self,
        env_id: str | EnvConfig,
        *,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **arguments: Any,
    ) -> None:
        num_envs = checks.whole_number("num_envs", num_envs, 1, MOST_COPIES)
        config = EnvConfig.of(env_id, arguments, type(self))
        super().__init__(Simulator(config))
        self.num_envs = num_envs
        self.autoreset_mode = check_autoreset_mode(autoreset_mode)
        self.metadata = {**HTMEnv.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = self.simulator.observation_space
        self.single_action_space = self.simulator.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators: list[np.random.Generator] = [
            seeding.np_random(None)[0] for _ in range(num_envs)
        ]
        self._invalid_actions = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, bool)

    # ------------------------------------------------------------ Gymnasium's face

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start new episodes in all copies, or in those of ``options["reset_mask"]``.

        ``options["key"]`` starts the episodes of the given keys: one for all copies, or one a copy.
        The observation always covers all copies; ``info`` marks those that were reset.
        """
        mask = self._reset_mask(options)
        seeds = self._seeds(seed)
        self._start(mask, self._chosen_keys(options), seeds)
        self.show()
        return self.simulator.observation(self.population), self._info(mask)

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        population, ended = self.population, self._ended
        actions = np.asarray(actions)
        if not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"actions are {actions.dtype}; expected integers")
        if actions.shape != (self.num_envs,):
            raise ValueError(
                f"actions have shape {actions.shape}; expected ({self.num_envs},), one a copy"
            )
        if self.autoreset_mode is AutoresetMode.DISABLED and ended.any():
            raise ResetNeeded(
                f"copy {int(ended.argmax())} has ended; autoreset is disabled, so call "
                'reset(options={"reset_mask": ended}) first'
            )
        device = self.simulator.device
        self._population, reward, invalid, executed = self.simulator.step(
            population,
            torch.as_tensor(actions.astype(np.int64), device=device),
            torch.as_tensor(~ended, device=device),
        )
        rewards = reward.double().cpu().numpy()
        invalids, made = invalid.cpu().numpy(), executed.cpu().numpy()
        self._invalid_actions += invalids & (made < 0)
        alone = (self._population.forest.num_active == 1).cpu().numpy()
        terminated = alone & ~ended
        truncated = (self._invalid_actions >= self.simulator.config.max_invalid_actions) & ~ended
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and ended.any():
            self._start(ended)
        everyone = np.ones(self.num_envs, bool)
        finished = terminated | truncated
        info = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and finished.any():
            info = self._final(finished, invalids, made)
            self._start(finished)
            invalids, made = invalids & ~finished, np.where(finished, NONE, made)
        self._ended = finished & (self.autoreset_mode is not AutoresetMode.SAME_STEP)
        info = {**self._info(everyone, invalids, made), **info}
        self.show()
        observation = self.simulator.observation(self.population)
        return observation, rewards, terminated, truncated, info

    def render(self) -> tuple[Any, ...] | None:
        """One frame a copy, or None for ``"human"``, whose window follows the first copy."""
        if self.render_mode is None:
            logger.warn("render() does nothing without a render_mode in gym.make_vec")
            return None
        if self.render_mode == "human":
            return None
        return tuple(self.frame(copy) for copy in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        self.close_viewer()

    # ------------------------------------------------------------ beyond Gymnasium

    def action_masks(self) -> np.ndarray:
        """True <--> legal, bool ``(num_envs, A)``, one an action; all True in ended copies."""
        return self.simulator.action_masks(self.population)

    def merge_tree(self, copy: int = 0) -> MergeTree:
        """The forest of one copy so far."""
        return tree_of(self.population, copy)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The results of one of :data:`METHODS`, or an attribute, of every copy.

        Copies share everything but their episodes. ``AttributeError`` for another method.
        """
        if name == "merge_tree":
            return tuple(self.merge_tree(copy) for copy in range(self.num_envs))
        if name in ("action_space", "observation_space"):
            name = f"single_{name}"
        found = getattr(self, name)
        if not ismethod(found):
            return (found,) * self.num_envs
        if name not in METHODS:
            raise AttributeError(f"copies have no method {name!r}; choose from {list(METHODS)}")
        result = found(*args, **kwargs)
        if name == "fixed_keys" or result is None:
            return (result,) * self.num_envs
        return tuple(result)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of every copy, as :meth:`call` gives it."""
        return self.call(name)

    def set_attr(self, name: str, values: list[Any] | tuple[Any, ...] | Any) -> None:
        """Set an attribute that all copies have.

        Raises ``AttributeError`` for one that they do not have or that :data:`FIXED` names, and
        ``ValueError`` for values that differ between them, since they share it.
        """
        if not hasattr(self, name):
            raise AttributeError(f"copies have no attribute {name!r}; expected an existing one")
        if name in FIXED:
            raise AttributeError(f"{name!r} is fixed once the copies are made")
        given = list(values) if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(given) != self.num_envs or any(value is not given[0] for value in given):
            raise ValueError(
                f"{name} is {values!r}; expected one value for all {self.num_envs} copies, "
                "since they are one batch"
            )
        setattr(self, name, given[0])

    def refresh(self) -> dict[str, np.ndarray]:
        """Encode all episodes anew; returns the observation.

        Where the autoencoder is trained while episodes are in progress, this makes what is observed
        and rewarded a function of the samples, their merges and the weights as they are now.
        """
        simulator, now = self.simulator, self.population
        self._population = simulator.encode(now.batch, now.forest)
        return simulator.observation(self._population)

    def state(self) -> dict[str, Any]:
        """The episodes in progress and every copy's generator, as tensors and plain values.

        Embeddings and candidates are left out: they follow from the weights and the merges.
        """
        now = self.population
        return {
            "batch": [tensor.clone() for tensor in now.batch[:4]],
            "slots": now.forest.slots.clone(),
            "merges": now.forest.merges.clone(),
            "invalid_actions": torch.from_numpy(self._invalid_actions.copy()),
            "generators": [generator.bit_generator.state for generator in self._generators],
        }

    def restore(self, state: dict[str, Any]) -> dict[str, np.ndarray]:
        """Continue from what :meth:`state` gave, as after :meth:`refresh`; returns the observation.

        Raises ``ValueError`` for the state of another number of copies.
        """
        if len(state["generators"]) != self.num_envs:
            raise ValueError(
                f"the state has {len(state['generators'])} copies; expected {self.num_envs}"
            )
        device = self.simulator.device
        batch = TokenBatch(*state["batch"]).to(device)
        merges = state["merges"].to(device)
        made = (merges[..., 0] >= 0).sum(1)
        forest = Forest(state["slots"].to(device), merges, batch.num_tokens, made)
        self._population = self.simulator.encode(batch, forest)
        self._invalid_actions = state["invalid_actions"].cpu().numpy().copy()
        self._ended = np.zeros(self.num_envs, bool)
        for generator, saved in zip(self._generators, state["generators"], strict=True):
            generator.bit_generator.state = saved
        return self.simulator.observation(self._population)

    # ------------------------------------------------------------ inside

    def _reset_mask(self, options: dict[str, Any] | None) -> np.ndarray:
        if not options or "reset_mask" not in options:
            return np.ones(self.num_envs, bool)
        mask = options["reset_mask"]
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or not mask.any():
            raise ValueError(f"reset_mask is {mask!r}; expected a bool array with a True value")
        if mask.shape != (self.num_envs,):
            raise ValueError(f"reset_mask has shape {mask.shape}; expected ({self.num_envs},)")
        return mask

    def _seeds(self, seed: int | list[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if not isinstance(seed, Sequence | np.ndarray) or isinstance(seed, str):
            first = checks.seed(seed)
            return [first + copy for copy in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"{len(seed)} seeds for {self.num_envs} copies; expected one a copy")
        return [None if own is None else checks.seed(own) for own in seed]

    def _chosen_keys(self, options: dict[str, Any] | None) -> np.ndarray | None:
        if not options or "key" not in options:
            return None
        keys = np.array([check_key(key) for key in np.ravel(options["key"]).tolist()], np.int64)
        if len(keys) not in (1, self.num_envs):
            raise ValueError(f"{len(keys)} keys for {self.num_envs} copies; expected one a copy")
        return np.broadcast_to(keys, self.num_envs)

    def _start(
        self,
        mask: np.ndarray,
        keys: np.ndarray | None = None,
        seeds: Sequence[int | None] | None = None,
    ) -> None:
        """New episodes in the copies of ``mask``, drawn or with the given keys.

        Where data cannot be read, every generator is left as it was.
        """
        copies = np.flatnonzero(mask)
        generators = [self._generators[copy] for copy in copies.tolist()]
        before = [own.bit_generator.state for own in generators]
        if seeds is not None:
            for at, copy in enumerate(copies.tolist()):
                if seeds[copy] is not None:
                    generators[at] = seeding.np_random(seeds[copy])[0]
        try:
            drawn = np.array([draw_key(own) for own in generators], np.int64)
            fresh = self.simulator.start(drawn if keys is None else keys[copies])
        except BaseException:
            for copy, state in zip(copies.tolist(), before, strict=True):
                self._generators[copy].bit_generator.state = state
            raise
        for copy, own in zip(copies.tolist(), generators, strict=True):
            self._generators[copy] = own
        if len(copies) == self.num_envs:
            self._population = fresh
        else:
            rows = torch.as_tensor(copies, device=self.simulator.device)
            self._population = self.population.with_rows(rows, fresh)
        self._invalid_actions[copies] = 0
        self._ended = self._ended & ~mask

    def _info(
        self,
        mask: np.ndarray,
        invalid: np.ndarray | None = None,
        executed: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Gymnasium's batched ``info``: an array a key, and ``_key`` says for which copies.

        The others have zeros, but keep their action masks: nothing can be drawn from zeros.
        """
        population = self.population
        values = {
            "error": population.error.cpu().numpy().copy(),
            "num_active": population.forest.num_active.cpu().numpy().copy(),
            "invalid": np.zeros(self.num_envs, bool) if invalid is None else invalid.copy(),
            "executed_action": (
                np.full(self.num_envs, NONE) if executed is None else executed.copy()
            ),
        }
        for value in values.values():
            value[~mask] = 0
        if self.mask_in_info:
            values = {"action_mask": self.action_masks().astype(np.int8), **values}
        info: dict[str, Any] = {}
        for key, value in values.items():
            info[key], info[f"_{key}"] = value, mask.copy()
        return info

    def _final(
        self, finished: np.ndarray, invalid: np.ndarray, executed: np.ndarray
    ) -> dict[str, Any]:
        """The last observation and info of the copies that are about to start anew."""
        observation = self.simulator.observation(self.population)
        final = np.full(self.num_envs, None, dtype=object)
        for copy in np.flatnonzero(finished):
            final[copy] = {key: value[copy].copy() for key, value in observation.items()}
        return {
            "final_obs": final,
            "_final_obs": finished.copy(),
            "final_info": self._info(finished, invalid, executed),
            "_final_info": finished.copy(),
        }


def check_autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    """The mode; ``ValueError`` with the choices for an unknown one."""
    try:
        return AutoresetMode(mode)
    except ValueError:
        choices = [choice.value for choice in AutoresetMode]
        raise ValueError(f"unknown autoreset_mode {mode!r}; choose from {choices}") from None
