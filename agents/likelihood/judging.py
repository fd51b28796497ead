"""``judge``: what a policy of either kind thinks of episodes."""

from __future__ import annotations

from agents.likelihood.among_candidates import CandidateJudgement
from agents.likelihood.base import Judgement, NodeJudgement
from agents.likelihood.with_context import ContextJudgement
from agents.networks.base import MergePolicy, NodePolicy
from agents.networks.context import ContextPolicy
from agents.rollouts.rollout import Rollout
from htm_env.autoencoder import HTMAutoencoder
from htm_env.types import TokenBatch


def judge(
    policy: MergePolicy, autoencoder: HTMAutoencoder, batch: TokenBatch, episodes: Rollout
) -> Judgement:
    """What ``policy`` thinks of episodes of these samples.

    Raises ``TypeError`` for a policy network that is neither of the two kinds.
    """
    if isinstance(policy, NodePolicy):
        among_all = episodes.candidates is None
        return (NodeJudgement if among_all else CandidateJudgement)(policy, batch, episodes)
    if isinstance(policy, ContextPolicy):
        return ContextJudgement(policy, autoencoder, batch, episodes)
    raise TypeError(f"{type(policy).__name__} is neither a NodePolicy nor a ContextPolicy")
