"""Held-out scores inside anybody's ``model.learn``: a callback of Stable-Baselines3."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Int64
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents.evaluation.evaluate import VALIDATION_EPISODES, evaluate
from agents.ppo.policies import network_of
from agents.ppo.vector_env import inside
from htm_env.datasets import Dataset
from htm_env.types import TokenBatch


class HeldOutEvaluation(BaseCallback):
    """Evaluates policy and autoencoder on fixed episodes, and logs what every learner logs.

    Merges are the best legal ones of the policy network; the model's environment, its random
    numbers and its autoencoder stay as they are. The scores (``agents/evaluation/evaluate.py``) go
    to the model's logger as ``validation/nmse``, ``validation/tree_recall`` and so on.

    Stand it behind ``JointTraining``: it sees the autoencoder that has learned from the rollout,
    and the policy before it does. Rollouts are counted on from one ``learn`` to the next.

    Args:
        dataset: the held-out split, such as ``make_dataset("HTM-Trees-v0", split="validation")``.
        every: rollouts from one evaluation to the next; the first rollout is followed by one.
        episodes: how many, at most.
        verbose: as in Stable-Baselines3.

    Raises ``ValueError`` for ``every`` or ``episodes`` below 1. ``model.learn`` raises it when the
    model's environment is not an :class:`HTMVecEnv` or in a wrapper that changes its observations,
    its policy not one of this project's (whose network plans whole trees), or the data's tokens
    have another dimension than the environment's.

    Example::

        held_out = HeldOutEvaluation(make_dataset("HTM-Trees-v0", split="validation"), every=20)
        model.learn(100_000, [JointTraining(trainer), held_out])
    """

    def __init__(
        self,
        dataset: Dataset,
        every: int = 10,
        episodes: int = VALIDATION_EPISODES,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        for name, number in (("every", every), ("episodes", episodes)):
            if number < 1:
                raise ValueError(f"{name} is {number}; expected at least 1")
        self.dataset, self.every, self.episodes = dataset, every, episodes
        self._rollouts = 0

    def _init_callback(self) -> None:
        env = inside(self.training_env)
        if env.autoencoder.token_dim != self.dataset.token_dim:
            raise ValueError(
                f"the held-out tokens have {self.dataset.token_dim} coordinates; expected "
                f"{env.autoencoder.token_dim}, as the environment's"
            )
        network_of(self.model.policy)  # knows whose it is
        self.env = env

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._rollouts += 1
        if (self._rollouts - 1) % self.every:
            return
        autoencoder = self.env.autoencoder
        # Stable-Baselines3 may have put the model on another device than the environment's.
        device = autoencoder.token_mean.device
        self._network = copy.deepcopy(network_of(self.model.policy)).to(device)
        scores = evaluate(self, autoencoder, self.dataset, self.episodes, sampled=False)
        for name, score in scores.items():
            if score is not None:
                self.logger.record(f"validation/{name}", score)

    def plan(
        self, batch: TokenBatch, generator: torch.Generator, *, greedy: bool
    ) -> Int64[Tensor, "B M 2"]:
        """The merges of the network as it is evaluated."""
        nearest = self.env.copies.simulator.nearest
        return self._network.plan(
            self.env.autoencoder, batch, generator, greedy=greedy, nearest=nearest
        )
