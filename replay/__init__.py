"""Stored trees, and what they say about a policy that did not make them."""

from replay.buffer import ReplayBuffer, Sampled
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
from replay.samplers import SAMPLERS
from replay.trajectory import Trajectories, Trajectory
from replay.tree_probability import (
    all_sequences,
    log_number_of_sequences,
    number_of_sequences,
    tree_log_prob,
    uniform_sequences,
)

__all__ = [
    "SAMPLERS",
    "ReplayBuffer",
    "Sampled",
    "Trajectories",
    "Trajectory",
    "VTrace",
    "all_sequences",
    "effective_sample_size",
    "log_number_of_sequences",
    "log_ratios",
    "number_of_sequences",
    "per_decision_returns",
    "prefix_log_weights",
    "self_normalised_mean",
    "self_normalised_returns",
    "self_normalised_weights",
    "tree_log_prob",
    "truncated_log_weights",
    "uniform_sequences",
    "vtrace",
]
