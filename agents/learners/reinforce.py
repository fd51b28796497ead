"""REINFORCE (Williams 1992) that learns to merge while the autoencoder learns to encode."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from agents.config.dataclasses_json import LARGEST, check_bounds
from agents.config.schedules import check_points, piecewise_linear
from agents.encoders import NO_ENCODER
from agents.learners.baselines import Returns, discounted_returns, make_baseline, value_loss
from agents.learners.policy_learner import PolicyConfig, PolicyLearner
from agents.networks.scorers import Placed
from agents.optim.optimizers import GuardedOptimizer
from agents.optim.ranks import Ranks
from agents.rollouts.rollout import Episodes, MergeTerms, mean_entropy, rollout
from htm_env.autoencoder import TreeEncoder, seeded_initialisation
from htm_env.checks import check_choice
from htm_env.datasets import Dataset
from htm_env.forest import tree_height
from htm_env.types import TokenBatch

CONTROLS = ("adaptive", "distance")
PRICE_LIMITS = (-10.0, 50.0)
DRAWS = 8
"""Batches that are drawn at most to find enough small samples; larger ones fill the rest."""


@dataclass(frozen=True)
class EntropyConfig:
    """The price of entropy; shares are of the budget."""

    bonus: float = 0.0
    """Paid for normalised entropy, whatever it is."""
    target: tuple[tuple[float, float], ...] | None = None
    """(share, normalised entropy) points of a schedule for the mean entropy, linear between them:
    from 1 at first to 0 at the end for a policy that starts from nothing; None for no target."""
    ordered: bool = False
    """True <--> the order within a pair counts as a choice; among candidates it always does."""
    control: str = "adaptive"
    """``adaptive``: the price of entropy moves until the target is met (as the temperature of
    Haarnoja et al. 2018, "Soft actor-critic algorithms and applications"); ``distance``: a penalty
    on the distance to the target (the published method's)."""
    weight: float = 3.0
    """``distance``: of the penalty; ``adaptive``: of the present distance, and the sum so far."""
    rate: float = 0.05
    """``adaptive``: how fast the price accumulates."""

    def __post_init__(self) -> None:
        check_bounds(self, bonus=(-1e6, 1e6), weight=(0, 1e6), rate=(0, 1e6))
        if self.target is not None:
            check_points("target", self.target)


@dataclass(frozen=True)
class ReinforceConfig(PolicyConfig):
    """The options of REINFORCE; shares are of the budget."""

    batch_size: int = 32
    """Samples an update, at first; fewer of large sets (see :meth:`Dataset.affordable`)."""
    batch_growth: float = 0.125
    """Samples by which the batch grows each update: early on many updates are worth more, later
    little noise (Smith et al. 2018, "Don't decay the learning rate,
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
    """Control of exploration."""
    coordinates: bool = True
    """Let the policy read the centroid of a token's leaves beside its embedding, which moves while
    the autoencoder learns. Not where that is frozen, with an encoder, which reads what it needs, or
    among candidates."""
    merges_curriculum: float = 0.0
    """Share over which episodes grow from one merge to all of them; 0 for none."""
    population_curriculum: float = 0.0
    """Share over which samples grow from the smallest population to the largest; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(
            self,
            batch_size=(1, LARGEST),
            trees_per_sample=(1, LARGEST),
            batch_growth=(0, LARGEST),
            max_batch_size=(1, LARGEST),
            merges_curriculum=(0, 1),
            population_curriculum=(0, 1),
        )


class Reinforce(PolicyLearner):
    """Policy gradients on whole episodes, an autoencoder step on the same trees after each."""

    algo = "reinforce"
    algorithms: tuple[str, ...] = ("reinforce", "rloo", "original", "original_policy")
    config_class = ReinforceConfig
    unnamed_options: Mapping[str, Any] = {"coordinates": False}
    data_parallel = True
    config: ReinforceConfig

    def __init__(self, env_id: str, config: ReinforceConfig | None = None, **task: Any) -> None:
        super().__init__(env_id, config, **task)
        config = self.config
        with seeded_initialisation(self.generator):
            policy = self.make_policy().to(self.device)
        self.optimizer = GuardedOptimizer(
            "policy", policy.parameters(), config.policy, ranks=self.ranks
        )
        self.set_up(policy, self.optimizer, ordered=config.entropy.ordered)
        self.curriculum = Curriculum(config.merges_curriculum, config.population_curriculum)
        self.baseline = make_baseline(config.baseline, config.trees_per_sample, self.ranks)
        self.entropy = EntropyControl(config.entropy, self.ranks)

    # ------------------------------------------------------------ act

    def encoder_of_policy(self) -> TreeEncoder:
        config = self.config
        if not config.coordinates or self.task.mode == "frozen":
            return self.autoencoder
        if config.encoder != NO_ENCODER or config.nearest is not None:
            return self.autoencoder
        self.autoencoder.observes = Placed.observes
        return Placed(self.autoencoder)

    def read(self, observation: dict[str, Any]) -> dict[str, Any]:
        seen = self.seen
        return seen.observed(observation, self.device) if isinstance(seen, Placed) else observation

    def sampled_episodes(
        self, batch: TokenBatch, num_merges: Int64[Tensor, "B"]
    ) -> tuple[Episodes, MergeTerms]:
        """One episode of every sample, drawn from the policy, and the terms of its merges."""
        episodes, measured = rollout(
            self.seen,
            self.policy,
            batch,
            self.generator,
            num_merges=num_merges,
            ordered_entropy=self.config.entropy.ordered,
            measure_entropy=self.entropy.measured,
            nearest=self.nearest,
        )
        self.merges_made += int(episodes.steps.sum())
        return episodes, measured

    # ------------------------------------------------------------ learn

    def update(self, progress: float) -> dict[str, float]:
        if self.selects(progress):
            return self.select(progress)
        batch, episodes, scalars = self.learn_from_fresh(progress)
        return scalars | self.train_autoencoder(batch, episodes, progress)

    def learn_from_fresh(self, progress: float) -> tuple[TokenBatch, Episodes, dict[str, float]]:
        """Make new episodes, and let the policy learn from them."""
        config = self.config
        grown = config.batch_size + int(config.batch_growth * self.updates)
        size = self.dataset.affordable(max(config.batch_size, min(grown, config.max_batch_size)))
        batch = self.curriculum.sample(self.dataset, size, self.generator, progress)
        batch = batch.to(self.device)
        if self.cloning.due(progress):
            return batch, *self.clone(batch, progress)
        if self.share.omits_policy(progress):
            return batch, *self.share.learn(batch, progress)
        rows = torch.arange(len(batch.tokens), device=self.device)
        batch = batch.rows(rows.repeat_interleave(config.trees_per_sample))
        return batch, *self.reinforce(batch, progress)

    def clone(self, batch: TokenBatch, progress: float) -> tuple[Episodes, dict[str, float]]:
        """Behaviour cloning of a demonstrator."""
        episodes = self.demonstrated_episodes(batch, self.selection.best)
        return episodes, self.cloning.learn(batch, episodes, progress)

    def reinforce(self, batch: TokenBatch, progress: float) -> tuple[Episodes, dict[str, float]]:
        """Policy gradients on sampled episodes."""
        config = self.config
        num_merges = self.curriculum.num_merges(batch.num_tokens, progress)
        episodes, measured = self.sampled_episodes(batch, num_merges)
        rewards, error = self.rewards_of(batch, episodes)
        terms = self.terms_of(batch, episodes)
        values = terms.values if self.baseline.learns_values else torch.zeros_like(rewards)
        returns = Returns(
            discounted_returns(rewards, config.discount),
            episodes.steps,
            config.trees_per_sample,
            state_values=lambda: values.detach(),
            greedy_returns=lambda: discounted_returns(
                self.rewards_of(batch, self.greedy_episodes(batch, num_merges=num_merges))[0],
                config.discount,
            ),
        )
        advantages = self.baseline.advantages(returns)
        if config.scale_advantages:
            advantages = self.scaled(advantages, episodes.steps)
        coefficient = self.entropy.coefficient(episodes, measured, progress)
        target = self.entropy.target(progress)
        self.optimizer.zero()
        losses = terms.backward(
            measured, advantages, coefficient, config.entropy.ordered, self.generator
        )
        own = slice(None, None, config.trees_per_sample)  # the first tree of every sample
        losses |= self.search.learn(batch.rows(own), error[own])
        if self.baseline.learns_values:
            losses["value"] = value_loss(values, returns.values, episodes.steps)
            losses["value"] = losses["value"] * self.ranks.balance(episodes.steps.sum())
            losses["value"].backward()
        scalars = self.optimizer.step(losses, progress)
        return episodes, {
            **scalars,
            "train/return": float(rewards.sum(1).mean()),
            f"train/{self.autoencoder.error_name}": float(error.mean()),
            "policy/entropy": mean_entropy(episodes, measured, config.entropy.ordered),
            **({} if target is None else {"policy/entropy_target": target}),
        }

    def scaled(
        self, advantages: Float[Tensor, "B M"], steps: Bool[Tensor, "B M"]
    ) -> Float[Tensor, "B M"]:
        """Advantages divided by their root mean square over the steps."""
        summed = torch.stack([advantages.square().sum(), steps.sum().to(advantages)])
        squares, number = self.ranks.sum(summed)
        return advantages / (squares / number.clamp(min=1) + 1e-20).sqrt()

    def train_autoencoder(
        self, batch: TokenBatch, episodes: Episodes, progress: float
    ) -> dict[str, float]:
        """The other half of an update, on the same trees."""
        scalars = {}
        if self.task.mode == "joint":
            scalars = self.trainer.update_in_parts(
                batch, episodes.merges, self.config.trees_per_step, progress
            )
        self.updates += 1
        heights = tree_height(episodes.merges, batch.num_tokens)
        skipped = self.optimizer.guard.skipped + self.skipped_updates
        return {
            **scalars,
            "train/tree_height": float(heights.float().mean()),
            "train/skipped_updates": float(skipped),
        }

    # ------------------------------------------------------------ resume

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            **self.optimizer.state(),
            "baseline": self.baseline.state(),
            "entropy": self.entropy.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.optimizer.restore(state)
        self.baseline.restore(state["baseline"])
        self.entropy.restore(state["entropy"])


class EntropyControl:
    """Gives the coefficient of every episode's mean entropy in the policy's loss.

    Whatever trees the policy makes most, the autoencoder learns best, so that an early habit feeds
    itself. A target for the normalised entropy (1 at first, 0 at the end) keeps the policy from
    settling until the autoencoder is worth exploiting.

    ``ranks`` are the processes whose mean entropy has the target; this one alone if None.
    """

    def __init__(self, config: EntropyConfig, ranks: Ranks | None = None) -> None:
        check_choice("entropy control", config.control, CONTROLS)
        self.config, self.price = config, 0.0
        self.ranks = Ranks() if ranks is None else ranks

    @property
    def measured(self) -> bool:
        """True <--> entropy has a price, or may get one: an estimate does not suffice then."""
        return self.config.target is not None or self.config.bonus != 0

    def target(self, progress: float) -> float | None:
        """The target at this share of the budget, if there is one."""
        if self.config.target is None:
            return None
        return piecewise_linear(self.config.target, progress)

    def coefficient(
        self, episodes: Episodes, terms: MergeTerms, progress: float
    ) -> Float[Tensor, "B 1"]:
        """``dLoss / dEntropy`` of every episode."""
        config, target = self.config, self.target(progress)
        coefficient = torch.full_like(terms.entropy[:, :1], -config.bonus)
        if target is None:
            return coefficient
        if config.control == "distance":
            sign = distance_to_target(episodes, terms, target, config.ordered)
            return coefficient + config.weight * sign
        mean = mean_entropy(episodes, terms, config.ordered)
        if self.ranks.count > 1:
            chosen = float(episodes.open_steps(config.ordered).sum())
            mean = self.ranks.sums(mean * self.ranks.balance(chosen))[0] / self.ranks.count
        low, high = PRICE_LIMITS
        self.price = min(max(self.price + config.rate * (target - mean), low), high)
        return coefficient - self.price - config.weight * (target - mean)

    def state(self) -> dict[str, Any]:
        return {"price": self.price}

    def restore(self, state: dict[str, Any]) -> None:
        self.price = state["price"]


def distance_to_target(
    episodes: Episodes, terms: MergeTerms, target: float, ordered: bool
) -> Float[Tensor, "B 1"]:
    """The sign of every episode's mean normalised entropy less the target: the gradient of
    ``|mean - target|``, the published method's loss."""
    mean = terms.entropy.sum(1) / episodes.open_steps(ordered).sum(1).clamp(min=1)
    return torch.sign(mean - target)[:, None]


@dataclass(frozen=True)
class Curriculum:
    """Episodes and samples that grow over the first part of the budget."""

    merges_share: float = 0.0
    """Share of the budget over which episodes grow from one merge to all of them."""
    population_share: float = 0.0
    """Share of the budget over which samples grow from two tokens to the largest number."""

    def num_merges(self, num_tokens: Int64[Tensor, "B"], progress: float) -> Int64[Tensor, "B"]:
        """The merges to make in each episode, from 1 to ``n - 1``."""
        everything = num_tokens - 1
        if progress >= self.merges_share:
            return everything
        return (everything * (progress / self.merges_share)).ceil().long().clamp(min=1)

    def sample(
        self, dataset: Dataset, batch: int, generator: torch.Generator, progress: float
    ) -> TokenBatch:
        """A batch of ``batch`` samples.

        Of several draws, the samples within the limit are kept, then the smallest of the others:
        data whose samples are all alike is not changed.
        """
        if progress >= self.population_share:
            return dataset.sample(batch, generator)
        limit = math.ceil(2 + (dataset.max_tokens - 2) * progress / self.population_share)
        drawn = dataset.sample(batch * DRAWS, generator)
        excess = (drawn.num_tokens - limit).clamp(min=0)
        return drawn.rows(excess.argsort(stable=True)[:batch])
