"""``retrained``: a fresh autoencoder on the trees of an earlier run, whose policy stays frozen."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from agents.config.dataclasses_json import check_bounds
from agents.evaluation.evaluate import Planner
from agents.learners.fixed_order import FixedOrder, FixedOrderConfig
from agents.optim.autoencoder_trainer import AutoencoderConfig
from agents.registry import load_learner


@dataclass(frozen=True)
class RetrainedConfig:
    """The run whose trees are taken, and the training of a fresh autoencoder on them."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    run: str = ""
    """Folder of the run, with a checkpoint."""
    batch_size: int = FixedOrderConfig.batch_size
    """Trees an update, as for fixed orders."""

    def __post_init__(self) -> None:
        check_bounds(self, batch_size=1)


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

    def make_planner(self) -> Planner:
        if not self.config.run:
            raise ValueError("retrained needs the folder of a run; none is given")
        learner = load_learner(self.config.run)
        if learner.task.env != self.task.env:
            raise ValueError(
                f"{self.config.run} was trained on {learner.task.env}; expected {self.task.env}"
            )
        one = self.dataset.fixed(1).to(self.device)
        learner.plan(one, torch.Generator(self.device), greedy=True)  # raises without trees
        return learner
