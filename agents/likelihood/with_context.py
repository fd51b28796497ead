"""Terms of episodes under a policy with a context encoder: every population is evaluated."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from agents.likelihood.base import PolicyTerms
from agents.rollouts.pair_scores import (
    ILLEGAL,
    ContextOutput,
    ContextScorer,
    node_states,
    population_observation,
)
from agents.rollouts.rollout import TINY, Episodes, MergeTerms
from htm_env.autoencoder import TreeEncoder
from htm_env.forest import leaf_sets, legal_pairs
from htm_env.softmax import weights_of
from htm_env.types import SampleRows, TokenBatch

PAIRS_AT_A_TIME = 2**22
"""Pairs of tokens that are scored together."""
SCENES = 48
"""Samples that an encoder's own losses are computed on: contrasting them takes their square."""


class Steps(NamedTuple):
    """``S`` populations under the policy, and the merges made in them; or all ``(B, M)``, 0 in
    padding."""

    log_prob: Float[Tensor, "S"]
    log_total: Float[Tensor, "S"]
    value: Float[Tensor, "S"]
    entropy: Float[Tensor, "S"]
    """In nats, with the order within a pair as a choice."""
    unordered_entropy: Float[Tensor, "S"]


class ContextTerms(PolicyTerms):
    """Terms of a policy with a context encoder."""

    at_a_time = 65_536
    """Tokens of populations."""

    def __init__(
        self,
        policy: ContextScorer,
        autoencoder: TreeEncoder,
        batch: TokenBatch,
        episodes: Episodes,
    ) -> None:
        self.policy, self.episodes = policy, episodes
        self._batch, self._leaves = batch, autoencoder.standardise(batch.tokens)
        self._sets = leaf_sets(episodes.merges, batch.num_tokens) if policy.observes else None

    def measured(self, ordered: bool) -> MergeTerms:
        return MergeTerms(
            self._steps.log_prob.detach().clamp(max=0.0),
            self._steps.log_total.detach(),
            self._entropy(ordered).detach(),
        )

    @property
    def log_probs(self) -> Float[Tensor, "B M"]:
        return self._steps.log_prob

    @property
    def values(self) -> Float[Tensor, "B M"]:
        return self._steps.value

    def backward(
        self,
        measured: MergeTerms,
        advantages: Float[Tensor, "B M"],
        entropy_coefficient: Float[Tensor, "B 1"],
        ordered: bool,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        made, size = self.episodes.steps, len(self.episodes.steps)
        price = entropy_coefficient / made.sum(1, keepdim=True).clamp(min=1)
        losses = {
            "policy": -(advantages * made * self.log_probs).sum() / size,
            "entropy": (price * self._entropy(ordered)).sum() / size,
            **self.encoder_losses(generator),
        }
        torch.stack(list(losses.values())).sum().backward(retain_graph=True)
        return {name: loss.detach() for name, loss in losses.items()}

    def encoder_losses(self, generator: torch.Generator | None) -> dict[str, Float[Tensor, ""]]:
        """Losses of the first populations of some samples, each a scene of its own."""
        if generator is None or not self.policy.encoder.has_losses:
            return {}
        episode = SampleRows.of(self._batch).first_rows
        episode = episode[self.episodes.steps[episode, 0]][:SCENES]
        if not len(episode):
            return {}
        here = self.episodes.active[episode, 0]
        return self.policy.contextual_scores(
            self._observation(episode, here), generator=generator
        ).losses

    def _entropy(self, ordered: bool) -> Float[Tensor, "B M"]:
        among_all = self.episodes.candidates is None  # else the order always counts as a choice
        either_order = among_all and not ordered
        nats = self._steps.unordered_entropy if either_order else self._steps.entropy
        return nats / self.episodes.most_entropy(ordered)

    @cached_property
    def _steps(self) -> Steps:
        """All populations, a part at a time.

        Where they are too many for one part, each is evaluated again on the way back (gradient
        checkpointing, Chen et al. 2016), so that memory grows with a part and not with the whole.
        """
        if self.policy.encoder.carries:
            return self._carried_steps()
        episode, time = self.episodes.steps.nonzero(as_tuple=True)
        size = self._populations
        evaluate = self._evaluate_twice if len(episode) > size else self._evaluate
        parts = zip(episode.split(size), time.split(size), strict=True)
        return self._padded([(*part, evaluate(*part)[0]) for part in parts])

    def _carried_steps(self) -> Steps:
        """One merge of all episodes after the other, each from the state that the last one left."""
        made, merges = self.episodes.steps, self.episodes.merges
        evaluate = self._evaluate_twice if int(made.sum()) > self._populations else self._evaluate
        states: Tensor | None = None
        found = []
        num_leaves = self._batch.num_tokens
        for time in range(made.shape[1]):
            episode = made[:, time].nonzero()[:, 0]
            if not len(episode):
                break
            before = None if states is None else states[episode]
            now = torch.full_like(episode, time)
            steps, after = evaluate(episode, now, before)
            assert after is not None  # since the encoder carries one
            found.append((episode, now, steps))
            here = self.episodes.active[episode, time]
            row, position = (here >= 0).nonzero(as_tuple=True)
            if states is None:
                states = after.new_zeros(*self.episodes.leaf_counts.shape, *after.shape[2:])
            states = states.index_put((episode[row], here[row, position]), after[row, position])
            first, second = (states[episode, child] for child in merges[episode, time].unbind(1))
            parent = self.policy.encoder.merged_state(first, second)
            states = states.index_put((episode, num_leaves[episode] + time), parent)
        return self._padded(found)

    def _padded(self, found: list[tuple[Tensor, Tensor, Steps]]) -> Steps:
        """The steps of some episodes at some times, where they belong."""
        shape = self.episodes.steps.shape
        if not found:
            return Steps(*self._leaves.new_zeros(5, *shape).unbind())
        at = tuple(torch.cat(where) for where in zip(*((e, t) for e, t, _ in found), strict=True))
        joined = map(torch.cat, zip(*(steps for *_, steps in found), strict=True))
        return Steps(*(values.new_zeros(shape).index_put(at, values) for values in joined))

    @property
    def _populations(self) -> int:
        """Populations that are evaluated together."""
        slots = self.episodes.active.shape[2]
        return max(1, min(self.at_a_time // slots, PAIRS_AT_A_TIME // slots**2))

    def _evaluate_twice(self, *arguments: Any) -> Any:
        """As :meth:`_evaluate`; nothing is kept for the way back, on which it is computed again."""
        if not torch.is_grad_enabled():
            return self._evaluate(*arguments)
        # Of a copy: the graph keeps what it will call again, and terms that keep the graph would
        # never be freed.
        return checkpoint(copy.copy(self)._evaluate, *arguments, use_reentrant=False)

    def _evaluate(
        self,
        episode: Int64[Tensor, "S"],
        time: Int64[Tensor, "S"],
        states: Tensor | None = None,
    ) -> tuple[Steps, Tensor | None]:
        """The populations before some merges, perhaps from the states ``(S, N, ...)`` of nodes."""
        here = self.episodes.active[episode, time]
        here = here[:, : max(2, int((here >= 0).sum(1).max()))]  # what comes first
        state = None if states is None else node_states(states, here)
        observation = self._observation(episode, here)
        output = self.policy.contextual_scores(observation, state)
        pair = (here[:, None] == self.episodes.merges[episode, time][..., None]).int().argmax(2)
        return steps_of(output, self._legal(episode, time, here), pair), output.state

    def _legal(
        self, episode: Int64[Tensor, "S"], time: Int64[Tensor, "S"], here: Int64[Tensor, "S W"]
    ) -> Bool[Tensor, "S W W"]:
        """True <--> the pair could be merged then: any two that were there, or the candidates."""
        candidates = self.episodes.candidates
        if candidates is None:
            return legal_pairs(here >= 0)
        state, pair = candidates.at(episode, time)
        nodes = candidates.nodes[pair]
        first, second = (here[state, :, None] == nodes[:, None]).int().argmax(1).unbind(1)
        legal = here.new_zeros(*here.shape, here.shape[1], dtype=torch.bool)
        legal[state, first, second] = True
        return legal

    def _observation(self, episode: Int64[Tensor, "S"], here: Tensor) -> dict[str, Tensor]:
        """Observations of these populations of the episodes, as the environment's."""
        return population_observation(
            self.policy.observes,
            here,
            self.episodes.nodes[episode],
            self.episodes.leaf_counts[episode],
            None if self._sets is None else self._sets[episode],
            self._leaves[episode],
            self._batch.present[episode],
        )


def steps_of(
    output: ContextOutput, legal: Bool[Tensor, "S W W"], pair: Int64[Tensor, "S 2"]
) -> Steps:
    """Terms of all choices, and of the pair that was chosen."""
    scores = output.scores.masked_fill(~legal, ILLEGAL)
    rows = torch.arange(len(pair), device=pair.device)
    log_choice = scores.flatten(1).log_softmax(1).view_as(scores)  # faster than logsumexp
    log_total = scores.amax((1, 2)) - log_choice.amax((1, 2))
    probability = weights_of(log_choice)
    either = (probability + probability.transpose(1, 2)).clamp_min(TINY).log()
    return Steps(
        log_prob=log_choice[rows, pair[:, 0], pair[:, 1]],
        log_total=log_total,
        value=output.values,
        entropy=-(probability * log_choice).sum((1, 2)),
        unordered_entropy=-(probability * either).sum((1, 2)),
    )
