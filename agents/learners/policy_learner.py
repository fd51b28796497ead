"""What the learners that train a policy network have in common: its options, and how it acts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from agents.config.dataclasses_json import check_bounds
from agents.config.schedules import ALWAYS, Points, check_points, piecewise_linear
from agents.demonstrations.race import Race, demonstrators_of
from agents.encoders import NO_ENCODER, ContextConfig
from agents.fixed import fixed_policy
from agents.learners.base import Learner
from agents.learners.failures import failures, lesson
from agents.likelihood.judging import judge
from agents.networks.acting import act
from agents.networks.base import MergePolicy
from agents.networks.context import make_policy
from agents.optim.autoencoder_trainer import AutoencoderConfig
from agents.optim.optimizers import OptimizerConfig
from agents.rollouts.deviation import Deviation
from agents.rollouts.planning import planned_merges
from agents.rollouts.rollout import Rollout, rollout
from htm_env.candidates.neighbours import Nearest, check_candidates
from htm_env.population import final_errors
from htm_env.rewards import EncodedEpisodes, RewardName, reward_on
from htm_env.types import TokenBatch


@dataclass(frozen=True)
class PolicyConfig:
    """The options of every learner with a policy network; shares are of the budget."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    policy: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The policy's optimizer, and its critic's."""
    scorer: str = "pointer"
    """pointer, or pair_mlp (the published method's)."""
    encoder: str = NO_ENCODER
    """What stands in front of the scorer, so that a pair's score can depend on the rest of the
    population: none, attention, glom, hierarchical or spans."""
    context: ContextConfig = field(default_factory=ContextConfig)
    """Of that encoder."""
    candidates: str = "all"
    """The pairs to choose from: all, or knn: of every token with its nearest, so that memory grows
    as the tokens and not as their square."""
    k: int = 8
    """knn: the partners of a token at most."""
    neighbours: str = "embeddings"
    """knn: near in what: embeddings, or centroids (mean coordinates of a token's leaves)."""
    policy_hidden_dim: int = 128
    """Width of the policy's hidden layers."""
    trees_per_step: int = 32
    """Trees that one step of the autoencoder learns from; an update makes as many steps as its
    trees allow."""
    reward: RewardName | None = None
    """incremental, terminal, one_step or right_merges; the environment's own if not given:
    right_merges for Keys, incremental for all others. In Python also an object (see
    :func:`htm_env.rewards.reward_on`)."""
    discount: float = 0.8
    """Of a reward one merge later."""
    failure: float = 100.0
    """A sample whose error is so many times the median is a failure: a better tree is searched for,
    and imitated; 0 for none."""
    demonstrations: tuple[str, ...] = ()
    """The fixed policies that are cloned at first. Several take turns, until it shows whose trees
    the autoencoder learns best; without any, the one that is known to suit the environment (on Keys
    none does, and nothing is cloned), and on data of your own nearest_sorted, even_sorted and
    balanced_sorted."""
    demonstration_race: float = 0.1
    """Share of the budget after which only that one is cloned."""
    demonstration_share: Points = ((0.12, 1.0), (0.3, 0.0))
    """(share, probability) points: how many updates clone a demonstration; 0 0 for none."""
    policy_share: Points = ALWAYS
    """(share, probability) points: how many of the updates that do not clone teach the policy. In
    the rest the autoencoder learns alone, from the whole trees that the policy thinks best, and of
    the policy only failures are mended. Where the autoencoder is frozen, or the reward is neither
    incremental nor terminal, every update teaches anyway. 0 1 for every update."""

    def __post_init__(self) -> None:
        many = (1, math.inf)
        check_bounds(
            self,
            policy_hidden_dim=many,
            trees_per_step=many,
            discount=(0, 1),
            failure=(0, math.inf),
        )
        check_candidates(self.candidates, self.k, self.neighbours)
        check_points("demonstration_share", self.demonstration_share)
        check_points("policy_share", self.policy_share)
        check_bounds(self, demonstration_race=(0, 1))

    @property
    def nearest(self) -> Nearest | None:
        """The rule for candidates; None for all pairs."""
        return check_candidates(self.candidates, self.k, self.neighbours)


class PolicyLearner(Learner):
    """A learner whose merges come from a policy network."""

    policy: MergePolicy
    """The network; the same one for every learner, so that a comparison compares algorithms."""
    config: PolicyConfig
    merge_rounds: bool = False
    """Whether greedy plans merge a whole matching of disjoint pairs at a time."""

    def __init__(self, env_id: str, config: Any = None, **task: Any) -> None:
        super().__init__(env_id, config, **task)
        self.reward = reward_on(self.dataset, self.config.reward)
        """The reward that it learns from."""
        self._acting = torch.Generator(self.device).manual_seed(self.task.seed)
        names = self.config.demonstrations or demonstrators_of(self.task.env_id)
        self.demonstrators = {name: fixed_policy(name) for name in names}
        self.race = Race(names, self.config.demonstration_race)
        if any(share > 0 for _, share in self.config.demonstration_share):
            # raises where a policy asks for what the data does not have
            one = self.dataset.fixed(1).to(self.device)
            for demonstrator in self.demonstrators.values():
                demonstrator.merges(one, self.autoencoder, torch.Generator(self.device))

    def _make_policy(self) -> MergePolicy:
        """The untrained network."""
        config = self.config
        return make_policy(
            config.scorer,
            self.autoencoder.embedding_dim,
            config.policy_hidden_dim,
            config.encoder,
            config.context,
            self.dataset.token_dim,
        )

    def plan(
        self, batch: TokenBatch, generator: torch.Generator, *, greedy: bool
    ) -> Int64[Tensor, "B M 2"]:
        return planned_merges(
            self.autoencoder,
            self.policy,
            batch,
            self.config.nearest,
            generator,
            greedy=greedy,
            rounds=self.merge_rounds,
        )

    def predict(
        self,
        observation: dict[str, Any],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """An action for an observation of the environment, or one for each of a batch of them.

        As in Stable-Baselines3: returns ``(action, state)``; ``deterministic`` takes the best pair.
        The state is None, but for an encoder that carries one from merge to merge: hand it back
        with the next observation, and None at an episode's first (of a batch: mark the rows in
        ``episode_start``).
        The observation has to come from an environment with this agent's autoencoder. In a batch,
        an episode that has ended gets action 0, which the next reset ignores. Sampling draws from a
        generator of its own, so that acting does not change training. Raises ``ValueError`` for
        another embedding dimension, or for the observation of a single episode that has ended.
        """
        return act(self.policy, observation, self._acting, deterministic, state, episode_start)

    def _rewards_of(self, batch: TokenBatch, episodes: Rollout) -> tuple[Tensor, Tensor]:
        """The reward of every merge, 0 in padding, and the ``nmse`` where each episode ends."""
        encoded = EncodedEpisodes(
            self.autoencoder, batch, episodes.merges, episodes.nodes, self.std
        )
        return self.reward.episode(encoded), encoded.error

    def _final_errors(self, batch: TokenBatch, episodes: Rollout) -> Tensor:
        return final_errors(self.autoencoder, batch, episodes.merges, episodes.nodes, self.std)

    def _learn_from_failures(self, batch: TokenBatch, errors: Tensor) -> dict[str, Tensor]:
        """Imitate what a search finds better where the policy fails (see ``failures.py``).

        Accumulates the gradient; returns the loss, if anything was found.
        """
        if not self.config.failure or not self.reward.is_fall_of_error:
            return {}
        failed = failures(errors, self.config.failure)
        if not len(failed):
            return {}

        found = lesson(
            batch.rows(failed),
            errors[failed],
            self._greedy,
            self._final_errors,
            self.generator,
        )
        if found is None:
            return {}
        judgement = judge(self.policy, self.autoencoder, found.batch, found.episodes)
        seen = judgement.judged(ordered=True)
        once = torch.zeros_like(seen.log_prob).scatter_(1, found.step[:, None], 1.0)
        losses = judgement.learn(seen, once, once[:, :1] * 0, ordered=True)
        return {"failures": losses["policy"]}

    def _greedy(self, batch: TokenBatch, deviation: Deviation | None = None) -> Rollout:
        """The trees that the policy thinks best, but for a deviation."""
        episodes = rollout(
            self.autoencoder,
            self.policy,
            batch,
            self.generator,
            greedy=True,
            measure_entropy=False,
            nearest=self.config.nearest,
            deviation=deviation,
        )
        self.merges_made += int(episodes.steps.sum())
        return episodes

    def _clones_now(self, progress: float) -> bool:
        """Whether this update imitates a demonstrator, by lot."""
        share = piecewise_linear(self.config.demonstration_share, progress)
        if share <= 0 or not self.demonstrators:
            return False
        return float(torch.rand((), generator=self.generator, device=self.device)) < share

    def _mended(self, batch: TokenBatch) -> tuple[Rollout, dict[str, Tensor], dict[str, float]]:
        """Greedy trees for an autoencoder that learns alone.

        Accumulates the gradient of what mends failures among them; returns its loss, if there is
        one, and what to log.
        """
        episodes = self._greedy(batch)
        error = self._final_errors(batch, episodes)
        losses = self._learn_from_failures(batch, error)
        return episodes, losses, {"train/greedy_nmse": float(error.mean())}

    def _rests_now(self, progress: float) -> bool:
        """Whether the autoencoder learns alone in this update, by lot."""
        share = piecewise_linear(self.config.policy_share, progress)
        if share >= 1 or self.task.mode == "frozen" or not self.reward.is_fall_of_error:
            return False
        return float(torch.rand((), generator=self.generator, device=self.device)) >= share

    def _report_to_race(self, demonstrator: str, error: float, progress: float) -> dict[str, float]:
        """Let the race know how well the trees of this update were reconstructed."""
        self.race.report(demonstrator, error, progress)
        return {f"demonstrations/nmse_{demonstrator}": error}

    def state(self) -> dict[str, Any]:
        return {**super().state(), "race": self.race.state()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        if "race" in state:  # checkpoints that are older know one demonstrator, and need none
            self.race.restore(state["race"])
