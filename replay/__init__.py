"""Stored episodes, and off-policy corrections for policies that did not make them."""

from importlib.metadata import version

from htm_env.softmax import choice_entropy, log_totals
from replay.buffer import ReplayBuffer, Sampled
from replay.candidate_pairs import CandidatePairs
from replay.importance import (
    effective_sample_size,
    log_ratios,
    per_decision_returns,
    prefix_log_weights,
    self_normalised_returns,
    self_normalised_weights,
    truncated_log_weights,
    vtrace,
)
from replay.trajectory import Trajectories, Trajectory
from replay.tree_probability import (
    forest_states,
    number_of_sequences,
    number_of_states,
    pairwise_log_prob,
    tree_log_prob,
    tree_log_prob_by_states,
)

__version__ = version("htm-rl")

__all__ = [
    "CandidatePairs",
    "ReplayBuffer",
    "Sampled",
    "Trajectories",
    "Trajectory",
    "__version__",
    "choice_entropy",
    "effective_sample_size",
    "forest_states",
    "log_ratios",
    "log_totals",
    "number_of_sequences",
    "number_of_states",
    "pairwise_log_prob",
    "per_decision_returns",
    "prefix_log_weights",
    "self_normalised_returns",
    "self_normalised_weights",
    "tree_log_prob",
    "tree_log_prob_by_states",
    "truncated_log_weights",
    "vtrace",
]
