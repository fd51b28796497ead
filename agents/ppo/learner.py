"""PPO that learns to merge while the autoencoder learns to encode."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.config.schedules import cosine_decay, warm_up
from agents.evaluation.evaluate import root_errors
from agents.learners.entropy import mean_entropy
from agents.learners.policy_learner import PolicyLearner
from agents.likelihood.among_all import discounted_returns, value_loss
from agents.likelihood.judging import judge
from agents.networks.context import observed_by
from agents.optim.autoencoder_trainer import AutoencoderTrainer
from agents.optim.minibatches import equal_parts, mean_of_finite, mean_scalars
from agents.optim.optimizers import NonFiniteGuard
from agents.ppo.callback import JointTraining
from agents.ppo.config import PPOConfig
from agents.ppo.gradients import GradientGate
from agents.ppo.make import joint_model
from agents.ppo.policies import network_of
from agents.ppo.randomness import seeded_globals
from agents.ppo.vector_env import HTMVecEnv
from agents.rollouts.rollout import follow
from htm_env.forest import tree_height
from htm_env.types import TokenBatch

TAGS = ("train/return", "train/nmse", "train/tree_height")
OWN = ("policy/", "loss/", "gradient_norm/")
"""What is taken from Stable-Baselines3's logger: these tags, and those that begin so."""


class PPOLearner(PolicyLearner):
    """One update is one rollout and one ``train`` of a Stable-Baselines3 model, and autoencoder
    steps on the trees that ended in the rollout; or cloning of a demonstrator, or a rest (see
    ``policy_share``), with autoencoder steps on as many trees.

    The model draws from the global generators of torch and NumPy; around each update they are
    seeded from this learner's generator, and put back.
    """

    algo = "ppo"
    config_class = PPOConfig
    config: PPOConfig

    def __init__(self, env_id: str, config: PPOConfig | None = None, **task: Any) -> None:
        super().__init__(env_id, config, **task)
        config = self.config
        if config.maskable:
            self.algo = "maskable_ppo"
        self.env = HTMVecEnv(
            self.task.env_id,
            config.n_envs,
            autoencoder=self.autoencoder,
            reward=self.reward,
            observe=observed_by(config.encoder, config.context),
            candidates=config.candidates,
            k=config.k,
            neighbours=config.neighbours,
            device=self.task.device,
            **self.task.env_kwargs,
        )
        self.trainer = AutoencoderTrainer(self.autoencoder, config.autoencoder, self.generator)
        self.callback = JointTraining(
            self.trainer if self.task.mode == "joint" else None, config.trees_per_step
        )
        self.guard = NonFiniteGuard()
        self._progress, self._gradient_steps = 0.0, 0
        with seeded_globals(self.generator):
            self.model = joint_model(config, self.env, self._learning_rate, self.device)
        self.policy = network_of(self.model.policy)
        self.gate = GradientGate(self.model.policy.optimizer, config.policy.clip_norm)
        self.env.seed(int(torch.randint(2**31, (), generator=self.generator, device=self.device)))
        self._continue_from(self.env.reset())

    def _continue_from(self, observation: dict[str, np.ndarray]) -> None:
        """Let the model's next rollout begin here, instead of with a reset."""
        self.model._last_obs = observation
        self.model._last_episode_starts = np.ones(self.config.n_envs, bool)

    def _learning_rate(self, remaining: float = 0.0) -> float:
        """The schedule of the other learners; the model's own progress plays no part."""
        config = self.config.policy
        scale = warm_up(self._gradient_steps, config.warm_up_updates)
        return config.learning_rate * scale * cosine_decay(self._progress, config.final_share)

    # ------------------------------------------------------------ learn

    def update(self, progress: float) -> dict[str, float]:
        self._progress = progress
        if self._clones_now(progress):
            scalars = self._clone(progress)
        elif self._rests_now(progress):
            scalars = self._rest(progress)
        else:
            scalars = self._roll(progress)
        if norms := self.gate.take():
            self._gradient_steps += len(norms)
            self.guard.allows("policy", torch.tensor(norms).sum())  # steps were skipped one by one
            scalars["gradient_norm/policy"] = mean_of_finite(norms)
        self.updates += 1
        return {
            **scalars,
            "train/skipped_updates": float(self.guard.skipped + self.trainer.guard.skipped),
        }

    def _roll(self, progress: float) -> dict[str, float]:
        self.callback.progress = progress
        before, steps = self.env.merges_made, self.model.n_steps * self.config.n_envs
        with seeded_globals(self.generator):
            # One rollout, so that the second, which would be logged and forgotten, never comes.
            self.model.learn(steps, self.callback, log_interval=2, reset_num_timesteps=False)
        self.merges_made += self.env.merges_made - before
        logger = self.model.logger
        scalars = {
            tag: float(value)
            for tag, value in logger.name_to_value.items()
            if tag in TAGS or tag.startswith(OWN)
        }
        logger.dump()  # to nowhere, which clears it
        finished = self.callback.finished
        if finished is None:
            return scalars
        # Anew: the autoencoder has learned since these episodes ended.
        error = root_errors(self.autoencoder, finished.batch, finished.merges, self.std)
        self.model.policy.optimizer.zero_grad()
        return scalars | self._mend(self._learn_from_failures(finished.batch, error))

    def _mend(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """A step of its own away from failures, if there are any."""
        if losses:
            self._step()
        return {f"loss/{name}": float(loss) for name, loss in losses.items()}

    def _rest(self, progress: float) -> dict[str, float]:
        config = self.config
        trees = config.n_envs * config.rollout_episodes
        batch = self.dataset.sample(trees, self.generator).to(self.device)
        self.model.policy.optimizer.zero_grad()
        episodes, losses, scalars = self._mended(batch)
        scalars |= self._mend(losses) | self.trainer.update_in_parts(
            batch, episodes.merges, config.trees_per_step, progress
        )
        heights = tree_height(episodes.merges, batch.num_tokens)
        return {**scalars, "train/tree_height": float(heights.float().mean())}

    def _clone(self, progress: float) -> dict[str, float]:
        """Behaviour cloning on as many trees as a rollout has; the critic learns their returns."""
        config = self.config
        trees = config.n_envs * config.rollout_episodes
        name = self.race.next(progress)
        rows: list[dict[str, float]] = []
        for part in equal_parts(trees, config.trees_per_step):
            batch = self.dataset.sample(len(part), self.generator).to(self.device)
            merges = self.demonstrators[name].merges(batch, self.autoencoder, self.generator)
            rows.append(self._clone_step(batch, merges))
            if self.task.mode == "joint":
                rows[-1] |= self.trainer.update(batch, merges, progress)
        scalars = mean_scalars(rows)
        return scalars | self._report_to_race(name, scalars["train/nmse"], progress)

    def _clone_step(self, batch: TokenBatch, merges: Tensor) -> dict[str, float]:
        config = self.config
        episodes = follow(self.autoencoder, batch, merges, config.nearest)
        self.merges_made += int(episodes.steps.sum())
        rewards, error = self._rewards_of(batch, episodes)
        judgement = judge(self.policy, self.autoencoder, batch, episodes)
        self.model.policy.optimizer.zero_grad()
        episodes = judgement.judged(ordered=False)
        ones = torch.ones_like(episodes.log_prob)
        losses = judgement.learn(episodes, ones * episodes.steps, ones[:, :1] * 0, ordered=False)
        returns = discounted_returns(rewards, config.discount)
        critic = value_loss(judgement.values, returns, episodes.steps)
        (config.value_weight * critic).backward()
        self._step()
        return {
            "loss/cloning": float(losses["policy"]),
            "loss/value": float(critic.detach()),
            "policy/entropy": mean_entropy(episodes, ordered=False),
            "train/return": float(rewards.sum(1).mean()),
            "train/nmse": float(error.mean()),
            "train/tree_height": float(tree_height(merges, batch.num_tokens).float().mean()),
        }

    def _step(self) -> None:
        """Take a step beside the model's own, along the gradient that was accumulated."""
        for group in self.model.policy.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.model.policy.optimizer.step()

    # ------------------------------------------------------------ resume

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "policy": copy.deepcopy(self.policy.state_dict()),
            "trainer": self.trainer.state(),
            "optimizer": copy.deepcopy(self.model.policy.optimizer.state_dict()),
            "gradient_steps": self._gradient_steps,
            "guard": self.guard.state(),
            "episodes": self.env.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.policy.load_state_dict(state["policy"])
        self.trainer.restore(state["trainer"])
        # An optimizer changes its averages in place, and would change the state that it was given.
        self.model.policy.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._gradient_steps = state["gradient_steps"]
        self.guard.restore(state["guard"])
        self._continue_from(self.env.restore(state["episodes"]))
