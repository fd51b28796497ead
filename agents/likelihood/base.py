"""The terms of episodes under a policy: the half of learning that every loss needs.

A policy that gives a token the same features in every population scores each pair of an episode's
nodes once, however many steps the pair was there (``among_all.py``, ``among_candidates.py``). One
with a context encoder scores every population of the episode by itself (``with_context.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from agents.rollouts.rollout import Episodes, MergeTerms


class PolicyTerms(ABC):
    """Log-probabilities, entropies and values of ``episodes`` under a policy, with gradients.

    Everything is computed when it is first asked for, and once.
    """

    episodes: Episodes
    at_a_time: int
    """Pairs, or tokens of populations, that are evaluated together. Of more nothing is kept for the
    gradient, but computed again, which saves memory (Chen et al. 2016, "Training deep nets with
    sublinear memory cost")."""

    @abstractmethod
    def measured(self, ordered: bool) -> MergeTerms:
        """The terms of every merge as numbers.

        ``ordered`` says whether the order within a pair counts as a choice in the entropy.
        """

    @property
    @abstractmethod
    def log_probs(self) -> Float[Tensor, "B M"]:
        """Log-probabilities of every merge; 0 in padding. Differentiable."""

    @property
    @abstractmethod
    def values(self) -> Float[Tensor, "B M"]:
        """Values of the state before every merge. Differentiable."""

    @abstractmethod
    def backward(
        self,
        measured: MergeTerms,
        advantages: Float[Tensor, "B M"],
        entropy_coefficient: Float[Tensor, "B 1"],
        ordered: bool,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Accumulate the gradient of REINFORCE's loss (Williams 1992); returns its parts.

        ``loss = mean over episodes of [- sum over t of advantage_t * log pi_t + coefficient * mean
        over t of entropy_t]``, plus the encoder's own losses where there is a ``generator`` to draw
        what they need. ``measured`` are the terms of these episodes under this policy, such as a
        rollout gives, so that nothing is evaluated twice.
        """

    def encoder_losses(self, generator: torch.Generator | None) -> dict[str, Float[Tensor, ""]]:
        """The encoder's own, already weighted; none without a generator."""
        return {}

    def tree_scores(self) -> Float[Tensor, "B N N"] | None:
        """The scores of all pairs of nodes, in whatever sequence they are merged; None where they
        differ from sequence to sequence. Differentiable."""
        return None
