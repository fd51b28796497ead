"""Agents that learn to merge while the autoencoder learns to encode."""

from agents.fixed_order import FixedOrder, FixedOrderConfig
from agents.reinforce import Reinforce, ReinforceConfig
from agents.replay_reinforce import ReplayConfig, ReplayReinforce

__all__ = [
    "FixedOrder",
    "FixedOrderConfig",
    "Reinforce",
    "ReinforceConfig",
    "ReplayConfig",
    "ReplayReinforce",
]
