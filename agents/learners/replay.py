"""REINFORCE with importance-sampled replay: episodes are stored, and replayed many times.

After each update on fresh episodes come ``replays`` updates on stored ones. The autoencoder has
moved since they were made, so they are encoded and scored anew, level by level; the policy has
moved too, so its gradient is corrected for what it would have chosen (see ``corrections.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from agents.config.dataclasses_json import LARGEST, check_bounds
from agents.demonstrations import Demonstrator
from agents.learners.corrections import (
    CORRECTIONS,
    Again,
    Limits,
    OffPolicy,
    learn_sequences,
    learn_trees,
)
from agents.learners.reinforce import Reinforce, ReinforceConfig
from agents.likelihood.trees import tree_log_probs
from agents.optim.ranks import Processes
from agents.rollouts.rollout import Episodes, MergeTerms, follow, mean_entropy
from htm_env.checks import check_choice
from htm_env.types import TokenBatch
from replay import ReplayBuffer, Trajectories

CORRECTION_NAMES = (*CORRECTIONS, "tree")


@dataclass(frozen=True)
class ReplayConfig(ReinforceConfig):
    """REINFORCE's options, and how episodes are stored and replayed."""

    batch_growth: float = 0.0
    """As REINFORCE's, but none: fresh episodes would outgrow those that are replayed."""
    replays: int = 8
    """Updates on stored episodes after each update on fresh ones."""
    replay_batch_size: int = 64
    """Stored episodes an update."""
    capacity: int = 20_000
    """Episodes stored at most; with the default staleness there are some 400."""
    max_staleness: int | None = 50
    """Episodes older than this many updates are dropped, since an autoencoder that goes on learning
    the trees of a policy long gone is held back by them; 0 keeps the latest batch only, None leaves
    it to the capacity."""
    sampler: str = "uniform"
    """Episodes that are replayed more often: uniform (none), advantage or return."""
    alpha: float = 0.6
    """Exponent of the priorities; 0 is uniform."""
    beta: float = 0.4
    """Exponent of the weights that correct for them; 1 corrects fully."""
    correction: str = "vtrace"
    """vtrace, per_decision, self_normalised, truncated, or tree (ratios of whole trees, exact for
    few tokens and else from sampled sequences; it takes the whole return as earned at the end)."""
    rho_bar: float = 1.0
    """Bound at which importance weights are cut; inf for never. per_decision and self_normalised
    cut them in the critic's targets only."""
    c_bar: float = 1.0
    """Bound at which V-trace's traces are cut."""
    lambda_: float = 1.0
    """Decay of V-trace's traces: 1 sums rewards to the end, 0 over one merge."""
    trust: float = 0.2
    """Most that a stored merge's probability may have moved towards its advantage, as a
    ratio, before its gradient is dropped (as PPO's clip); inf for any distance, as learning from
    stored episodes alone needs it."""
    seed_episodes: int = 0
    """Demonstrations stored before the policy's first update. They grow old as all others do: to
    keep them, set max_staleness to None."""
    demonstration_epsilon: float = 0.02
    """Share of random episodes among the demonstrations, so that every probability is known and
    none is 0; for other policies than the nearest ones."""
    demonstration_temperature: float = 0.05
    """Temperature of a softmax over standardised distances; for nearest and nearest_sorted."""
    demonstration_order_epsilon: float = 0.05
    """Probability of turning a pair around; for nearest_sorted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(
            self,
            replays=0,
            replay_batch_size=(1, LARGEST),
            capacity=1,
            seed_episodes=0,
            c_bar=0,
            lambda_=(0, 1),
            trust=0,
        )
        if any(share < 1 for _, share in self.policy_share):
            raise ValueError(
                f"policy_share is {self.policy_share}; expected 1 throughout: in between, "
                "replay's autoencoder learns from stored episodes"
            )
        if not self.rho_bar > 0:
            raise ValueError(f"rho_bar is {self.rho_bar}; expected more than 0")


class ReplayReinforce(Reinforce):
    """Policy gradients on fresh episodes and on stored ones; the autoencoder learns from both.

    It clones the *stochastic* version of its demonstrator, whose probabilities are known, and as
    long as it clones, stored demonstrations are imitated again: a policy that could not have made
    them learns nothing from their returns. Weights that correct for prioritised sampling are those
    of the policy and its critic; the autoencoder learns from the trees as they were drawn.
    """

    algo = "replay"
    algorithms = ("replay",)
    config_class = ReplayConfig
    config: ReplayConfig

    def __init__(self, env_id: str, config: ReplayConfig | None = None, **task: Any) -> None:
        super().__init__(env_id, config, **task)
        config = self.config
        check_choice("correction", config.correction, CORRECTION_NAMES)
        if config.correction == "tree" and config.nearest is not None:
            raise ValueError(
                "the correction tree needs the probabilities of other merges than were made; "
                f"with candidates={config.candidates!r} choose another"
            )
        if config.correction == "tree" and self.baseline.learns_values and config.discount != 1:
            raise ValueError(
                f"the correction tree learns the value of whole returns, the baseline "
                f"{config.baseline!r} that of returns discounted by {config.discount}; expected "
                "discount 1, or another baseline"
            )
        if config.seed_episodes and not self.demonstrators:
            raise ValueError(
                f"seed_episodes is {config.seed_episodes}, but there is no demonstrator on "
                f"{self.task.env}; expected names in demonstrations"
            )
        self.stochastic_demonstrators = {
            name: Demonstrator(
                policy,
                config.demonstration_epsilon,
                config.demonstration_temperature,
                config.demonstration_order_epsilon,
            )
            for name, policy in self.demonstrators.items()
        }
        # A stream of its own: with the learner's seed it would repeat the learner's numbers.
        own_seed = int(torch.randint(2**62, (), generator=self.generator, device=self.device))
        self.buffer = ReplayBuffer(
            config.capacity,
            generator=torch.Generator().manual_seed(own_seed),
            sampler=config.sampler,
            alpha=config.alpha,
            beta=config.beta,
            max_staleness=config.max_staleness,
            num_slots=self.dataset.max_tokens,
        )
        self.limits = Limits(
            config.discount, config.rho_bar, config.c_bar, config.lambda_, config.trust
        )
        self.seeds_left = config.seed_episodes
        """Demonstrations that are still to be stored."""
        self.replays_left = 0
        """Updates on stored episodes until fresh ones are due."""
        self.fresh_episodes, self.replayed_episodes = 0, 0

    def join(self, processes: Processes) -> None:
        super().join(processes)
        self.ranks.diverge(self.buffer.generator)

    # ------------------------------------------------------------ learn

    def update(self, progress: float) -> dict[str, float]:
        if self.selects(progress):
            return self.select(progress)
        if self.seeds_left:
            self.seed_buffer()
        fresh = self.replays_left == 0 or len(self.buffer) == 0
        if fresh:
            batch, episodes, scalars = self.learn_from_fresh(progress)
            self.replays_left = self.config.replays
            self.fresh_episodes += len(batch.tokens)
        else:
            batch, episodes, scalars = self.learn_from_stored(progress)
            self.replays_left -= 1
            self.replayed_episodes += len(batch.tokens)
        learned_from = self.fresh_episodes + self.replayed_episodes
        scalars |= self.train_autoencoder(batch, episodes, progress)
        return {
            **scalars,
            "replay/fresh_share": self.fresh_episodes / learned_from,
            "replay/ratio": self.replayed_episodes / max(1, self.fresh_episodes),
            "replay/stored": float(len(self.buffer)),
        }

    def learn_from_stored(self, progress: float) -> tuple[TokenBatch, Episodes, dict[str, float]]:
        """Draw stored episodes, encode and score them anew, and let the policy learn from them."""
        config = self.config
        drawn = self.buffer.sample(self.dataset.affordable(config.replay_batch_size))
        stored = drawn.trajectories.to(self.device)
        batch = stored.token_batch
        followed = follow(self.seen, batch, stored.merges)
        episodes = replace(followed, candidates=stored.candidates)
        rewards, error = self.rewards_of(batch, episodes)
        terms = self.terms_of(batch, episodes)
        measured = terms.measured(config.entropy.ordered)
        importance = drawn.weights.to(self.device)
        self.optimizer.zero()
        imitated = self.demonstrated(stored) & self.cloning.due(progress)
        learned = self.learn_off_policy(
            Again(stored, batch, episodes, rewards, terms, measured, importance, imitated)
        )
        if config.sampler != "uniform":
            value = rewards.sum(1) if config.sampler == "return" else learned.advantages
            finite = value.isfinite().cpu()  # a bad episode keeps the priority that it had
            self.buffer.update_priorities(drawn.indices[finite], value.cpu()[finite])
        scalars = self.optimizer.step(learned.losses, progress)
        staleness = (self.updates - stored.policy_version).float()
        return (
            batch,
            episodes,
            {
                **scalars,
                "train/return": float(rewards.sum(1).mean()),
                f"train/{self.autoencoder.error_name}": float(error.mean()),
                "policy/entropy": mean_entropy(episodes, measured, config.entropy.ordered),
                **{f"replay/{name}": value for name, value in learned.weighed.items()},
                "replay/imitated_share": float(imitated.float().mean()),
                "replay/staleness": float(staleness.mean()),
            },
        )

    def learn_off_policy(self, again: Again) -> OffPolicy:
        """The policy's half, by the ratio of the probabilities of trees or of their merges."""
        config = self.config
        scale = self.scaled if config.scale_advantages else lambda advantages, steps: advantages
        if config.correction == "tree":
            log_prob = tree_log_probs(
                self.policy.terms, self.seen, again.batch, again.terms, self.generator
            )
            return learn_trees(again, log_prob, self.limits, scale, self.generator)
        correct, ordered = CORRECTIONS[config.correction], config.entropy.ordered
        return learn_sequences(
            again, correct, self.limits, scale, ordered, self.generator, self.ranks
        )

    def demonstrated(self, stored: Trajectories) -> Bool[Tensor, "B"]:
        """True <--> a demonstrator made the episode."""
        known = torch.tensor([name in self.demonstrators for name in stored.sources])
        return known.to(self.device)[stored.source]

    # ------------------------------------------------------------ store

    def sampled_episodes(
        self, batch: TokenBatch, num_merges: Int64[Tensor, "B"]
    ) -> tuple[Episodes, MergeTerms]:
        """As those of REINFORCE, and stored."""
        episodes, measured = super().sampled_episodes(batch, num_merges)
        tree_log_prob = None
        if self.config.correction == "tree":
            with torch.no_grad():
                terms = self.terms_of(batch, episodes)
                tree_log_prob = tree_log_probs(
                    self.policy.terms, self.seen, batch, terms, self.generator
                )
        self.store(batch, episodes, measured.log_prob, "policy", tree_log_prob)
        return episodes, measured

    def demonstrated_episodes(self, batch: TokenBatch, name: str) -> Episodes:
        """The episodes of the stochastic version of a demonstrator, which are stored."""
        behaviour = self.stochastic_demonstrators[name].behaviour(batch, self.generator)
        merges, log_prob = behaviour.episodes(self.generator)
        episodes = follow(self.seen, batch, merges, self.nearest)
        self.merges_made += int(episodes.steps.sum())
        tree_log_prob = None
        if self.config.correction == "tree":
            tree_log_prob = behaviour.tree_log_prob(merges, self.generator)
        self.store(batch, episodes, log_prob, name, tree_log_prob)
        return episodes

    def seed_buffer(self) -> None:
        """Fill the buffer with episodes of the demonstrator, a batch at a time."""
        size = self.dataset.affordable(self.config.batch_size)
        while self.seeds_left:
            batch = self.sample(min(size, self.seeds_left))
            self.demonstrated_episodes(batch, self.selection.best)
            self.seeds_left -= len(batch.tokens)

    def store(
        self,
        batch: TokenBatch,
        episodes: Episodes,
        log_prob: Float[Tensor, "B M"],
        source: str,
        tree_log_prob: Float[Tensor, "B"] | None,
    ) -> None:
        stored = Trajectories.collected(
            batch,
            episodes.merges,
            log_prob.clamp(max=0.0),  # rounding
            policy_version=self.updates,
            source=source,
            tree_log_prob=tree_log_prob,
            candidates=episodes.candidates,
        )
        self.buffer.add(stored)

    # ------------------------------------------------------------ resume

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "buffer": self.buffer.state(),
            "seeds_left": self.seeds_left,
            "replays_left": self.replays_left,
            "fresh_episodes": self.fresh_episodes,
            "replayed_episodes": self.replayed_episodes,
        }

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.buffer.restore(state["buffer"])
        self.seeds_left = state.get("seeds_left", 0)  # earlier versions began with them
        self.replays_left = state["replays_left"]
        self.fresh_episodes = state["fresh_episodes"]
        self.replayed_episodes = state["replayed_episodes"]
