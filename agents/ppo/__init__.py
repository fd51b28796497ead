"""PPO from Stable-Baselines3 on this project's environment; nothing else imports that library.

Importing this package imports neither Stable-Baselines3 nor sb3-contrib: the names below are looked
up when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agents.ppo.config import PPOConfig

if TYPE_CHECKING:
    from agents.ppo.callback import HeldOutEvaluation, JointTraining
    from agents.ppo.learner import PPOLearner
    from agents.ppo.make import make_ppo
    from agents.ppo.policies import MaskableMergeActorCriticPolicy, MergeActorCriticPolicy
    from agents.ppo.vector_env import HTMVecEnv

__all__ = [
    "HTMVecEnv",
    "HeldOutEvaluation",
    "JointTraining",
    "MaskableMergeActorCriticPolicy",
    "MergeActorCriticPolicy",
    "PPOConfig",
    "PPOLearner",
    "make_ppo",
]

_MODULES = {
    "HTMVecEnv": "vector_env",
    "HeldOutEvaluation": "callback",
    "JointTraining": "callback",
    "MaskableMergeActorCriticPolicy": "policies",
    "MergeActorCriticPolicy": "policies",
    "PPOLearner": "learner",
    "make_ppo": "make",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
