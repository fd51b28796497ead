"""Stored trees, and what they say about a policy that did not make them."""

from htm_env.softmax import choice_entropy, log_totals
from replay.buffer import ReplayBuffer
from replay.candidate_pairs import CandidatePairs
from replay.importance import (
    VTrace,
    effective_sample_size,
    log_ratios,
    per_decision_returns,
    prefix_log_weights,
    self_normalised_mean,
    self_normalised_returns,
    self_normalised_weights,
    truncated_log_weights,
    vtrace,
)
from replay.samplers import SAMPLERS, Sampled
from replay.trajectory import Trajectories, Trajectory
from replay.tree_probability import (
    all_sequences,
    log_number_of_sequences,
    number_of_sequences,
    tree_log_prob,
    uniform_sequences,
)
from replay.tree_states import (
    ForestStates,
    forest_states,
    number_of_states,
    pairwise_log_prob,
    tree_log_prob_by_states,
)

__all__ = [
    "SAMPLERS",
    "CandidatePairs",
    "ForestStates",
    "ReplayBuffer",
    "Sampled",
    "Trajectories",
    "Trajectory",
    "VTrace",
    "all_sequences",
    "choice_entropy",
    "effective_sample_size",
    "forest_states",
    "log_number_of_sequences",
    "log_ratios",
    "log_totals",
    "number_of_sequences",
    "number_of_states",
    "pairwise_log_prob",
    "per_decision_returns",
    "prefix_log_weights",
    "self_normalised_mean",
    "self_normalised_returns",
    "self_normalised_weights",
    "tree_log_prob",
    "tree_log_prob_by_states",
    "truncated_log_weights",
    "uniform_sequences",
    "vtrace",
]
