"""The part that all learners with a policy network share: its options, and how it acts."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.config.dataclasses_json import LARGEST, check_bounds
from agents.config.options import TEST_EPISODES
from agents.config.schedules import ALWAYS, Points, check_points
from agents.encoders import NO_ENCODER, ContextConfig
from agents.fixed import fixed_policy
from agents.learners.base import Learner
from agents.learners.imitation import (
    BY_COST,
    COMPARED,
    ORDERS,
    Cloning,
    Contestant,
    Halving,
    LocalSearch,
    PolicyShare,
    distinct,
    inexact,
    order_names,
)
from agents.likelihood.base import PolicyTerms
from agents.networks.base import MergePolicy
from agents.networks.context import make_policy
from agents.optim.autoencoder_trainer import AutoencoderConfig, AutoencoderTrainer, mean_scalars
from agents.optim.optimizers import GuardedOptimizer, OptimizerConfig, PolicyOptimizer
from agents.rollouts.greedy_search import merge_matchings
from agents.rollouts.rollout import (
    Deviation,
    Episodes,
    compile_ahead,
    follow,
    pair_probabilities,
    rollout,
)
from htm_env.autoencoder import TreeEncoder
from htm_env.candidates import Nearest, advice_on_pairs, check_candidates
from htm_env.datasets import Dataset
from htm_env.files import load_weights
from htm_env.population import final_errors
from htm_env.rewards import EncodedEpisodes, RewardName
from htm_env.types import TokenBatch

FROZEN_SAMPLES = 1024
"""Training samples by which fixed orders are compared under a frozen autoencoder."""


@dataclass(frozen=True)
class PolicyConfig:
    """The options of every learner with a policy network; shares are of the budget."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    policy: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The policy's optimizer, and its critic's."""
    scorer: str | None = None
    """pointer, pair_mlp (the published method's), or merged, which reads what a pair becomes and
    earns, where the merger is known. If not given, merged where it is known, else pointer."""
    encoder: str = NO_ENCODER
    """The context encoder before the scorer, so that a pair's score can depend on the rest of the
    population: none, attention, glom, hierarchical or spans."""
    context: ContextConfig = field(default_factory=ContextConfig)
    """Options of that encoder."""
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
    """incremental, terminal, one_step, right_merges or recurring; the environment's own if not
    given: right_merges for Keys, incremental for all others. In Python also an object (see
    ``htm_env.rewards.reward_on``)."""
    discount: float = 0.8
    """Discount of a reward one merge later."""
    failure: float = 100.0
    """A sample whose error is so many times the median is a failure: a better tree is searched for,
    and imitated; 0 for none, as under a known merger, whose costs have no natural zero."""
    demonstrations: tuple[str, ...] = ()
    """The fixed policies of which one is cloned at first: that whose trees an autoencoder learns
    best where it is followed inexactly. ``conventions`` are sixteen that are drawn at random, so
    that nothing written is seen. Without any, all that need no hierarchy and put pairs in an order
    (see ``agents.learners.imitation.ORDERS``); where the merger is known, greedy; and none where
    something else than the fall of the error is rewarded."""
    demonstration_race: float = 0.15
    """Share of the budget in which that one is selected, at most, by successive halving in rounds
    of 128 updates; where the autoencoder is frozen, one update selects it."""
    demonstration_share: Points = ((0.25, 1.0), (0.4, 0.0))
    """(share, probability) points: how many updates clone a demonstration; 0 0 for none."""
    policy_share: Points = ALWAYS
    """(share, probability) points: how many of the updates that do not clone train the policy. In
    the others the autoencoder learns alone, from the greedy trees of the policy, of which only
    failures are corrected. Where the autoencoder is frozen, or the reward is neither incremental
    nor terminal, every update trains the policy anyway. 0 1 for every update."""

    def __post_init__(self) -> None:
        check_bounds(
            self,
            policy_hidden_dim=(1, LARGEST),
            trees_per_step=(1, LARGEST),
            discount=(0, 1),
            failure=0,
            demonstration_race=(0, 1),
        )
        check_candidates(self.candidates, self.k, self.neighbours)
        check_points("demonstration_share", self.demonstration_share)
        check_points("policy_share", self.policy_share)

    @property
    def nearest(self) -> Nearest | None:
        """The rule for candidates; None for all pairs."""
        return check_candidates(self.candidates, self.k, self.neighbours)


class PolicyLearner(Learner):
    """A learner whose merges come from a policy network.

    A subclass makes the network and its optimizer, and hands both to :meth:`set_up`.
    """

    policy: MergePolicy
    """The network; the same one for every learner, so that a comparison compares algorithms."""
    config: PolicyConfig
    cloning: Cloning
    """Imitation of fixed orders in the first updates; no reward enters its gradient."""
    search: LocalSearch
    """Better trees for samples with extreme errors: one merge of a greedy tree is changed, and
    imitated where that helps."""
    share: PolicyShare
    """Later updates in which the autoencoder alone learns, from greedy trees."""

    def __init__(self, env_id: str, config: Any = None, **task: Any) -> None:
        super().__init__(env_id, config, **task)
        self.seen = self.encoder_of_policy()
        """The encoder whose embeddings the policy reads."""
        self.nearest = self.config.nearest
        """The rule for candidates; None for all pairs."""
        self._in_rounds = False
        self._acting = torch.Generator(self.device).manual_seed(self.task.seed)
        decodes = self.autoencoder.decodes
        usual = BY_COST if not decodes else ORDERS if self.reward.is_fall_of_error else ()
        names = order_names(self.config.demonstrations or usual, self.task.seed)
        self.selection = Halving(names, self.config.demonstration_race)
        """The fixed orders of which one is selected, and cloned."""
        self.demonstrators = {
            name: fixed_policy(name, self.autoencoder, self.dataset)
            for name in self.selection.names
        }
        self.clones = bool(names) and any(share > 0 for _, share in self.config.demonstration_share)
        """True <--> some updates clone a fixed order."""
        if self.clones:
            # raises where a policy needs what the data does not have
            one = self.dataset.fixed(1).to(self.device)
            for demonstrator in self.demonstrators.values():
                demonstrator.plan(one, torch.Generator(self.device))

    def encoder_of_policy(self) -> TreeEncoder:
        """The autoencoder itself, or one whose embeddings hold more."""
        return self.autoencoder

    def read(self, observation: dict[str, Any]) -> dict[str, Any]:
        """An observation of the environment as the policy reads it, with the embeddings of
        :attr:`seen`."""
        return observation

    def make_policy(self) -> MergePolicy:
        """The untrained network."""
        config = self.config
        return make_policy(
            config.scorer,
            self.seen.embedding_dim,
            config.policy_hidden_dim,
            config.encoder,
            config.context,
            self.dataset.token_dim,
            self.autoencoder,
        )

    def set_up(
        self,
        policy: MergePolicy,
        optimizer: PolicyOptimizer,
        *,
        ordered: bool = False,
        value_weight: float = 0.0,
    ) -> None:
        """Take the network and its optimizer, and make the components that train with them.

        Cloning has an optimizer of its own. At its end gradients are small, and so are Adam's
        averages of their squares: the first gradients of rewards, divided by those, would undo what
        was cloned. ``ordered`` and ``value_weight`` are those of :class:`Cloning`.
        """
        config, falls = self.config, self.reward.is_fall_of_error
        self.policy = policy
        if self.device.type == "cpu" and self.nearest is None and self.autoencoder.decodes:
            compile_ahead(self.seen, policy, self.dataset.token_dim)
        roll, errors_of, terms_of = self.greedy_episodes, self.errors_of, self.terms_of
        # With other rewards a large error is no failure, and costs have no zero to be times of.
        failure = config.failure if falls and self.autoencoder.decodes else 0.0
        generator = self.generator
        self.search = LocalSearch(failure, roll, errors_of, terms_of, generator, ranks=self.ranks)
        points = config.policy_share if falls and self.task.mode == "joint" else ALWAYS
        self.share = PolicyShare(points, self.search, optimizer, roll, errors_of, generator)
        self.cloning = Cloning(
            self.selection,
            config.demonstration_share,
            terms_of,
            self.rewards_of,
            GuardedOptimizer("policy", policy.parameters(), config.policy, ranks=self.ranks),
            generator,
            ordered,
            value_weight,
            config.discount,
            self.autoencoder.error_name,
            self.ranks,
        )

    # ------------------------------------------------------------ act

    def plan(
        self, batch: TokenBatch, generator: torch.Generator, *, greedy: bool
    ) -> Int64[Tensor, "B M 2"]:
        nearest = self.nearest
        if greedy and self._in_rounds:
            return merge_matchings(self.seen, self.policy, batch, nearest)
        return self.policy.plan(self.seen, batch, generator, greedy=greedy, nearest=nearest)

    def other_trees(
        self, count: int, batch: TokenBatch, seeds: Int64[Tensor, "B"]
    ) -> Int64[Tensor, "B S M 2"]:
        """Drawn from the policy, without replacement."""
        from agents.rollouts.distinct_trees import distinct_trees  # no update needs it

        return distinct_trees(self.seen, self.policy, batch, count, seeds, self.nearest).merges

    def pair_probabilities(
        self, batch: TokenBatch, merges: Int64[Tensor, "1 M 2"]
    ) -> list[tuple[Tensor, Tensor]]:
        return pair_probabilities(self.policy, self.seen, batch, merges, self.nearest)

    def merge_in_rounds(self) -> None:
        self._in_rounds = True

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
        observation = self.read(observation)
        return self.policy.act(observation, self._acting, deterministic, state, episode_start)

    def greedy_episodes(
        self,
        batch: TokenBatch,
        deviation: Deviation | None = None,
        num_merges: Int64[Tensor, "B"] | None = None,
    ) -> Episodes:
        """The episodes that the policy makes of the best pairs, but for a deviation."""
        episodes, _ = rollout(
            self.seen,
            self.policy,
            batch,
            self.generator,
            greedy=True,
            num_merges=num_merges,
            measure_entropy=False,
            nearest=self.nearest,
            deviation=deviation,
        )
        self.merges_made += int(episodes.steps.sum())
        return episodes

    def advice(self) -> str | None:
        trees = self.dataset.affordable(getattr(self.config, "batch_size", 1))
        trees *= getattr(self.config, "trees_per_sample", 1)
        return advice_on_pairs(self.dataset.max_tokens, self.nearest, trees)

    @property
    def skipped_updates(self) -> int:
        """Steps of the autoencoder that were left out, since their numbers were not finite."""
        return self.trainer.guard.skipped if self.task.mode == "joint" else 0

    def demonstrated_episodes(self, batch: TokenBatch, name: str) -> Episodes:
        """The episodes of a demonstrator."""
        merges = self.demonstrators[name].plan(batch, self.generator)
        episodes = follow(self.seen, batch, merges, self.nearest)
        self.merges_made += int(episodes.steps.sum())
        return episodes

    # ------------------------------------------------------------ select what to clone

    @cached_property
    def contestants(self) -> dict[str, Contestant]:
        """The orders that take part in the selection, each with an autoencoder of its own, all
        with the same weights at first."""
        made = {}
        for name in self.selection.remaining:
            autoencoder = copy.deepcopy(self.autoencoder)
            trainer = AutoencoderTrainer(
                autoencoder.decoding(),
                self.config.autoencoder,
                self.generator,
                self.ranks,
                self.dataset.kind,
            )
            made[name] = Contestant(fixed_policy(name, autoencoder, self.dataset), trainer)
        return made

    def selects(self, progress: float) -> bool:
        """True <--> the demonstrator is still to be selected in this update.

        When it is selected, its autoencoder becomes the learner's.
        """
        if not self.selection.open or not self.clones:
            return False
        self.selection.advance(progress)
        if not self.selection.open and "contestants" in vars(self):
            winner = self.contestants[self.selection.best].state()
            load_weights(self.autoencoder, winner["autoencoder"])
            self.trainer.restore(winner["trainer"])
            del self.contestants
        return self.selection.open

    def select(self, progress: float) -> dict[str, float]:
        """One lap of the selection: every order that remains merges the same samples, and its
        autoencoder learns from them. Of orders that make the same trees the first takes part."""
        if self.task.mode == "frozen":
            return self.select_at_once()
        if self.selection.fresh:
            few = self.dataset.fixed(self.dataset.affordable(COMPARED)).to(self.device)
            self.selection.begin(distinct(self.demonstrators, few))
        batch = self.sample(self.dataset.affordable(self.config.trees_per_step))
        followed = inexact(batch, self.std, self.generator)
        errors, rows = {}, []
        for name in self.selection.remaining:
            contestant = self.contestants[name]
            merges, scalars = contestant.learn(batch, followed, self.generator, progress)
            errors[name] = scalars["loss/reconstruction"]
            rows.append(scalars)
            self.merges_made += int((merges[..., 0] >= 0).sum())
        self.selection.report(errors)
        return self._compared(errors) | mean_scalars(rows)

    def select_at_once(self) -> dict[str, float]:
        """The selection under a frozen autoencoder: the order with the least error."""
        batch = self.sample(self.dataset.affordable(FROZEN_SAMPLES))
        errors = {}
        for name in self.selection.remaining:
            merges = self.demonstrators[name].plan(batch, self.generator)
            mean = self.errors(batch, merges).nan_to_num(torch.inf).mean()
            errors[name] = float(self.ranks.mean(mean))
            self.merges_made += int((merges[..., 0] >= 0).sum())
        self.selection.choose(min(errors, key=errors.__getitem__))
        return self._compared(errors)

    def _compared(self, errors: dict[str, float]) -> dict[str, float]:
        """The scalars of an update that compared orders."""
        self.updates += 1
        tag = self.autoencoder.error_name
        return {
            f"train/{tag}": min(errors.values()),
            **{f"demonstrations/{tag}_{name}": error for name, error in errors.items()},
        }

    # ------------------------------------------------------------ learn

    def terms_of(self, batch: TokenBatch, episodes: Episodes) -> PolicyTerms:
        """The terms of episodes under the policy, with gradients."""
        return self.policy.terms(self.seen, batch, episodes)

    def rewards_of(self, batch: TokenBatch, episodes: Episodes) -> tuple[Tensor, Tensor]:
        """The reward of every merge, 0 in padding, and the ``nmse`` where each episode ends."""
        nodes = episodes.nodes[..., : self.autoencoder.embedding_dim]
        encoded = EncodedEpisodes(self.autoencoder, batch, episodes.merges, nodes, self.std)
        return self.reward.episode(encoded), encoded.error

    def errors_of(self, batch: TokenBatch, episodes: Episodes) -> Float[Tensor, "B"]:
        """The ``nmse`` where each episode ends, which alone is cheaper."""
        nodes = episodes.nodes[..., : self.autoencoder.embedding_dim]
        return final_errors(self.autoencoder, batch, episodes.merges, nodes, self.std)

    # ------------------------------------------------------------ scores

    def evaluate(
        self, dataset: Dataset, count: int = TEST_EPISODES, *, sampled: bool = True
    ) -> dict[str, float | None]:
        """As every learner's, and with the sampled trees the diagnoses of the greedy ones (see
        :func:`agents.evaluation.shapes.tree_diagnoses`)."""
        scores = super().evaluate(dataset, count, sampled=sampled)
        if not sampled:
            return scores
        from agents.evaluation.shapes import tree_diagnoses  # nothing that learns needs it

        cloned = self.demonstrators[self.selection.best] if self.clones else None
        return scores | tree_diagnoses(self, cloned, dataset, self.device, count)

    # ------------------------------------------------------------ resume

    def state(self) -> dict[str, Any]:
        made = vars(self).get("contestants", {})
        left = self.selection.remaining
        contestants = {name: made[name].state() for name in made if name in left}
        return {
            **super().state(),
            "policy": copy.deepcopy(self.policy.state_dict()),
            "selection": self.selection.state(),
            "cloning": self.cloning.optimizer.state(),
            **({"contestants": contestants} if contestants else {}),
        }

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        load_weights(self.policy, state["policy"])
        if "selection" in state:  # earlier versions shared one autoencoder, and clone what is left
            self.selection.restore(state["selection"])
        if "cloning" in state:  # ... and one optimizer
            self.cloning.optimizer.restore(state["cloning"])
        for name, contestant in state.get("contestants", {}).items():
            self.contestants[name].restore(contestant)
