"""PPO that learns to merge while the autoencoder learns to encode."""

from __future__ import annotations

from typing import Any

import torch

from agents.evaluation.evaluate import root_errors
from agents.learners.policy_learner import PolicyLearner
from agents.networks.context import observed_by
from agents.optim.autoencoder_trainer import equal_parts, mean_scalars
from agents.ppo.callback import JointTraining
from agents.ppo.config import PPOConfig
from agents.ppo.global_generators import seeded_globals
from agents.ppo.make import joint_model
from agents.ppo.optimizer import ModelOptimizer
from agents.ppo.policies import network_of
from agents.ppo.vector_env import HTMVecEnv, continue_from
from htm_env.forest import tree_height

TAGS = ("train/return", "train/nmse", "train/cost", "train/tree_height")
OWN = ("policy/", "loss/", "gradient_norm/")
"""Tags taken from Stable-Baselines3's logger: these tags, and those that begin so."""


class PPOLearner(PolicyLearner):
    """One update is one rollout and one ``train`` of a Stable-Baselines3 model, and autoencoder
    steps on the trees that ended in the rollout; or cloning of a demonstrator; or autoencoder steps
    alone (see ``policy_share``), each on as many trees.

    The model draws from the global generators of torch and NumPy; around each update they are
    seeded from this learner's generator, and put back.
    """

    algo = "ppo"
    algorithms = ("ppo", "maskable_ppo")
    config_class = PPOConfig
    config: PPOConfig

    def __init__(self, env_id: str, config: PPOConfig | None = None, **task: Any) -> None:
        super().__init__(env_id, config, **task)
        config = self.config
        if config.maskable:
            self.algo = "maskable_ppo"
        self.env = HTMVecEnv(
            self.task.env,
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
        self.optimizer = ModelOptimizer(config.policy)
        with seeded_globals(self.generator):
            self.model = joint_model(config, self.env, self.optimizer.learning_rate, self.device)
        self.optimizer.attach(self.model.policy.optimizer)
        self.set_up(network_of(self.model.policy), self.optimizer, value_weight=config.value_weight)
        self.callback = JointTraining(
            self.trainer if self.task.mode == "joint" else None, config.trees_per_step
        )
        self.env.seed(int(torch.randint(2**31, (), generator=self.generator, device=self.device)))
        continue_from(self.model, self.env.reset())

    @property
    def trees_per_update(self) -> int:
        """As many trees as a rollout has."""
        return self.config.n_envs * self.config.rollout_episodes

    # ------------------------------------------------------------ learn

    def update(self, progress: float) -> dict[str, float]:
        if self.selects(progress):
            return self.select(progress)
        self.optimizer.progress = progress
        if self.cloning.due(progress):
            scalars = self.clone(progress)
        elif self.share.omits_policy(progress):
            scalars = self.train_autoencoder(progress)
        else:
            scalars = self.train_model(progress)
        scalars |= self.optimizer.finish_update()
        self.updates += 1
        skipped = self.optimizer.guard.skipped + self.skipped_updates
        return {**scalars, "train/skipped_updates": float(skipped)}

    def train_model(self, progress: float) -> dict[str, float]:
        """One rollout and one ``train`` of the model, and a step on the failures of the rollout."""
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
        self.optimizer.zero()
        losses = self.search.learn(finished.batch, error)
        return scalars | (self.optimizer.step(losses, progress) if losses else {})

    def train_autoencoder(self, progress: float) -> dict[str, float]:
        """Autoencoder steps alone, on greedy trees of fresh samples."""
        batch = self.dataset.sample(self.trees_per_update, self.generator).to(self.device)
        episodes, scalars = self.share.learn(batch, progress)
        scalars |= self.trainer.update_in_parts(
            batch, episodes.merges, self.config.trees_per_step, progress
        )
        heights = tree_height(episodes.merges, batch.num_tokens)
        return {**scalars, "train/tree_height": float(heights.float().mean())}

    def clone(self, progress: float) -> dict[str, float]:
        """Behaviour cloning of a demonstrator; the critic learns the returns."""
        rows: list[dict[str, float]] = []
        for part in equal_parts(self.trees_per_update, self.config.trees_per_step):
            batch = self.dataset.sample(len(part), self.generator).to(self.device)
            episodes = self.demonstrated_episodes(batch, self.selection.best)
            scalars = self.cloning.learn(batch, episodes, progress)
            heights = tree_height(episodes.merges, batch.num_tokens)
            rows.append({**scalars, "train/tree_height": float(heights.float().mean())})
            if self.task.mode == "joint":
                rows[-1] |= self.trainer.update(batch, episodes.merges, progress)
        return mean_scalars(rows)

    # ------------------------------------------------------------ resume

    def state(self) -> dict[str, Any]:
        return {**super().state(), **self.optimizer.state(), "episodes": self.env.state()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.optimizer.restore(state)
        continue_from(self.model, self.env.restore(state["episodes"]))
