"""``retrained``: a fresh autoencoder on the trees of an earlier run, whose policy stays frozen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Int64
from torch import Tensor

from agents.config.dataclasses_json import check_bounds
from agents.learners.base import Learner
from agents.learners.fixed_order import FixedOrder, FixedOrderConfig, MergeOrder
from agents.optim.autoencoder_trainer import AutoencoderConfig
from agents.registry import load_learner
from htm_env.autoencoder import HTMAutoencoder
from htm_env.types import TokenBatch


@dataclass(frozen=True)
class RetrainedConfig:
    """The run whose trees are taken, and the training of a fresh autoencoder on them."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    run: str = ""
    """Folder of the run, with a checkpoint."""
    batch_size: int = FixedOrderConfig.batch_size
    """Trees an update, as for fixed orders."""

    def __post_init__(self) -> None:
        check_bounds(self, batch_size=(1, math.inf))


class GreedyTrees:
    """The greedy trees of a trained learner, which observes its own, old autoencoder."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def merges(
        self, batch: TokenBatch, autoencoder: HTMAutoencoder, generator: torch.Generator
    ) -> Int64[Tensor, "B M 2"]:
        return self.learner.plan(batch, generator, greedy=True)


class Retrained(FixedOrder):
    """Trains a fresh autoencoder on the trees of a trained policy.

    The frozen policy's greedy trees are a fixed merge order like any other. The fresh autoencoder
    is this project's default whatever the run's own was, so that only the trees differ. Every tree
    is greedy, so ``sampled_nmse`` is ``nmse``.

    Raises ``FileNotFoundError`` or ``ValueError`` where ``config.run`` is not a trained run on the
    same environment that makes trees.
    """

    algo = "retrained"
    algorithms = ("retrained",)
    config_class = RetrainedConfig
    config: RetrainedConfig  # type: ignore[assignment]  # the trees come from a run, not by name

    def _merge_order(self) -> MergeOrder:
        if not self.config.run:
            raise ValueError("retrained needs the folder of a run; none is given")
        learner = load_learner(self.config.run)
        if not learner.makes_trees:
            raise ValueError(f"{self.config.run} is a run of {learner.algo}, which makes no trees")
        if learner.task.env != self.task.env:
            raise ValueError(
                f"{self.config.run} was trained on {learner.task.env}; expected {self.task.env}"
            )
        return GreedyTrees(learner)
