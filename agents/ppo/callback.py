"""Joint training inside anybody's ``model.learn``: a callback of Stable-Baselines3."""

from __future__ import annotations

import time

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents.optim.autoencoder_trainer import AutoencoderTrainer
from agents.ppo.distribution import MergeDistribution, observed_entropy
from agents.ppo.vector_env import FinishedEpisodes, inside
from htm_env.forest import tree_height

SAME = {
    "loss/policy": "train/policy_gradient_loss",
    "loss/value": "train/value_loss",
    "loss/entropy": "train/entropy_loss",
    "policy/approximate_kl": "train/approx_kl",
    "policy/clip_fraction": "train/clip_fraction",
    "policy/explained_variance": "train/explained_variance",
}
"""This project's tags and what Stable-Baselines3 calls the same number."""


class JointTraining(BaseCallback):
    """Trains the autoencoder on the trees of each rollout, and logs what every learner logs.

    Between a rollout and the next, the autoencoder learns from the episodes that ended in it, and
    all episodes in progress are encoded anew: they go on under the new weights, and their trees
    count when they end.

    Args:
        trainer: of the environment's autoencoder; None leaves it as it is, and only logs.
        trees_per_step: trees that one autoencoder step learns from, about.
        verbose: as in Stable-Baselines3.

    :class:`HeldOutEvaluation` beside it evaluates; checkpoints that resume exactly, as files that
    run no code, are :class:`PPOLearner`'s, which wraps a model with this callback.

    ``model.learn`` raises ``ValueError`` when the model's environment is not an :class:`HTMVecEnv`
    (``VecMonitor`` may stand around it, what changes observations may not) or when the trainer has
    another autoencoder, and ``FloatingPointError`` when the autoencoder's losses stay non-finite.

    Example::

        env = HTMVecEnv("HTM-Trees-v0", num_envs=128, autoencoder="untrained")
        generator = torch.Generator().manual_seed(0)
        trainer = AutoencoderTrainer(env.autoencoder, AutoencoderConfig(), generator)
        PPO(MergeActorCriticPolicy, env, n_steps=14).learn(100_000, JointTraining(trainer))
    """

    def __init__(
        self, trainer: AutoencoderTrainer | None = None, trees_per_step: int = 32, verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        if trees_per_step < 1:
            raise ValueError(f"trees_per_step is {trees_per_step}; expected at least 1")
        self.trainer, self.trees_per_step = trainer, trees_per_step
        self._entropies: list[Tensor] = []
        self.progress: float | None = None
        """The share of the budget that is used; None for that of ``model.learn``."""
        self.finished: FinishedEpisodes | None = None
        """The episodes that ended in the latest rollout; None if none has."""

    def _init_callback(self) -> None:
        env = inside(self.training_env)
        if self.trainer is not None and self.trainer.autoencoder is not env.autoencoder:
            raise ValueError("the trainer has another autoencoder than the environment")
        self.env = env
        env.record()

    def _on_training_start(self) -> None:
        self._started, self._merges_before = time.perf_counter(), self.env.merges_made

    def _on_rollout_start(self) -> None:
        self._copy_losses()
        self._entropies = []
        self.model._last_obs = self.env.refresh()

    @torch.no_grad()
    def _on_step(self) -> bool:
        distribution = getattr(self.model.policy, "action_dist", None)
        if isinstance(distribution, MergeDistribution):  # this project's, and of this step
            observation = self.locals["obs_tensor"]
            self._entropies.append(observed_entropy(distribution.log_probabilities, observation))
        return True

    def _on_rollout_end(self) -> None:
        if self._entropies:
            self.logger.record("policy/entropy", float(torch.cat(self._entropies).nanmean()))
        made = self.env.merges_made - self._merges_before
        self.logger.record("time/merges_per_second", made / (time.perf_counter() - self._started))
        finished = self.finished = self.env.take_finished()
        if finished is None:
            return
        heights = tree_height(finished.merges, finished.batch.num_tokens)
        self.logger.record("train/return", float(finished.returns.mean()))
        self.logger.record("train/nmse", float(finished.error.mean()))
        self.logger.record("train/tree_height", float(heights.float().mean()))
        if self.trainer is not None:
            for tag, value in self._train(self.trainer, finished).items():
                self.logger.record(tag, value)

    def _on_training_end(self) -> None:
        self._copy_losses()

    def _train(self, trainer: AutoencoderTrainer, finished: FinishedEpisodes) -> dict[str, float]:
        """Autoencoder steps on these trees; returns the mean of each scalar."""
        progress = self.progress
        if progress is None:
            progress = min(1.0, self.num_timesteps / self.locals["total_timesteps"])
        return trainer.update_in_parts(
            finished.batch, finished.merges, self.trees_per_step, progress
        )

    def _copy_losses(self) -> None:
        known = self.logger.name_to_value
        for tag, name in SAME.items():
            if name in known:
                self.logger.record(tag, known[name])
