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

_MODULES = (
    "replay.importance",
    "replay.trajectory",
    "replay.tree_probability",
    "replay.buffer",
    "htm_env.candidates",
    "htm_env.softmax",
)
"""Modules that define the public names; imported in this order until a used name is found."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("htm-rl")
    for module in map(import_module, _MODULES if name in __all__ else ()):
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
