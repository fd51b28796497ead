"""Agents that learn to merge while the autoencoder learns to encode."""

from typing import TYPE_CHECKING, Any

from agents.encoders.glom import Glom, GlomConfig
from agents.encoders.hierarchical import (
    HierarchicalTransformer,
    HierarchicalTransformerConfig,
    HierarchyConfig,
)
from agents.encoders.reduction import HierarchyReduction, ReductionLevel, join_samples
from agents.learners.fixed_order import FixedOrder, FixedOrderConfig
from agents.learners.reinforce import Reinforce, ReinforceConfig
from agents.learners.replay import ReplayConfig, ReplayReinforce
from agents.ppo.config import PPOConfig

if TYPE_CHECKING:
    from agents.ppo import PPOLearner, make_ppo

__all__ = [
    "FixedOrder",
    "FixedOrderConfig",
    "Glom",
    "GlomConfig",
    "HierarchicalTransformer",
    "HierarchicalTransformerConfig",
    "HierarchyConfig",
    "HierarchyReduction",
    "PPOConfig",
    "PPOLearner",
    "ReductionLevel",
    "Reinforce",
    "ReinforceConfig",
    "ReplayConfig",
    "ReplayReinforce",
    "join_samples",
    "make_ppo",
]


def __getattr__(name: str) -> Any:
    """What needs Stable-Baselines3, imported when it is first used."""
    if name in ("PPOLearner", "make_ppo"):
        from agents import ppo

        return getattr(ppo, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
