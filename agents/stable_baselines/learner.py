"""A learner that is any algorithm of Stable-Baselines3's interface, with its autoencoder."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor
from torch.nn.functional import pad

from agents.learners.base import Learner
from agents.ppo.callback import SAME
from agents.ppo.global_generators import seeded_globals
from agents.ppo.vector_env import HTMVecEnv, continue_from
from agents.stable_baselines.config import StableBaselinesConfig
from agents.stable_baselines.model import (
    longest_episode,
    make_model,
    model_state,
    restore_model,
)
from htm_env.actions import action_masks, remapped_actions
from htm_env.autoencoder import Policy
from htm_env.forest import action_to_pair, pair_to_action, tree_height
from htm_env.membership import BOUND
from htm_env.observation import check_observation
from htm_env.types import TokenBatch

TAGS = {**SAME, "loss/model": "train/loss"}
"""This project's tags and what Stable-Baselines3 calls the same number."""
NEVER = 2**62
"""Rollouts until the model empties its log by itself."""


class StableBaselinesLearner(Learner):
    """One update is one rollout and the model's own training on it, or on stored steps, and then
    autoencoder steps on the trees that ended meanwhile.

    Illegal actions are executed as legal ones (``invalid_action="remap"``). The model draws from
    the global generators of torch and NumPy and from its action space: around each update they are
    seeded from this learner's generator. Its schedules follow the budget of the run.

    Stored steps of a model that replays hold embeddings as they were when the steps were made;
    checkpoints have all of them. A recurrent model starts with an empty memory after a resume.

    Raises ``ValueError`` for a class that is none, or that refuses its arguments or this
    environment.
    """

    algo = "sb3:PPO"
    config_class = StableBaselinesConfig
    config: StableBaselinesConfig

    def __init__(
        self, env_id: str, config: StableBaselinesConfig | None = None, **task: Any
    ) -> None:
        super().__init__(env_id, config, **task)
        self.algo = self.config.model
        self.env = HTMVecEnv(
            self.task.env,
            self.config.n_envs,
            autoencoder=self.autoencoder,
            reward=self.reward,
            invalid_action="remap",
            device=self.task.device,
            **self.task.env_kwargs,
        )
        self.env.record()
        with seeded_globals(self.generator):
            model: Any = make_model(self.config, self.env, self.device)
        # The share of the budget instead of that of a single call of ``learn``.
        model._update_current_progress_remaining = lambda done, total: None
        self.model: Any = model
        self.takes_masks = "action_masks" in inspect.signature(self.model.predict).parameters
        self.env.seed(int(torch.randint(2**31, (), generator=self.generator, device=self.device)))
        continue_from(self.model, self.env.reset())

    @property
    def slots(self) -> int:
        """Slots of the model's observations, those of the largest sample in training."""
        return longest_episode(self.env) + 1

    @property
    def steps(self) -> int:
        """Steps of all copies in an update."""
        own = isinstance(self.model, OnPolicyAlgorithm)
        return self.config.n_envs * (self.model.n_steps if own else longest_episode(self.env))

    # ------------------------------------------------------------ learn

    def update(self, progress: float) -> dict[str, float]:
        model, before = self.model, self.env.merges_made
        model._current_progress_remaining = 1.0 - progress
        with seeded_globals(self.generator):
            model.action_space.seed(int(torch.randint(2**31, ())))
            model.learn(self.steps, log_interval=NEVER, reset_num_timesteps=False)
        self.merges_made += self.env.merges_made - before
        self.updates += 1
        known = model.logger.name_to_value
        scalars = {tag: float(known[name]) for tag, name in TAGS.items() if name in known}
        model.logger.dump()  # to nowhere, which clears it
        if not all(bool(value.isfinite().all()) for value in model.policy.parameters()):
            raise FloatingPointError(f"the weights of {self.algo} are not finite")
        finished = self.env.take_finished()
        if finished is not None:
            heights = tree_height(finished.merges, finished.batch.num_tokens)
            scalars["train/return"] = float(finished.returns.mean())
            scalars[f"train/{self.autoencoder.error_name}"] = float(finished.error.mean())
            scalars["train/tree_height"] = float(heights.float().mean())
            if self.task.mode == "joint":
                scalars |= self.trainer.update_in_parts(
                    finished.batch, finished.merges, self.config.trees_per_step, progress
                )
                self.model._last_obs = self.env.refresh()
        return {tag: value for tag, value in scalars.items() if math.isfinite(value)}

    # ------------------------------------------------------------ act

    def plan(
        self, batch: TokenBatch, generator: torch.Generator, *, greedy: bool
    ) -> Int64[Tensor, "B M 2"]:
        """The trees of this project's network, or of the model's own policy where it has another.

        A policy that only has best actions, as that of DQN, draws none: not greedy it is the same.
        Raises ``ValueError`` for sets of more tokens than another policy has slots.
        """
        network = getattr(self.model.policy, "network", None)
        if network is not None:
            made: Tensor = network.plan(self.autoencoder, batch, generator, greedy=greedy)
            return made
        count, most = int(batch.num_tokens.max()), self.slots
        if count > most:
            raise ValueError(f"this policy of {self.algo} takes at most {most} tokens, not {count}")
        self.model.policy.set_training_mode(False)
        with seeded_globals(generator):
            return self.merge(batch, self._policy(greedy), generator)

    def _policy(self, greedy: bool) -> Policy:
        """The model's policy for one batch of episodes from their first merge on."""
        memory: Any = None
        starts: np.ndarray | None = None

        def act(
            observation: dict[str, Tensor], generator: torch.Generator | None
        ) -> Int64[Tensor, "B"]:
            nonlocal memory, starts
            given = observation["active"].shape[1]
            more = self.slots - given  # empty slots behind those of the batch, or fewer of these
            active = pad(observation["active"].to(torch.int8), (0, more))
            counts = pad(observation["leaf_counts"].to(torch.int32), (0, more))
            seen = {
                "tokens": pad(observation["tokens"].clamp(-BOUND, BOUND), (0, 0, 0, more))
                .cpu()
                .numpy(),
                "active": active.cpu().numpy(),
                "leaf_counts": counts.cpu().numpy(),
            }
            actions, memory = self._legal(
                self.model.policy.predict, seen, active.bool(), memory, starts, greedy
            )
            starts = np.zeros(len(actions), bool)
            made: Tensor = pair_to_action(*action_to_pair(actions, self.slots), given)
            return made.masked_fill(active.sum(1) < 2, 0)  # where an episode has ended

        return act

    def _legal(
        self,
        predict: Callable[..., tuple[Any, Any]],
        observation: Any,
        active: Bool[Tensor, "B P"],
        state: Any,
        starts: Any,
        greedy: bool,
    ) -> tuple[Int64[Tensor, "B"], Any]:
        """Actions of a ``predict`` of the library, illegal ones as the environment remaps them, and
        its memory."""
        legal = action_masks(active, None)
        masks = {"action_masks": legal.cpu().numpy()} if self.takes_masks else {}
        found, memory = predict(
            observation, state=state, episode_start=starts, deterministic=greedy, **masks
        )
        actions = torch.as_tensor(found, device=legal.device).long().reshape(-1)
        rows = (~legal.gather(1, actions[:, None])[:, 0]).nonzero()[:, 0]
        if len(rows):
            own = remapped_actions(actions[rows], legal[rows])
            actions = actions.index_copy(0, rows, own)
        return actions, memory

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """The model's own ``predict``, for an environment with this learner's autoencoder, or a
        batch of them.

        Every action is legal: a class that takes masks gets them, and an illegal action of another
        becomes the legal one that the environment would remap it to.
        """
        check_observation(observation)
        active = torch.as_tensor(np.asarray(observation["active"])).bool()
        actions, memory = self._legal(
            self.model.predict,
            observation,
            active.reshape(-1, active.shape[-1]),
            state,
            episode_start,
            deterministic,
        )
        return actions.numpy() if active.ndim > 1 else actions.numpy()[0], memory

    # ------------------------------------------------------------ resume

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "model": model_state(self.model),
            "episodes": self.env.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        restore_model(self.model, state["model"])
        continue_from(self.model, self.env.restore(state["episodes"]))
