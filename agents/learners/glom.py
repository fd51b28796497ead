"""``GlomTrainer`` of a Glom of tokens or images; ``glom`` merges the islands of one that learns
from the data's tokens alongside."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from agents.config.dataclasses_json import LARGEST, check_bounds
from agents.encoders.config import GlomConfig, GlomTrainingConfig
from agents.encoders.glom.columns import ImageGlom
from agents.encoders.glom.islands import island_merges
from agents.encoders.glom.tokens import TokenGlom
from agents.evaluation.evaluate import Planner
from agents.fixed import FixedPolicy, FixedRule
from agents.fixed.order import sorted_order
from agents.learners.fixed_order import FixedOrder
from agents.optim.autoencoder_trainer import AutoencoderConfig
from agents.optim.optimizers import GuardedOptimizer, OptimizerConfig
from agents.optim.ranks import Ranks
from htm_env.autoencoder import TreeEncoder, seeded_initialisation
from htm_env.files import load_weights
from htm_env.rewards import RewardName
from htm_env.types import TokenBatch


class GlomTrainer:
    """Updates of a Glom by its losses of scenes, without labels, trees or rewards.

    Args:
        training: the losses.
        generator: draws what is hidden, and the crops.
        ranks: the processes over which a step averages; this one alone if None.
    """

    def __init__(
        self,
        model: TokenGlom | ImageGlom,
        generator: torch.Generator,
        training: GlomTrainingConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.generator = model, generator
        self.training = GlomTrainingConfig() if training is None else training
        config = OptimizerConfig() if optimizer is None else optimizer
        self.ranks = Ranks() if ranks is None else ranks
        self.optimizer = GuardedOptimizer(
            "glom", model.parameters(), config, prefix="loss/glom_", ranks=self.ranks
        )

    def update(self, progress: float, *scenes: Tensor) -> dict[str, float]:
        """One step at this share of the training on images ``(B, C, H, W)``, or on standardised
        tokens ``(B, P, T)`` and where they are ``(B, P)``; returns the losses by their tags.

        Raises ``FloatingPointError`` where they stay non-finite, ``ValueError`` for scenes that the
        model does not take.
        """
        if len(scenes) != len(self.model.takes):
            expected = " and ".join(self.model.takes)
            raise ValueError(f"the scenes are {len(scenes)} tensors; expected {expected}")
        losses = self.model.losses(*scenes, training=self.training, generator=self.generator)
        if not losses:
            return {}
        self.optimizer.zero()
        torch.stack(list(losses.values())).sum().backward()
        return self.optimizer.step(losses, progress)

    def state(self) -> dict[str, Any]:
        """The model's weights and the optimizer, from which :meth:`restore` continues."""
        return {
            "glom": copy.deepcopy(self.model.state_dict()),
            **{f"glom_{name}": part for name, part in self.optimizer.state().items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state`."""
        load_weights(self.model, state["glom"])
        self.optimizer.restore({name: state[f"glom_{name}"] for name in ("optimizer", "guard")})


@dataclass(frozen=True)
class GlomOrderConfig:
    """A Glom, its training, and the training of the autoencoder on its trees."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    glom: GlomConfig = field(default_factory=GlomConfig)
    training: GlomTrainingConfig = field(default_factory=GlomTrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer of the Glom."""
    glom_share: float = 0.3
    """The share of the budget at whose end the Glom stops learning, and its trees are fixed."""
    glom_batch_size: int = 48
    """Scenes of an update of the Glom."""
    tolerance: float = 0.02
    """Bound of nearly equal: squared distances up to this share of a scene's mean."""
    batch_size: int = 32
    """Trees an update of the autoencoder."""
    reward: RewardName | None = None
    """As for fixed orders."""

    def __post_init__(self) -> None:
        size = (1, LARGEST)
        check_bounds(self, glom_share=(0, 1), glom_batch_size=size, tolerance=0, batch_size=size)


class GlomOrder(FixedOrder):
    """A fixed policy as soon as its Glom stops learning: the islands of a sample are its tree, and
    within a pair the child with the smaller centroid comes first.

    The Glom observes standardised tokens and no labels, trees or rewards.
    """

    algo = "glom"
    algorithms = ("glom",)
    config_class = GlomOrderConfig
    config: GlomOrderConfig  # type: ignore[assignment]  # it names no fixed policy

    def make_planner(self) -> Planner:
        with seeded_initialisation(self.generator):
            model = TokenGlom(self.dataset.token_dim, self.config.glom)
        self.glom = model.to(self.device)
        self.columns = GlomTrainer(
            self.glom, self.generator, self.config.training, self.config.optimizer, self.ranks
        )
        return FixedPolicy(FixedRule("glom", self._islands, sorted_order), self.autoencoder)

    def _islands(
        self, batch: TokenBatch, autoencoder: TreeEncoder, generator: torch.Generator
    ) -> Int64[Tensor, "B M 2"]:
        columns = self.glom(autoencoder.standardise(batch.tokens), batch.present)
        return island_merges(columns, batch.present, self.config.tolerance)

    def update(self, progress: float) -> dict[str, float]:
        scalars = {}
        if progress < self.config.glom_share:
            scalars = self._learn_columns(progress / self.config.glom_share)
        return scalars | super().update(progress)

    def _learn_columns(self, progress: float) -> dict[str, float]:
        """One step of the Glom, at this share of its own part of the budget."""
        batch = self.sample(self.config.glom_batch_size)
        tokens = self.autoencoder.standardise(batch.tokens)
        return self.columns.update(progress, tokens, batch.present)

    def state(self) -> dict[str, Any]:
        return super().state() | self.columns.state()

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.columns.restore(state)
