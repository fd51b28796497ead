"""All copies of the environment in one process, with the interface of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Float, Int64
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from torch import Tensor

import htm_env  # noqa: F401  # registers the ids
from htm_env.autoencoder import TreeEncoder
from htm_env.datasets import environment_id
from htm_env.types import TokenBatch
from htm_env.vector_env import HTMVectorEnv

Indices = int | Iterable[int] | None
"""Indices of copies: None for all."""


class FinishedEpisodes(NamedTuple):
    """``B`` episodes that have ended."""

    batch: TokenBatch
    merges: Int64[Tensor, "B M 2"]
    returns: Float[Tensor, "B"]
    """Undiscounted, penalties included."""
    error: Float[Tensor, "B"]
    """The ``nmse`` at the end."""

    @classmethod
    def joined(cls, parts: Sequence[FinishedEpisodes]) -> FinishedEpisodes:
        """All of them in one batch, in this order."""
        batches = zip(*(part.batch[:4] for part in parts), strict=True)
        rest = zip(*(part[1:] for part in parts), strict=True)
        batch = TokenBatch(*(torch.cat(column) for column in batches))
        return cls(batch, *(torch.cat(column) for column in rest))


class HTMVecEnv(VecEnv):
    """``num_envs`` copies of the environment that are one batch.

    Follows Stable-Baselines3: a copy that ends starts its next episode in the same step, and its
    info has ``terminal_observation``; every info has ``TimeLimit.truncated``. Copy ``k`` of
    ``seed(s)`` is the single environment with seed ``s + k``.

    Args:
        env_id: an environment id, such as ``"HTM-Trees-v0"``.
        num_envs: copies.
        env_kwargs: what ``gym.make`` takes; ``mask_in_info`` is False by default here, since masks
            are cheaper from :meth:`action_masks`.

    Raises what :class:`htm_env.vector_env.HTMVectorEnv` raises.
    """

    def __init__(self, env_id: str, num_envs: int = 64, **env_kwargs: Any) -> None:
        registered = gym.spec(environment_id(env_id).rpartition(":")[2]).kwargs
        kwargs = {**registered, "mask_in_info": False, **env_kwargs}
        self.copies = HTMVectorEnv(
            num_envs=num_envs, autoreset_mode=AutoresetMode.DISABLED, **kwargs
        )
        self._actions = np.zeros(num_envs, np.int64)
        self._returns = np.zeros(num_envs)
        self._recorded: list[FinishedEpisodes] | None = None
        self.merges_made = 0
        """Merges made by all copies together; illegal actions make none."""
        # The base class asks for the render mode, so that the copies have to exist by now.
        super().__init__(
            num_envs, self.copies.single_observation_space, self.copies.single_action_space
        )

    @property
    def autoencoder(self) -> TreeEncoder:
        """The autoencoder of all copies; after training it, call :meth:`refresh`."""
        return self.copies.autoencoder

    # ------------------------------------------------------------ Stable-Baselines3's face

    def reset(self) -> dict[str, np.ndarray]:
        observation, info = self.copies.reset(seed=list(self._seeds), options=self._chosen_keys())
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0.0
        self.reset_infos = self._rows(info)
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(
        self,
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observation, rewards, terminated, truncated, info = self.copies.step(self._actions)
        self._returns += rewards
        self.merges_made += int((info["executed_action"] >= 0).sum())
        dones = terminated | truncated
        infos = self._rows(info)
        for row, cut in zip(infos, (truncated & ~terminated).tolist(), strict=True):
            row["TimeLimit.truncated"] = cut
        if dones.any():
            ended = np.flatnonzero(dones)
            for copy in ended.tolist():
                infos[copy]["terminal_observation"] = {
                    key: value[copy] for key, value in observation.items()
                }
            self._record(ended)
            self._returns[ended] = 0.0
            observation, started = self.copies.reset(options={"reset_mask": dones})
            fresh = self._rows(started)
            for copy in ended.tolist():
                self.reset_infos[copy] = fresh[copy]
        return observation, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        self.copies.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        if self.render_mode != "rgb_array":
            return [None] * self.num_envs
        return list(self.copies.render() or ())

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """The attribute of the batch, once a copy: they share everything but their episodes."""
        return [getattr(self.copies, attr_name)] * len(self._copies_of(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set it for all copies; ``ValueError`` for some of them, since they share it."""
        if len(set(self._copies_of(indices))) != self.num_envs:
            raise ValueError(
                f"set_attr({attr_name!r}) was given copies {indices}; expected all, "
                "since they are one batch"
            )
        setattr(self.copies, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method on each of the copies; ``AttributeError`` for one that they have not."""
        results = self.copies.call(method_name, *method_args, **method_kwargs)
        return [results[copy] for copy in self._copies_of(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: Indices = None
    ) -> list[bool]:
        return [False] * len(self._copies_of(indices))

    # ------------------------------------------------------------ beyond Stable-Baselines3

    def action_masks(self) -> Bool[np.ndarray, "B A"]:
        """True <--> legal."""
        return self.copies.action_masks()

    def refresh(self) -> dict[str, np.ndarray]:
        """Encode all episodes with the autoencoder as it is now; returns the observation."""
        return self.copies.refresh()

    def record(self) -> None:
        """From now on, keep the episodes that end until :meth:`take_finished` takes them."""
        if self._recorded is None:
            self._recorded = []

    def take_finished(self) -> FinishedEpisodes | None:
        """The episodes that ended since the last call, in that order; None if none has.

        Nothing is kept before :meth:`record` is called.
        """
        if not self._recorded:
            return None
        parts, self._recorded = self._recorded, []
        return FinishedEpisodes.joined(parts)

    def state(self) -> dict[str, Any]:
        """The state for :meth:`restore`, as ``agents.runs.checkpoint`` takes it."""
        return {**self.copies.state(), "returns": torch.from_numpy(self._returns.copy())}

    def restore(self, state: dict[str, Any]) -> dict[str, np.ndarray]:
        """Continue from what :meth:`state` gave, as after :meth:`refresh`."""
        self._returns = state["returns"].cpu().numpy().copy()
        return self.copies.restore(state)

    # ------------------------------------------------------------ inside

    def _chosen_keys(self) -> dict[str, Any] | None:
        """``set_options({"key": ...})`` as the batched environment takes it."""
        keys = [options.get("key") for options in self._options]
        unknown = {name for options in self._options for name in options} - {"key"}
        if unknown or (None in keys and any(key is not None for key in keys)):
            raise ValueError(
                f"the options of the copies are {self._options}; expected a 'key' for all or none"
            )
        return None if None in keys else {"key": keys}

    def _rows(self, info: dict[str, Any]) -> list[dict[str, Any]]:
        """Gymnasium's arrays, one a key, as one dict a copy; built once a step, so kept lean."""
        names = [name for name in info if not name.startswith("_")]
        columns = [info[name] if info[name].ndim > 1 else info[name].tolist() for name in names]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def _record(self, ended: np.ndarray) -> None:
        if self._recorded is None:
            return
        population = self.copies.population
        rows = torch.as_tensor(ended, device=population.error.device)
        returns = torch.as_tensor(self._returns[ended], device=rows.device).float()
        self._recorded.append(
            FinishedEpisodes(
                population.batch.rows(rows),
                population.forest.merges[rows],
                returns,
                population.error[rows],
            )
        )

    def _copies_of(self, indices: Indices) -> list[int]:
        if indices is None:
            return list(range(self.num_envs))
        return [indices] if isinstance(indices, int) else [int(copy) for copy in indices]


def inside(env: VecEnv) -> HTMVecEnv:
    """The environment inside wrappers such as ``VecMonitor`` or ``VecNormalize``.

    Raises ``ValueError`` for another environment, and for wrappers that change what is observed
    otherwise than ``VecNormalize``.
    """
    found = env.unwrapped
    if not isinstance(found, HTMVecEnv):
        raise ValueError(f"the environment is a {type(found).__name__}; expected an HTMVecEnv")
    for wrapper in _wrappers(env):
        alike = wrapper.observation_space == wrapper.venv.observation_space
        if not alike and not isinstance(wrapper, VecNormalize):
            raise ValueError("the environment is in a wrapper that changes its observations")
    return found


def normalises(env: VecEnv) -> bool:
    """True <--> a ``VecNormalize`` changes the observations."""
    return any(isinstance(found, VecNormalize) and found.norm_obs for found in _wrappers(env))


def as_shown(env: VecEnv, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An observation of the environment inside as its wrappers show it to a model."""
    for wrapper in reversed(list(_wrappers(env))):
        if isinstance(wrapper, VecNormalize):
            observation = wrapper.normalize_obs(observation)  # type: ignore[assignment]
    return observation


def continue_from(model: Any, observation: dict[str, np.ndarray]) -> None:
    """Let a model's next rollout begin here, instead of with a reset."""
    model._last_obs = observation
    model._last_episode_starts = np.ones(model.n_envs, bool)


def _wrappers(env: VecEnv) -> Iterator[VecEnvWrapper]:
    """From the outermost one inwards."""
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv
