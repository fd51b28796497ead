"""Agents that learn to merge while the autoencoder learns to encode."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from agents.encoders.config import GlomConfig, GlomTrainingConfig, HierarchyConfig
    from agents.encoders.glom.columns import Glom, ImageGlom
    from agents.encoders.glom.islands import Islands, find_islands, island_merges
    from agents.encoders.glom.losses import contrastive_loss, denoising_loss
    from agents.encoders.glom.tokens import TokenGlom
    from agents.encoders.hierarchical.config import HierarchicalTransformerConfig
    from agents.encoders.hierarchical.transformer import HierarchicalTransformer
    from agents.encoders.reduction.reduction import (
        HierarchyReduction,
        ReductionLevel,
        join_samples,
    )
    from agents.estimator.merger import HierarchicalTokenMerger
    from agents.learners.base import Learner, LearnerConfig
    from agents.learners.fixed_order import FixedOrder, FixedOrderConfig
    from agents.learners.glom import GlomTrainer
    from agents.learners.reinforce import Reinforce, ReinforceConfig
    from agents.learners.replay import ReplayConfig, ReplayReinforce
    from agents.optim.autoencoder_trainer import AutoencoderConfig, AutoencoderTrainer
    from agents.optim.optimizers import OptimizerConfig
    from agents.ppo import HeldOutEvaluation, HTMVecEnv, JointTraining, PPOLearner, make_ppo
    from agents.ppo.config import PPOConfig
    from agents.registry import load_learner as load
    from agents.stable_baselines.config import StableBaselinesConfig
    from agents.stable_baselines.files import load_model, save_model
    from agents.stable_baselines.learner import StableBaselinesLearner
    from htm_env.drawing.figures.islands import islands_figure, islands_gif

__all__ = [
    "AutoencoderConfig",
    "AutoencoderTrainer",
    "FixedOrder",
    "FixedOrderConfig",
    "Glom",
    "GlomConfig",
    "GlomTrainer",
    "GlomTrainingConfig",
    "HTMVecEnv",
    "HeldOutEvaluation",
    "HierarchicalTokenMerger",
    "HierarchicalTransformer",
    "HierarchicalTransformerConfig",
    "HierarchyConfig",
    "HierarchyReduction",
    "ImageGlom",
    "Islands",
    "JointTraining",
    "Learner",
    "LearnerConfig",
    "OptimizerConfig",
    "PPOConfig",
    "PPOLearner",
    "ReductionLevel",
    "Reinforce",
    "ReinforceConfig",
    "ReplayConfig",
    "ReplayReinforce",
    "StableBaselinesConfig",
    "StableBaselinesLearner",
    "TokenGlom",
    "__version__",
    "contrastive_loss",
    "denoising_loss",
    "find_islands",
    "island_merges",
    "islands_figure",
    "islands_gif",
    "join_samples",
    "load",
    "load_model",
    "make_ppo",
    "save_model",
]
_MODULES = {
    "agents.encoders.config": ("GlomConfig", "GlomTrainingConfig", "HierarchyConfig"),
    "agents.encoders.glom.columns": ("Glom", "ImageGlom"),
    "agents.encoders.glom.islands": ("Islands", "find_islands", "island_merges"),
    "agents.encoders.glom.losses": ("contrastive_loss", "denoising_loss"),
    "agents.encoders.glom.tokens": ("TokenGlom",),
    "htm_env.drawing.figures.islands": ("islands_figure", "islands_gif"),
    "agents.encoders.hierarchical.config": ("HierarchicalTransformerConfig",),
    "agents.encoders.hierarchical.transformer": ("HierarchicalTransformer",),
    "agents.encoders.reduction.reduction": (
        "HierarchyReduction",
        "ReductionLevel",
        "join_samples",
    ),
    "agents.estimator.merger": ("HierarchicalTokenMerger",),
    "agents.learners.base": ("Learner", "LearnerConfig"),
    "agents.learners.fixed_order": ("FixedOrder", "FixedOrderConfig"),
    "agents.learners.glom": ("GlomTrainer",),
    "agents.learners.reinforce": ("Reinforce", "ReinforceConfig"),
    "agents.learners.replay": ("ReplayConfig", "ReplayReinforce"),
    "agents.optim.autoencoder_trainer": ("AutoencoderConfig", "AutoencoderTrainer"),
    "agents.optim.optimizers": ("OptimizerConfig",),
    "agents.ppo": ("HTMVecEnv", "HeldOutEvaluation", "JointTraining", "PPOLearner", "make_ppo"),
    "agents.ppo.config": ("PPOConfig",),
    "agents.stable_baselines.config": ("StableBaselinesConfig",),
    "agents.stable_baselines.files": ("load_model", "save_model"),
    "agents.stable_baselines.learner": ("StableBaselinesLearner",),
}
"""Modules of the public names; a module is imported when one of its names is first used."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("htm-rl")
    if name == "load":
        from agents.registry import load_learner

        return load_learner
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
