"""REINFORCE with importance-sampled replay: trees are stored, and learned from again and again.

After each update on fresh episodes come ``replays`` updates on stored ones. The autoencoder has
moved since they were made, so they are encoded and scored anew, level by level; the policy has
moved too, so its gradient is corrected for what it would have chosen (see ``off_policy.py``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from agents.demonstrations import Demonstrator
from agents.evaluation.evaluate import root_errors
from agents.learners.corrections import CORRECTIONS, Limits
from agents.learners.entropy import mean_entropy
from agents.learners.off_policy import Again, OffPolicy, learn_sequences, learn_trees
from agents.learners.reinforce import Reinforce
from agents.learners.replay_config import CORRECTION_NAMES, ReplayConfig
from agents.likelihood.tree_probabilities import tree_log_probs
from agents.rollouts.rollout import Rollout, follow
from htm_env.types import TokenBatch
from replay import ReplayBuffer, Trajectories


class ReplayReinforce(Reinforce):
    """Policy gradients on fresh episodes and on stored ones; the autoencoder learns from both.

    It clones the *stochastic* version of its demonstrator, whose probabilities are known, and as
    long as it clones, stored demonstrations are imitated again: a policy that could not have made
    them learns nothing from their returns. Weights that correct for prioritised sampling are those
    of the policy and its critic; the autoencoder learns from the trees as they were drawn.
    """

    algo = "replay"
    config_class = ReplayConfig
    config: ReplayConfig

    def __init__(self, env_id: str, config: ReplayConfig | None = None, **task: Any) -> None:
        super().__init__(env_id, config, **task)
        config = self.config
        if config.correction not in CORRECTION_NAMES:
            raise ValueError(
                f"unknown correction {config.correction!r}; choose from {list(CORRECTION_NAMES)}"
            )
        if config.correction == "tree" and config.nearest is not None:
            raise ValueError(
                "the correction tree asks for the probabilities of other merges than were made; "
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
                f"seed_episodes is {config.seed_episodes}, but nobody demonstrates on "
                f"{self.task.env_id} unless asked for; expected names in demonstrations"
            )
        self.stochastic_demonstrators = {
            name: Demonstrator(
                name,
                config.demonstration_epsilon,
                config.demonstration_temperature,
                config.demonstration_order_epsilon,
            )
            for name in self.demonstrators
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
        self.replays_left = 0
        """Updates on stored episodes until fresh ones are due."""
        self.fresh_episodes, self.replayed_episodes = 0, 0

    # ------------------------------------------------------------ learn

    def update(self, progress: float) -> dict[str, float]:
        if self.updates == 0 and self.config.seed_episodes:
            self._seed()
        fresh = self.replays_left == 0 or len(self.buffer) == 0
        if fresh:
            batch, episodes, scalars = self._learn_afresh(progress)
            self.replays_left = self.config.replays
            self.fresh_episodes += len(batch.tokens)
        else:
            batch, episodes, scalars = self._learn_again(progress)
            self.replays_left -= 1
            self.replayed_episodes += len(batch.tokens)
        learned_from = self.fresh_episodes + self.replayed_episodes
        scalars |= self._train_autoencoder(batch, episodes, progress)
        return {
            **scalars,
            "replay/fresh_share": self.fresh_episodes / learned_from,
            "replay/ratio": self.replayed_episodes / max(1, self.fresh_episodes),
            "replay/stored": float(len(self.buffer)),
        }

    def _learn_again(self, progress: float) -> tuple[TokenBatch, Rollout, dict[str, float]]:
        """Draw stored episodes, encode and score them anew, and let the policy learn from them."""
        config, drawn = self.config, self.buffer.sample(self.config.replay_batch_size)
        stored = drawn.trajectories.to(self.device)
        batch = stored.token_batch
        followed = follow(self.autoencoder, batch, stored.merges)
        episodes = replace(followed, candidates=stored.candidates)
        rewards, error = self._rewards_of(batch, episodes)
        judgement = self._judge(batch, episodes)
        episodes = judgement.judged(config.entropy.ordered)
        importance = drawn.weights.to(self.device)
        self.optimizer.zero()
        imitated = self._demonstrated(stored) & self._clones_now(progress)
        learned = self._learn_from(
            Again(stored, batch, episodes, rewards, judgement, importance, imitated)
        )
        if config.sampler != "uniform":
            value = rewards.sum(1) if config.sampler == "return" else learned.advantages
            finite = value.isfinite().cpu()  # a bad episode keeps the priority that it had
            self.buffer.update_priorities(drawn.indices[finite], value.cpu()[finite])
        scalars = self._step_policy(learned.losses, progress)
        staleness = (self.updates - stored.policy_version).float()
        return (
            batch,
            episodes,
            {
                **scalars,
                "train/return": float(rewards.sum(1).mean()),
                "train/nmse": float(error.mean()),
                "policy/entropy": mean_entropy(episodes, config.entropy.ordered),
                **{f"replay/{name}": value for name, value in learned.weighed.items()},
                "replay/imitated_share": float(imitated.float().mean()),
                "replay/staleness": float(staleness.mean()),
            },
        )

    def _learn_from(self, again: Again) -> OffPolicy:
        """The policy's half, by the ratio of the probabilities of trees or of their merges."""
        config = self.config
        if config.correction == "tree":
            log_prob = tree_log_probs(
                *(self.policy, self.autoencoder, again.batch, again.episodes),
                *(again.judgement, self.generator),
            )
            return learn_trees(again, log_prob, self.limits, self._scaled, self.generator)
        correct, ordered = CORRECTIONS[config.correction], config.entropy.ordered
        return learn_sequences(again, correct, self.limits, self._scaled, ordered, self.generator)

    def _demonstrated(self, stored: Trajectories) -> Bool[Tensor, "B"]:
        """True <--> a demonstrator made the episode."""
        known = torch.tensor([name in self.demonstrators for name in stored.sources])
        return known.to(self.device)[stored.source]

    # ------------------------------------------------------------ store

    def _roll(self, batch: TokenBatch, num_merges: Tensor, *, greedy: bool) -> Rollout:
        episodes = super()._roll(batch, num_merges, greedy=greedy)
        if not greedy:  # those are a baseline
            tree_log_prob = None
            if self.config.correction == "tree":
                with torch.no_grad():
                    tree_log_prob = tree_log_probs(
                        *(self.policy, self.autoencoder, batch, episodes),
                        *(self._judge(batch, episodes), self.generator),
                    )
            self._store(batch, episodes, "policy", tree_log_prob)
        return episodes

    def _demonstrate(self, batch: TokenBatch, demonstrator: str) -> Rollout:
        policy = self.stochastic_demonstrators[demonstrator]
        behaviour = policy.behaviour(batch, self.autoencoder, self.generator)
        merges, log_prob = behaviour.episodes(self.generator)
        followed = follow(self.autoencoder, batch, merges, self.config.nearest)
        episodes = replace(followed, log_prob=log_prob)
        tree_log_prob = None
        if self.config.correction == "tree":
            tree_log_prob = behaviour.tree_log_prob(merges, self.generator)
        self._store(batch, episodes, demonstrator, tree_log_prob)
        return episodes

    @torch.no_grad()
    def _plan_error(
        self, batch: TokenBatch, demonstrator: str, error: Tensor, progress: float
    ) -> float:
        """The race is between plans, not between what their stochastic versions do to them."""
        if progress >= self.race.end:
            return float(error.mean())
        policy = self.demonstrators[demonstrator]
        merges = policy.merges(batch, self.autoencoder, self.generator)
        return float(root_errors(self.autoencoder, batch, merges, self.std).mean())

    def _seed(self) -> None:
        """Fill the buffer with demonstrations, as many at a time as a batch has."""
        names, size, total = self.race.entrants, self.config.batch_size, self.config.seed_episodes
        for number, start in enumerate(range(0, total, size)):
            count = min(size, total - start)
            batch = self.dataset.sample(count, self.generator).to(self.device)
            # Nobody has raced yet: all of them, one after the other.
            episodes = self._demonstrate(batch, names[number % len(names)])
            self.merges_made += int(episodes.steps.sum())

    def _store(
        self, batch: TokenBatch, episodes: Rollout, source: str, tree_log_prob: Tensor | None
    ) -> None:
        stored = Trajectories.collected(
            batch,
            episodes.merges,
            episodes.log_prob.clamp(max=0.0),  # rounding
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
            "replays_left": self.replays_left,
            "fresh_episodes": self.fresh_episodes,
            "replayed_episodes": self.replayed_episodes,
        }

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.buffer.restore(state["buffer"])
        self.replays_left = state["replays_left"]
        self.fresh_episodes = state["fresh_episodes"]
        self.replayed_episodes = state["replayed_episodes"]
