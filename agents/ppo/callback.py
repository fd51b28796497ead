"""Joint training and held-out scores inside ``model.learn``: callbacks of Stable-Baselines3."""

from __future__ import annotations

import copy
import time

import torch
from jaxtyping import Int64
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from agents.evaluation.evaluate import VALIDATION_EPISODES, evaluate
from agents.optim.autoencoder_trainer import AutoencoderTrainer
from agents.ppo.distribution import MergeDistribution, observed_entropy
from agents.ppo.policies import network_of
from agents.ppo.vector_env import FinishedEpisodes, as_shown, inside, normalises
from htm_env.checks import at_least
from htm_env.datasets import Dataset
from htm_env.forest import tree_height
from htm_env.types import TokenBatch

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

    The model keeps the autoencoder: after ``model.save(path)`` and ``PPO.load(path)``, the
    environment of the loaded model is ``HTMVecEnv(..., autoencoder=loaded.autoencoder)``.

    ``model.learn`` raises ``ValueError`` when the model's environment is not an :class:`HTMVecEnv`
    (in wrappers such as ``VecMonitor`` perhaps, but of those that change observations only in
    ``VecNormalize``) or when the trainer has another autoencoder, and ``FloatingPointError`` when
    the autoencoder's losses stay non-finite.

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
        at_least(1, trees_per_step=trees_per_step)
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
        self.model.autoencoder = env.autoencoder  # type: ignore[attr-defined]  # saved with it
        env.record()

    def _on_training_start(self) -> None:
        self._started, self._merges_before = time.perf_counter(), self.env.merges_made

    def _on_rollout_start(self) -> None:
        self._copy_losses()
        self._entropies = []
        observation = self.env.refresh()
        self.model._last_obs = as_shown(self.training_env, observation)
        if self.model.get_vec_normalize_env() is not None:
            self.model._last_original_obs = observation

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
        error_name = self.env.autoencoder.error_name
        self.logger.record(f"train/{error_name}", float(finished.error.mean()))
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


class HeldOutEvaluation(BaseCallback):
    """Evaluates policy and autoencoder on fixed episodes, and logs what every learner logs.

    Merges are the best legal ones of the policy network; the model's environment, its random
    numbers and its autoencoder stay as they are. The scores (``agents/evaluation/evaluate.py``) go
    to the model's logger as ``validation/nmse``, ``validation/tree_recall`` and so on.

    Its place is behind ``JointTraining``: it evaluates the autoencoder that has learned from the
    rollout, and the policy before it does. Rollouts are counted on from one ``learn`` to the next.

    Args:
        dataset: the held-out split, such as ``make_dataset("HTM-Trees-v0", split="validation")``.
        every: rollouts from one evaluation to the next; the first rollout is followed by one.
        episodes: how many, at most.
        verbose: as in Stable-Baselines3.

    Raises ``ValueError`` for ``every`` or ``episodes`` below 1. ``model.learn`` raises it when the
    model's environment is not an :class:`HTMVecEnv` or in a wrapper that changes its observations
    (``VecNormalize`` may normalise rewards, with ``norm_obs=False``),
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
        at_least(1, every=every, episodes=episodes)
        self.dataset, self.every, self.episodes = dataset, every, episodes
        self._rollouts = 0

    def _init_callback(self) -> None:
        env = inside(self.training_env)
        if env.autoencoder.token_dim != self.dataset.token_dim:
            raise ValueError(
                f"the held-out tokens have {self.dataset.token_dim} coordinates; expected "
                f"{env.autoencoder.token_dim}, as the environment's"
            )
        network_of(self.model.policy)  # raises for any other
        if normalises(self.training_env):
            raise ValueError(
                "held-out trees are planned from embeddings as they are, and VecNormalize changes "
                "what the policy observes; expected VecNormalize(..., norm_obs=False)"
            )
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
        reward = self.env.copies.simulator.reward
        scores = evaluate(
            self, autoencoder, self.dataset, self.episodes, sampled=False, reward=reward
        )
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
