"""The policy network that every learner trains: scores of ordered pairs, and a value of the state.

Scores are cheap, merges are chosen once: a scorer (``scorers.py``) turns every token into features
once, and the score of a pair comes from two tokens' features. What a token's features are does not
depend on the other tokens, so that an episode's scores can be kept from step to step. A context
encoder in front of the scorer ends that (``context.py``). Each kind names the scores of a rollout
and the terms of episodes that fit it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from agents.likelihood.base import PolicyTerms
from agents.rollouts.candidates import CandidateLists
from agents.rollouts.pair_scores import ILLEGAL, NodeTables, PairScorer, PairScores, Positions
from agents.rollouts.rollout import Episodes, rollout
from htm_env.actions import action_slots
from htm_env.autoencoder import TreeEncoder
from htm_env.candidates import Nearest, candidate_mask
from htm_env.forest import action_mask, drop_diagonal
from htm_env.observation import check_keys, check_observation, check_width
from htm_env.types import TokenBatch


class MergePolicy(nn.Module):
    """Scores of ordered pairs and a state value, from an observation of the environment."""

    embedding_dim: int
    """``D`` of the embeddings that it takes."""
    observes: tuple[str, ...] = ()
    """Keys of an observation that it reads beside tokens, mask and leaf counts."""
    carries = False
    """True <--> it goes on from one observation of an episode to the next with a state."""
    has_losses = False
    """True <--> it has losses of its own, which the learner has to add."""

    @property
    def pair_scorer(self) -> PairScorer | None:
        """The network itself, where a token has the same features in every population."""
        return None

    @abstractmethod
    def state_scores(
        self, observation: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "B P C"], Float[Tensor, "B"]]:
        """The scores of ordered pairs, legal or not, and the value of the state.

        Every slot with all others (C = P), or with its candidates where the observation has them
        (C = k).
        """

    def forward(
        self, observation: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B"]]:
        """Logits of all actions, illegal ones at -1e9, and the state's value.

        There are ``P (P - 1)`` actions, or ``P k`` where the observation has candidates.
        """
        scores, values = self.state_scores(observation)
        return action_logits(scores, observation), values

    @abstractmethod
    def pair_scores(self, tables: NodeTables, positions: Positions) -> PairScores:
        """The scores of a rollout among all pairs; the tables fill up meanwhile."""

    @abstractmethod
    def candidate_scores(self, tables: NodeTables, lists: CandidateLists) -> PairScores:
        """The scores of a rollout among candidates; the tables fill up meanwhile."""

    @abstractmethod
    def terms(self, autoencoder: TreeEncoder, batch: TokenBatch, episodes: Episodes) -> PolicyTerms:
        """The terms of episodes of these samples under this policy, with gradients."""

    def plan(
        self,
        autoencoder: TreeEncoder,
        batch: TokenBatch,
        generator: torch.Generator,
        *,
        greedy: bool,
        nearest: Nearest | None = None,
    ) -> Int64[Tensor, "B M 2"]:
        """The merges of a whole tree for every sample, -1 in padding.

        ``greedy`` takes the best pair at every step instead of drawing one; ``nearest`` is the rule
        for candidates, None for all pairs.
        """
        made, _ = rollout(autoencoder, self, batch, generator, greedy=greedy, nearest=nearest)
        return made.merges

    @torch.no_grad()
    def act(
        self,
        observation: dict[str, Any],
        generator: torch.Generator,
        deterministic: bool,
        state: Tensor | None = None,
        starts: Any = None,
    ) -> tuple[Any, Tensor | None]:
        """An action for one observation, or ``(B,)`` of them for a batch; never an illegal one.

        And what a policy that carries a state goes on from in the next observation of the episode,
        ``(B, P, ...)``; None for all others. Rows of ``starts`` that are True begin anew.

        ``deterministic`` takes the best pair. In a batch, an episode that has ended gets action 0,
        which the next reset ignores. Raises ``ValueError`` for another embedding dimension, for the
        observation of a single episode that has ended, and for one without a key that is read.
        """
        keys = ("tokens", "active", "leaf_counts", *self.observes)
        check_keys(observation, keys)
        keys += ("candidates",) if "candidates" in observation else ()
        tensors = {key: torch.as_tensor(observation[key], device=generator.device) for key in keys}
        check_observation(tensors)
        single = tensors["tokens"].ndim == 2
        if single:
            tensors = {key: value[None] for key, value in tensors.items()}
        check_width(tensors, self.embedding_dim)
        ended = tensors["active"].sum(1) < 2
        if single and ended.any():
            raise ValueError("the observation has fewer than two active slots: nothing to merge")
        scores, after = self.scores_from(tensors, state, starts)
        logits = action_logits(scores, tensors)
        if deterministic:
            actions = logits.argmax(1)
        else:
            actions = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
        actions = actions.masked_fill(ended, 0)
        if after is not None:
            rows = torch.arange(len(actions), device=actions.device)
            active, candidates = tensors["active"].bool(), tensors.get("candidates")
            first, second, _ = action_slots(actions, active, candidates)
            after[rows, first] = self.merged_state(after[rows, first], after[rows, second])
        return int(actions[0]) if single else actions.cpu().numpy(), after

    def scores_from(
        self, observation: dict[str, Tensor], state: Tensor | None, starts: Any
    ) -> tuple[Float[Tensor, "B P C"], Tensor | None]:
        """The scores, and the state after them, from the state before where an episode goes on."""
        return self.state_scores(observation)[0], None

    def merged_state(self, first: Tensor, second: Tensor) -> Tensor:
        """The part of the state that a merged token starts from, given its children's."""
        raise NotImplementedError("this network carries no state")


def action_logits(
    scores: Float[Tensor, "B P C"], observation: dict[str, Tensor]
) -> Float[Tensor, "B A"]:
    """The scores of pairs as those of the environment's actions, illegal ones at -1e9."""
    if "candidates" in observation:
        return scores.flatten(1).masked_fill(~candidate_mask(observation["candidates"]), ILLEGAL)
    legal = action_mask(observation["active"].bool())
    return drop_diagonal(scores).masked_fill(~legal, ILLEGAL)
