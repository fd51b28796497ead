"""What a policy thinks of episodes, whoever made them: the half of learning that every loss needs.

A policy to which a token looks the same in every population scores each pair of an episode's nodes
once, however many steps the pair was there (``losses.py``). One with a context encoder looks at
every population of the episode by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from agents.choices import TINY, most_entropy
from agents.context_policy import ContextPolicy, Look
from agents.losses import policy_gradient_step
from agents.pair_scores import node_states, population_observation
from agents.policy import ILLEGAL, MergePolicy, NodePolicy
from agents.probabilities import judged, sequence_log_probs
from agents.rollout import Rollout
from htm_env.autoencoder import HTMAutoencoder
from htm_env.forest import leaf_sets
from htm_env.types import TokenBatch

TOKENS_AT_A_TIME = 65_536
"""Tokens that are looked at together; beyond them memory is saved by looking twice."""
PAIRS_AT_A_TIME = 2**22
"""And pairs of tokens that are scored together."""


class Judgement(ABC):
    """A policy's view of ``episodes``, with gradients."""

    @abstractmethod
    def judged(self, ordered: bool) -> Rollout:
        """The same episodes, with what this policy thinks of their merges; no gradients.

        ``ordered`` says whether the order within a pair counts as a choice in the entropy.
        """

    @property
    @abstractmethod
    def log_probs(self) -> Float[Tensor, "B M"]:
        """Of every merge; 0 in padding. Differentiable."""

    @property
    @abstractmethod
    def values(self) -> Float[Tensor, "B M"]:
        """Of the state before every merge. Differentiable."""

    @abstractmethod
    def learn(
        self,
        episodes: Rollout,
        advantages: Float[Tensor, "B M"],
        entropy_coefficient: Float[Tensor, "B 1"],
        ordered: bool,
    ) -> dict[str, Float[Tensor, ""]]:
        """Accumulate the gradient of REINFORCE's loss (Williams 1992); returns its parts.

        ``loss = mean over episodes of [- sum over t of advantage_t * log pi_t + coefficient * mean
        over t of entropy_t]``, plus the encoder's own losses. ``episodes`` are those that are
        judged, with what the policy thinks of them.
        """


class NodeJudgement(Judgement):
    """Of a pair scorer alone: every node is looked at once."""

    def __init__(self, policy: NodePolicy, episodes: Rollout) -> None:
        self.policy, self.episodes = policy, episodes
        self.features = policy.features(episodes.nodes, episodes.leaf_counts)

    def judged(self, ordered: bool) -> Rollout:
        return judged(self.policy, self.episodes, self.features, ordered)

    @cached_property
    def log_probs(self) -> Float[Tensor, "B M"]:
        scores = self.policy.node_scores(self.features, lambda: self.episodes.coactive)
        return sequence_log_probs(scores, self.episodes.merges, self.episodes.active)[0]

    @cached_property
    def values(self) -> Float[Tensor, "B M"]:
        return self.policy.values(self.features, self.episodes.members)

    def learn(
        self,
        episodes: Rollout,
        advantages: Float[Tensor, "B M"],
        entropy_coefficient: Float[Tensor, "B 1"],
        ordered: bool,
    ) -> dict[str, Float[Tensor, ""]]:
        return policy_gradient_step(
            self.policy, episodes, advantages, entropy_coefficient, self.features, ordered
        )


class Steps(NamedTuple):
    """What a policy with context thinks of ``S`` populations and the merges made in them."""

    log_prob: Float[Tensor, "S"]
    log_total: Float[Tensor, "S"]
    value: Float[Tensor, "S"]
    entropy: Float[Tensor, "S"]
    """In nats, with the order within a pair as a choice."""
    unordered_entropy: Float[Tensor, "S"]


class ContextJudgement(Judgement):
    """Of a policy with a context encoder: every population is looked at."""

    def __init__(
        self,
        policy: ContextPolicy,
        autoencoder: HTMAutoencoder,
        batch: TokenBatch,
        episodes: Rollout,
    ) -> None:
        self.policy, self.episodes = policy, episodes
        self._batch, self._leaves = batch, autoencoder.standardise(batch.tokens)
        self._sets = leaf_sets(episodes.merges, batch.num_tokens) if policy.observes else None

    def judged(self, ordered: bool) -> Rollout:
        steps, entropy = self._steps, self._entropy(ordered)
        return replace(
            self.episodes,
            log_prob=self._spread(steps.log_prob.detach()).clamp(max=0.0),
            log_total=self._spread(steps.log_total.detach()),
            entropy=entropy.detach(),
        )

    @cached_property
    def log_probs(self) -> Float[Tensor, "B M"]:
        return self._spread(self._steps.log_prob)

    @cached_property
    def values(self) -> Float[Tensor, "B M"]:
        return self._spread(self._steps.value)

    def learn(
        self,
        episodes: Rollout,
        advantages: Float[Tensor, "B M"],
        entropy_coefficient: Float[Tensor, "B 1"],
        ordered: bool,
    ) -> dict[str, Float[Tensor, ""]]:
        made, size = episodes.steps, len(episodes.steps)
        price = entropy_coefficient / made.sum(1, keepdim=True).clamp(min=1)
        losses = {
            "policy": -(advantages * made * self.log_probs).sum() / size,
            "entropy": (price * self._entropy(ordered)).sum() / size,
            **self._encoder_losses,
        }
        torch.stack(list(losses.values())).sum().backward(retain_graph=True)
        return {name: loss.detach() for name, loss in losses.items()}

    def _entropy(self, ordered: bool) -> Float[Tensor, "B M"]:
        nats = self._steps.entropy if ordered else self._steps.unordered_entropy
        most = most_entropy((self.episodes.active >= 0).sum(2), ordered)
        return self._spread(nats) / most

    def _spread(self, values: Float[Tensor, "S"]) -> Float[Tensor, "B M"]:
        """Numbers of the steps that were made, where they belong; 0 in padding."""
        made = self.episodes.steps
        return values.new_zeros(made.shape).masked_scatter(made, values)

    @cached_property
    def _steps(self) -> Steps:
        """All populations, a part at a time.

        Where they are too many for one part, each is looked at again on the way back (gradient
        checkpointing, Chen et al. 2016), so that memory grows with a part and not with the whole.
        """
        self._encoder_losses: dict[str, Tensor] = {}
        if self.policy.encoder.carries:
            return self._carried_steps()
        episode, time = self.episodes.steps.nonzero(as_tuple=True)
        size = self._at_a_time
        look = self._look_twice if len(episode) > size else self._look
        found = [look(*part) for part in zip(episode.split(size), time.split(size), strict=True)]
        if not found:
            return Steps(*self._leaves.new_zeros(5, 0).unbind())
        self._encoder_losses = found[0][1]  # of the first part; the others are like it
        return Steps(*map(torch.cat, zip(*(steps for steps, *_ in found), strict=True)))

    def _carried_steps(self) -> Steps:
        """One merge of all episodes after the other, each from the state that the last one left."""
        made, merges = self.episodes.steps, self.episodes.merges
        look = self._look_twice if int(made.sum()) > self._at_a_time else self._look
        states: Tensor | None = None
        found = []
        num_leaves = self._batch.num_tokens
        for time in range(made.shape[1]):
            episode = made[:, time].nonzero()[:, 0]
            if not len(episode):
                break
            before = None if states is None else states[episode]
            steps, losses, after = look(episode, torch.full_like(episode, time), before)
            assert after is not None  # since the encoder carries one
            found.append((episode, steps))
            self._encoder_losses = self._encoder_losses or losses
            here = self.episodes.active[episode, time]
            row, position = (here >= 0).nonzero(as_tuple=True)
            if states is None:
                states = after.new_zeros(*self.episodes.leaf_counts.shape, *after.shape[2:])
            states = states.index_put((episode[row], here[row, position]), after[row, position])
            first, second = (states[episode, child] for child in merges[episode, time].unbind(1))
            parent = self.policy.encoder.merged_state(first, second)
            states = states.index_put((episode, num_leaves[episode] + time), parent)
        return self._in_reading_order(found)

    def _in_reading_order(self, found: list[tuple[Tensor, Steps]]) -> Steps:
        """What was found merge by merge, episode by episode instead."""
        if not found:
            return Steps(*self._leaves.new_zeros(5, 0).unbind())
        times = [torch.full_like(episode, time) for time, (episode, _) in enumerate(found)]
        place = torch.cat([episode for episode, _ in found]) * len(found) + torch.cat(times)
        joined = map(torch.cat, zip(*(steps for _, steps in found), strict=True))
        return Steps(*(values[place.argsort()] for values in joined))

    @property
    def _at_a_time(self) -> int:
        """Populations."""
        slots = self.episodes.active.shape[2]
        return max(1, min(TOKENS_AT_A_TIME // slots, PAIRS_AT_A_TIME // slots**2))

    def _look_twice(self, *arguments: Any) -> Any:
        """As :meth:`_look`; nothing is kept for the way back, on which it is computed again."""
        if not torch.is_grad_enabled():
            return self._look(*arguments)
        return checkpoint(self._look, *arguments, use_reentrant=False)

    def _look(
        self,
        episode: Int64[Tensor, "S"],
        time: Int64[Tensor, "S"],
        states: Tensor | None = None,
    ) -> tuple[Steps, dict[str, Tensor], Tensor | None]:
        """The populations before some merges, perhaps from the states ``(S, N, ...)`` of nodes."""
        episodes, batch = self.episodes, self._batch
        here = episodes.active[episode, time]
        here = here[:, : max(2, int((here >= 0).sum(1).max()))]  # what stands first
        state = None if states is None else node_states(states, here)
        observation = population_observation(
            self.policy,
            here,
            episodes.nodes[episode],
            episodes.leaf_counts[episode],
            None if self._sets is None else self._sets[episode],
            self._leaves[episode],
            batch.present[episode],
        )
        look = self.policy.look(observation, state)
        pair = (here[:, None] == episodes.merges[episode, time][..., None]).int().argmax(2)
        return steps_of(look, here >= 0, pair), look.losses, look.state


def steps_of(look: Look, active: Bool[Tensor, "S W"], pair: Int64[Tensor, "S 2"]) -> Steps:
    """What scores say of all choices, and of the pair that was chosen."""
    legal = active[:, :, None] & active[:, None]
    legal = legal & ~torch.eye(active.shape[1], dtype=torch.bool, device=active.device)
    scores = look.scores.masked_fill(~legal, ILLEGAL)
    rows = torch.arange(len(pair), device=pair.device)
    log_total = scores.flatten(1).logsumexp(1)
    log_choice = scores - log_total[:, None, None]
    probability = log_choice.exp()
    either = (probability + probability.transpose(1, 2)).clamp_min(TINY).log()
    return Steps(
        log_prob=log_choice[rows, pair[:, 0], pair[:, 1]],
        log_total=log_total,
        value=look.values,
        entropy=-(probability * log_choice).sum((1, 2)),
        unordered_entropy=-(probability * either).sum((1, 2)),
    )


def judge(
    policy: MergePolicy, autoencoder: HTMAutoencoder, batch: TokenBatch, episodes: Rollout
) -> Judgement:
    """What ``policy`` thinks of episodes of these samples.

    Raises ``TypeError`` for a policy network that is neither of the two kinds.
    """
    if isinstance(policy, NodePolicy):
        return NodeJudgement(policy, episodes)
    if isinstance(policy, ContextPolicy):
        return ContextJudgement(policy, autoencoder, batch, episodes)
    raise TypeError(f"{type(policy).__name__} is neither a NodePolicy nor a ContextPolicy")
