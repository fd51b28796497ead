"""The policy network that every learner trains: scores of ordered pairs, and a value of the state.

Scores are cheap, merges are chosen once: a scorer (``scorers.py``) turns every token into features
once, and the score of a pair comes from two tokens' features. What a token's features are does not
depend on the other tokens, so that an episode's scores can be kept from step to step. A context
encoder in front of the scorer ends that (``context_policy.py``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from htm_env.candidates import candidate_mask
from htm_env.forest import action_mask, drop_diagonal

ILLEGAL = -1e9
"""The score of an illegal pair: its probability is exactly 0, and nothing becomes NaN."""


def bounded(scores: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Scores that leave every legal pair above every illegal one, and 0 where they are NaN.

    An autoencoder that diverges then gives bad merges, but legal ones; the updates on them are
    skipped and counted where the losses are checked.
    """
    return scores.nan_to_num(0.0).clamp(ILLEGAL / 10, -ILLEGAL / 10)


class MergePolicy(nn.Module):
    """Scores of ordered pairs and a state value, from an observation of the environment."""

    embedding_dim: int
    """``D`` of the embeddings that it takes."""
    observes: tuple[str, ...] = ()
    """What it reads of an observation beside tokens, mask and leaf counts."""

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


def action_logits(
    scores: Float[Tensor, "B P C"], observation: dict[str, Tensor]
) -> Float[Tensor, "B A"]:
    """The scores of pairs as those of the environment's actions, illegal ones at -1e9."""
    if "candidates" in observation:
        return scores.flatten(1).masked_fill(~candidate_mask(observation["candidates"]), ILLEGAL)
    legal = action_mask(observation["active"].bool())
    return drop_diagonal(scores).masked_fill(~legal, ILLEGAL)


@dataclass(frozen=True)
class Features:
    """What a pair scorer has to know of tokens, once it has looked at them."""

    first: Float[Tensor, "*batch H"]
    """What a score needs of a token that comes first in a pair."""
    second: Float[Tensor, "*batch H"]
    """... and of one that comes second."""
    hidden: Float[Tensor, "*batch V"] | None = None
    """What values need; None for both of these."""

    @property
    def pooled(self) -> Float[Tensor, "*batch V"]:
        """What is averaged over the tokens of a state for its value."""
        if self.hidden is None:
            return torch.cat([self.first, self.second], dim=-1)
        return self.hidden


class NodePolicy(MergePolicy):
    """A policy to which a token looks the same whatever stands beside it: the pair scorers."""

    value_head: nn.Module
    """From the mean of what is pooled and the logarithm of the count."""

    @abstractmethod
    def features(
        self, embeddings: Float[Tensor, "*batch D"], leaf_counts: Int[Tensor, "*batch"]
    ) -> Features:
        """What scores and values need of each token."""

    @abstractmethod
    def scores(
        self, first: Float[Tensor, "B I H"], second: Float[Tensor, "B J H"]
    ) -> Float[Tensor, "B I J"]:
        """The score of merging each of ``first`` with each of ``second``, in this order."""

    @abstractmethod
    def paired_scores(
        self, first: Float[Tensor, "*pairs H"], second: Float[Tensor, "*pairs H"]
    ) -> Float[Tensor, "*pairs"]:
        """The score of merging each of ``first`` with the one of ``second`` in its place."""

    def listed_scores(
        self,
        first: Float[Tensor, "B P H"],
        second: Float[Tensor, "B P H"],
        candidates: Int[Tensor, "B P k"],
    ) -> Float[Tensor, "B P k"]:
        """The scores of every token with its candidates; those of empty places are finite."""
        rows = torch.arange(len(first), device=first.device)[:, None, None]
        partners = second[rows, candidates.clamp(min=0).long()]  # (B, P, k, H)
        return self.paired_scores(first[:, :, None].expand_as(partners), partners)

    def node_scores(
        self,
        first: Float[Tensor, "B N H"],
        second: Float[Tensor, "B N H"],
        needed: Callable[[], Tensor],
    ) -> Float[Tensor, "B N N"]:
        """The scores of all pairs of nodes.

        ``needed`` gives the pairs that will be looked at, bool ``(B, N, N)``, to a scorer for which
        it pays to leave out the others, which may then hold anything finite.
        """
        return self.scores(first, second)

    def values(
        self, pooled: Float[Tensor, "B N V"], members: Float[Tensor, "B S N"]
    ) -> Float[Tensor, "B S"]:
        """The value of states, each a set of nodes: ``members`` is 1 where a node is active."""
        return self._value(members @ pooled, members.sum(-1, keepdim=True))

    def values_along(
        self,
        pooled: Float[Tensor, "B N V"],
        merges: Int64[Tensor, "B M 2"],
        num_leaves: Int64[Tensor, "B"],
    ) -> Float[Tensor, "B M"]:
        """The value of the state before every merge of an episode; anything finite in padding.

        A merge changes the sum over a state by its parent less its children, so that the sums of
        all states are running totals: O(M), where a table of who is active would be O(M N).
        """
        size, steps, _ = merges.shape
        rows = torch.arange(size, device=merges.device)[:, None]
        time = torch.arange(steps, device=merges.device)
        made = merges[..., :1] >= 0
        children = pooled[rows[..., None], merges.clamp(min=0)].sum(2)
        change = (pooled[rows, num_leaves[:, None] + time] - children).where(made, 0.0)
        leaves = torch.arange(pooled.shape[1], device=merges.device) < num_leaves[:, None]
        first = pooled.masked_fill(~leaves[..., None], 0.0).sum(1, keepdim=True)
        sums = first + change.cumsum(1) - change
        return self._value(sums, (num_leaves[:, None] - time)[..., None].to(sums.dtype))

    def _value(
        self, sums: Float[Tensor, "B S V"], count: Float[Tensor, "B S 1"]
    ) -> Float[Tensor, "B S"]:
        """The value of states of ``count`` tokens, over which ``sums`` are summed."""
        count = count.clamp(min=1)
        return self.value_head(torch.cat([sums / count, count.log2()], dim=-1)).squeeze(-1)

    def state_scores(
        self, observation: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "B P C"], Float[Tensor, "B"]]:
        active = observation["active"].bool()
        # What stands in empty slots must not reach a sum, not even as 0 * NaN.
        tokens = observation["tokens"].float().masked_fill(~active[..., None], 0.0)
        features = self.features(tokens, observation["leaf_counts"])
        values = self.values(features.pooled, active[:, None].float())[:, 0]
        return bounded(self.population_scores(features, observation)), values

    def population_scores(
        self, features: Features, observation: dict[str, Tensor]
    ) -> Float[Tensor, "B P C"]:
        """The scores of all pairs, or of those that the observation has as candidates."""
        if "candidates" in observation:
            return self.listed_scores(features.first, features.second, observation["candidates"])
        return self.scores(features.first, features.second)
