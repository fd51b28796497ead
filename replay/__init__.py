"""Stored episodes, and off-policy corrections for policies that did not make them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from htm_env.candidates import CandidatePairs
    from htm_env.softmax import choice_entropy, log_totals
    from replay.buffer import ReplayBuffer, Sampled
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

_MODULES = {
    "htm_env.candidates": ("CandidatePairs",),
    "htm_env.softmax": ("choice_entropy", "log_totals"),
    "replay.buffer": ("ReplayBuffer", "Sampled"),
    "replay.importance": (
        "effective_sample_size",
        "log_ratios",
        "per_decision_returns",
        "prefix_log_weights",
        "self_normalised_returns",
        "self_normalised_weights",
        "truncated_log_weights",
        "vtrace",
    ),
    "replay.trajectory": ("Trajectories", "Trajectory"),
    "replay.tree_probability": (
        "forest_states",
        "number_of_sequences",
        "number_of_states",
        "pairwise_log_prob",
        "tree_log_prob",
        "tree_log_prob_by_states",
    ),
}
"""The public names by module; a module is imported when one of its names is first used."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("htm-rl")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
