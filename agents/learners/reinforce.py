"""REINFORCE (Williams 1992) that learns to merge while the autoencoder learns to encode."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from agents.config.dataclasses_json import check_bounds
from agents.learners.baselines import Returns, make_baseline
from agents.learners.curriculum import merges_to_make, sample_up_to
from agents.learners.entropy import EntropyConfig, EntropyControl, mean_entropy
from agents.learners.policy_learner import PolicyConfig, PolicyLearner
from agents.likelihood.among_all import discounted_returns, value_loss
from agents.likelihood.base import Judgement
from agents.likelihood.judging import judge
from agents.optim.autoencoder_trainer import AutoencoderTrainer
from agents.optim.optimizers import NonFiniteGuard, ScheduledOptimizer
from agents.rollouts.rollout import Rollout, follow, rollout
from htm_env.coding.networks import seeded_initialisation
from htm_env.forest import tree_height
from htm_env.types import TokenBatch


@dataclass(frozen=True)
class ReinforceConfig(PolicyConfig):
    """Everything that REINFORCE can be told; shares are of the budget."""

    batch_size: int = 32
    """Samples an update, at first."""
    batch_growth: float = 0.125
    """Samples that an update has more than the one before, from the learner's first on: early many
    updates are worth more, later little noise (Smith et al. 2018, "Don't decay the learning rate,
    increase the batch size")."""
    max_batch_size: int = 256
    """Samples an update at most; the growth ends there."""
    trees_per_sample: int = 2
    """Trees that the policy makes of every sample."""
    baseline: str = "leave_one_out"
    """none, moving_normaliser, exponential, value, greedy or leave_one_out."""
    scale_advantages: bool = True
    """Divide the advantages of a batch by their root mean square: rewards shrink as errors do."""
    entropy: EntropyConfig = field(default_factory=EntropyConfig)
    """How exploration is held open."""
    merges_curriculum: float = 0.0
    """Share over which episodes grow from one merge to all of them; 0 for none."""
    population_curriculum: float = 0.0
    """Share over which samples grow from the smallest population to the largest; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        many = (1, math.inf)
        check_bounds(
            self,
            batch_size=many,
            trees_per_sample=many,
            batch_growth=(0, math.inf),
            max_batch_size=many,
            merges_curriculum=(0, 1),
            population_curriculum=(0, 1),
        )


class Reinforce(PolicyLearner):
    """Policy gradients on whole episodes, an autoencoder step on the same trees after each."""

    algo = "reinforce"
    config_class = ReinforceConfig
    config: ReinforceConfig

    def __init__(self, env_id: str, config: ReinforceConfig | None = None, **task: Any) -> None:
        super().__init__(env_id, config, **task)
        config = self.config
        with seeded_initialisation(self.generator):
            self.policy = self._make_policy().to(self.device)
        self.trainer = AutoencoderTrainer(self.autoencoder, config.autoencoder, self.generator)
        self.optimizer = ScheduledOptimizer(self.policy.parameters(), config.policy)
        self.guard = NonFiniteGuard()
        self.baseline = make_baseline(config.baseline, config.trees_per_sample)
        self.entropy = EntropyControl(config.entropy)

    # ------------------------------------------------------------ learn

    def update(self, progress: float) -> dict[str, float]:
        batch, episodes, scalars = self._learn_afresh(progress)
        return scalars | self._train_autoencoder(batch, episodes, progress)

    def _learn_afresh(self, progress: float) -> tuple[TokenBatch, Rollout, dict[str, float]]:
        """Make new episodes, and let the policy learn from them."""
        config = self.config
        grown = config.batch_size + int(config.batch_growth * self.updates)
        size = max(config.batch_size, min(grown, config.max_batch_size))
        batch = sample_up_to(
            self.dataset, size, self.generator, progress, config.population_curriculum
        ).to(self.device)
        if self._clones_now(progress):
            return batch, *self._clone(batch, progress)
        if self._rests_now(progress):
            return batch, *self._rest(batch, progress)
        rows = torch.arange(len(batch.tokens), device=self.device)
        batch = batch.rows(rows.repeat_interleave(config.trees_per_sample))
        return batch, *self._reinforce(batch, progress)

    def _train_autoencoder(
        self, batch: TokenBatch, episodes: Rollout, progress: float
    ) -> dict[str, float]:
        """The other half of an update, on the same trees."""
        scalars = {}
        if self.task.mode == "joint":
            scalars = self.trainer.update_in_parts(
                batch, episodes.merges, self.config.trees_per_step, progress
            )
        self.updates += 1
        heights = tree_height(episodes.merges, batch.num_tokens)
        return {
            **scalars,
            "train/tree_height": float(heights.float().mean()),
            "train/skipped_updates": float(self.guard.skipped + self.trainer.guard.skipped),
        }

    def _reinforce(self, batch: TokenBatch, progress: float) -> tuple[Rollout, dict[str, float]]:
        config = self.config
        num_merges = merges_to_make(batch.num_tokens, progress, config.merges_curriculum)
        episodes = self._roll(batch, num_merges, greedy=False)
        rewards, error = self._rewards_of(batch, episodes)
        returns = Returns(
            discounted_returns(rewards, config.discount),
            episodes.steps,
            config.trees_per_sample,
            state_values=lambda: values.detach(),
            greedy_returns=lambda: discounted_returns(
                self._rewards_of(batch, greedy := self._roll(batch, num_merges, greedy=True))[0]
                * greedy.steps,
                config.discount,
            ),
        )
        judgement = self._judge(batch, episodes)
        values = torch.zeros_like(rewards)
        if self.baseline.learns_values:
            values = judgement.values
        advantages = self._scaled(self.baseline.advantages(returns), episodes.steps)
        coefficient = self.entropy.coefficient(episodes, progress)
        target = self.entropy.target(progress)
        self.optimizer.zero()
        losses = judgement.learn(
            episodes, advantages, coefficient, config.entropy.ordered, self.generator
        )
        own = slice(None, None, config.trees_per_sample)  # the first tree of every sample
        losses |= self._learn_from_failures(batch.rows(own), error[own])
        if self.baseline.learns_values:
            losses["value"] = value_loss(values, returns.values, episodes.steps)
            losses["value"].backward()
        scalars = self._step_policy(losses, progress)
        return episodes, {
            **scalars,
            "train/return": float(rewards.sum(1).mean()),
            "train/nmse": float(error.mean()),
            "policy/entropy": mean_entropy(episodes, config.entropy.ordered),
            **({} if target is None else {"policy/entropy_target": target}),
        }

    def _clone(self, batch: TokenBatch, progress: float) -> tuple[Rollout, dict[str, float]]:
        """Behaviour cloning: raise the likelihood of a demonstrator's merges."""
        demonstrator = self.race.next(progress)
        episodes = self._demonstrate(batch, demonstrator)
        self.merges_made += int(episodes.steps.sum())
        judgement, ordered = self._judge(batch, episodes), self.config.entropy.ordered
        self.optimizer.zero()
        seen = judgement.judged(ordered)
        ones = torch.ones_like(seen.log_prob)
        losses = judgement.learn(seen, ones * seen.steps, ones[:, :1] * 0, ordered, self.generator)
        losses["cloning"] = losses.pop("policy")
        del losses["entropy"]  # nothing is paid for it here
        scalars = self._step_policy(losses, progress)
        scalars["policy/entropy"] = mean_entropy(seen, ordered)
        rewards, error = self._rewards_of(batch, episodes)
        return episodes, {
            **scalars,
            **self._report_to_race(
                demonstrator, self._plan_error(batch, demonstrator, error, progress), progress
            ),
            "train/return": float(rewards.sum(1).mean()),
            "train/nmse": float(error.mean()),
        }

    def _rest(self, batch: TokenBatch, progress: float) -> tuple[Rollout, dict[str, float]]:
        self.optimizer.zero()
        episodes, losses, scalars = self._mended(batch)
        return episodes, scalars | (self._step_policy(losses, progress) if losses else {})

    def _plan_error(
        self, batch: TokenBatch, demonstrator: str, error: Tensor, progress: float
    ) -> float:
        """The mean error of the demonstrator's own trees; ``error`` is that of what it showed."""
        return float(error.mean())

    def _demonstrate(self, batch: TokenBatch, demonstrator: str) -> Rollout:
        policy = self.demonstrators[demonstrator]
        merges = policy.merges(batch, self.autoencoder, self.generator)
        return follow(self.autoencoder, batch, merges, self.config.nearest)

    def _roll(self, batch: TokenBatch, num_merges: Tensor, *, greedy: bool) -> Rollout:
        episodes = rollout(
            self.autoencoder,
            self.policy,
            batch,
            self.generator,
            greedy=greedy,
            num_merges=num_merges,
            ordered_entropy=self.config.entropy.ordered,
            measure_entropy=self.entropy.measured,
            nearest=self.config.nearest,
        )
        self.merges_made += int(episodes.steps.sum())
        return episodes

    def _judge(self, batch: TokenBatch, episodes: Rollout) -> Judgement:
        return judge(self.policy, self.autoencoder, batch, episodes)

    def _scaled(self, advantages: Tensor, steps: Tensor) -> Tensor:
        if not self.config.scale_advantages:
            return advantages
        mean_square = advantages.square().sum() / steps.sum().clamp(min=1)
        return advantages / (mean_square + 1e-20).sqrt()

    def _step_policy(self, losses: dict[str, Tensor], progress: float) -> dict[str, float]:
        norm = self.optimizer.clip()
        if self.guard.allows("policy", norm, *losses.values()):
            self.optimizer.step(progress)
        scalars = {f"loss/{name}": float(loss.detach()) for name, loss in losses.items()}
        return {**scalars, "gradient_norm/policy": float(norm)}

    # ------------------------------------------------------------ resume

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "policy": copy.deepcopy(self.policy.state_dict()),
            "trainer": self.trainer.state(),
            "optimizer": self.optimizer.state(),
            "guard": self.guard.state(),
            "baseline": self.baseline.state(),
            "entropy": self.entropy.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.policy.load_state_dict(state["policy"])
        self.trainer.restore(state["trainer"])
        self.optimizer.restore(state["optimizer"])
        self.guard.restore(state["guard"])
        self.baseline.restore(state["baseline"])
        self.entropy.restore(state["entropy"])
