"""Merging a whole matching of disjoint pairs at a time, as an option of what was learned."""

from __future__ import annotations

from agents.learners.base import Learner
from agents.learners.policy_learner import PolicyLearner


def merge_in_rounds(learner: Learner) -> None:
    """Let the greedy plans of a learner merge matchings from now on.

    Raises ``ValueError`` for a learner without a policy network.
    """
    if not isinstance(learner, PolicyLearner):
        raise ValueError(
            f"{learner.algo} has no policy network, whose scores merge rounds would be made by; "
            "expected a learned policy"
        )
    learner.merge_rounds = True
