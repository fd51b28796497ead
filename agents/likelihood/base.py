"""What a policy thinks of episodes, whoever made them: the half of learning that every loss needs.

A policy to which a token looks the same in every population scores each pair of an episode's nodes
once, however many steps the pair was there (``losses.py``). One with a context encoder looks at
every population of the episode by itself (``context_judgement.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from agents.likelihood.among_all import policy_gradient_step
from agents.likelihood.log_probs import judged, sequence_log_probs
from agents.likelihood.node_features import NodeFeatures
from agents.networks.base import NodePolicy
from agents.rollouts.rollout import Rollout
from htm_env.types import TokenBatch


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
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Accumulate the gradient of REINFORCE's loss (Williams 1992); returns its parts.

        ``loss = mean over episodes of [- sum over t of advantage_t * log pi_t + coefficient * mean
        over t of entropy_t]``, plus the encoder's own losses where there is a ``generator`` to draw
        what they need. ``episodes`` are those that are judged, with what the policy thinks of them.
        """

    def encoder_losses(self, generator: torch.Generator | None) -> dict[str, Float[Tensor, ""]]:
        """The encoder's own, already weighted; none without a generator."""
        return {}


class NodeJudgement(Judgement):
    """Of a pair scorer alone: every node is looked at once."""

    def __init__(self, policy: NodePolicy, batch: TokenBatch, episodes: Rollout) -> None:
        self.policy, self.episodes = policy, episodes
        self.nodes = NodeFeatures(policy, batch, episodes)

    @cached_property
    def scores(self) -> Float[Tensor, "B N N"]:
        """Of all pairs of nodes that could be merged."""
        nodes = self.nodes
        return self.policy.node_scores(nodes.first, nodes.second, lambda: self.episodes.coactive)

    def judged(self, ordered: bool) -> Rollout:
        return judged(self.scores, self.episodes, ordered)

    @cached_property
    def log_probs(self) -> Float[Tensor, "B M"]:
        return sequence_log_probs(self.scores, self.episodes.merges, self.episodes.active)[0]

    @cached_property
    def values(self) -> Float[Tensor, "B M"]:
        return self.policy.values_along(
            self.nodes.pooled, self.episodes.merges, self.episodes.num_leaves
        )

    def learn(
        self,
        episodes: Rollout,
        advantages: Float[Tensor, "B M"],
        entropy_coefficient: Float[Tensor, "B 1"],
        ordered: bool,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        return policy_gradient_step(self.scores, episodes, advantages, entropy_coefficient, ordered)
