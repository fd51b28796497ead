"""``flat``: a set autoencoder without merges, the row that shows what the hierarchy buys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.config.dataclasses_json import check_bounds
from agents.evaluation.evaluate import CHUNK, TEST_EPISODES, TREE_SCORES
from agents.learners.base import Learner
from agents.learners.flat_autoencoder import FlatAutoencoder, matched, matching_width
from agents.optim.autoencoder_trainer import AUTOENCODER_OPTIMIZER
from agents.optim.optimizers import NonFiniteGuard, OptimizerConfig, ScheduledOptimizer
from htm_env.datasets import Dataset
from htm_env.measures.metrics import nmse_per_sample
from htm_env.types import NONE, TokenBatch
from htm_env.weights import embedding_dim_of


@dataclass(frozen=True)
class FlatConfig:
    """The flat autoencoder and its training."""

    hidden_dim: int = 256
    """Hidden width of the tree autoencoder whose number of parameters it is given."""
    optimizer: OptimizerConfig = AUTOENCODER_OPTIMIZER
    """Of all parts; that of the trees' autoencoders."""
    batch_size: int = 64
    """Samples an update."""

    def __post_init__(self) -> None:
        check_bounds(self, hidden_dim=(1, math.inf), batch_size=(1, math.inf))


class Flat(Learner):
    """Trains a set autoencoder of the same embedding and size as the tree's, and makes no trees.

    Its ``nmse`` is everybody's, with one favour: a decoded set has no order, so it is matched to
    the sample's tokens by the assignment that makes the error least, while a tree has to put every
    token in its place. A sample of ``n`` tokens counts as ``n - 1`` merges, so that equal budgets
    show equal numbers of samples.
    """

    algo = "flat"
    config_class = FlatConfig
    config: FlatConfig
    makes_trees = False
    autoencoder: FlatAutoencoder  # type: ignore[assignment]  # no tree can go through it

    def __init__(self, env_id: str, config: FlatConfig | None = None, **task: Any) -> None:
        super().__init__(env_id, config, **task)
        self.optimizer = ScheduledOptimizer(self.autoencoder.parameters(), self.config.optimizer)
        self.guard = NonFiniteGuard()

    def _make_autoencoder(self) -> FlatAutoencoder:  # type: ignore[override]
        if self.task.mode == "frozen":
            raise ValueError("flat has no pretrained autoencoder to keep frozen; use mode joint")
        dim = self.task.embedding_dim
        dim = embedding_dim_of(self.task.env_id) if dim is None else dim
        token_dim, slots = self.dataset.token_dim, self.dataset.max_tokens
        width = matching_width(token_dim, slots, dim, self.config.hidden_dim)
        autoencoder = FlatAutoencoder(token_dim, slots, dim, width, generator=self.generator)
        autoencoder.set_statistics(self.dataset.mean, self.dataset.std)
        return autoencoder

    def plan(
        self, batch: TokenBatch, generator: torch.Generator, *, greedy: bool
    ) -> Int64[Tensor, "B M 2"]:
        """No merges: there is no tree."""
        return torch.full_like(batch.merges, NONE)

    @torch.no_grad()
    def embed(self, batch: TokenBatch, generator: torch.Generator) -> Float[Tensor, "B D"]:
        """The embedding of every set; nothing is drawn."""
        return self.autoencoder.encode(self.autoencoder.standardise(batch.tokens), batch.present)

    def update(self, progress: float) -> dict[str, float]:
        batch = self.dataset.sample(self.config.batch_size, self.generator).to(self.device)
        self.merges_made += int((batch.num_tokens - 1).sum())
        loss = self._errors(batch, self._reconstruct(batch)).mean()
        self.optimizer.zero()
        loss.backward()
        norm = self.optimizer.clip()
        if self.guard.allows("flat autoencoder", loss, norm):
            self.optimizer.step(progress)
        self.updates += 1
        return {
            "train/nmse": float(loss.detach()),
            "loss/reconstruction": float(loss.detach()),
            "gradient_norm/autoencoder": float(norm),
            "train/skipped_updates": float(self.guard.skipped),
        }

    def _reconstruct(self, batch: TokenBatch) -> Float[Tensor, "B P T"]:
        """The decoded tokens in the data's own units, matched to the sample's."""
        autoencoder = self.autoencoder
        standardised = autoencoder.standardise(batch.tokens)
        roots = autoencoder.encode(standardised, batch.present)
        tokens = matched(autoencoder.decode(roots, batch.num_tokens), standardised, batch.present)
        return tokens * autoencoder.token_std + autoencoder.token_mean

    def _errors(
        self, batch: TokenBatch, tokens: Float[Tensor, "B P T"], std: Tensor | None = None
    ) -> Float[Tensor, "B"]:
        std = self.std if std is None else std
        return nmse_per_sample(tokens, batch.tokens, batch.present, std)

    # ------------------------------------------------------------ scores and pictures

    @torch.no_grad()
    def evaluate(
        self, dataset: Dataset, count: int = TEST_EPISODES, *, sampled: bool = True
    ) -> dict[str, float | None]:
        """``nmse`` after matching; nothing is sampled, and there are no clades and no heights."""
        episodes = dataset.fixed(count).to(self.device)
        std = dataset.std.to(self.device)
        errors = [
            self._errors(batch, self._reconstruct(batch), std).double()
            for batch in episodes.parts(CHUNK)
        ]
        error = float(torch.cat(errors).mean())
        return {
            "nmse": error,
            **({"sampled_nmse": error} if sampled else {}),
            **dict.fromkeys(TREE_SCORES),
        }

    @torch.no_grad()
    def figure(self, dataset: Dataset) -> Any:
        from agents.evaluation.figures import SAMPLES, reconstructions_figure

        batch = dataset.fixed(SAMPLES).to(self.device)
        tokens = self._reconstruct(batch)
        errors = self._errors(batch, tokens, dataset.std.to(self.device))
        merges = torch.full_like(batch.merges, NONE)
        return reconstructions_figure(batch, merges, tokens, errors, dataset.kind)

    # ------------------------------------------------------------ resume

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "optimizer": self.optimizer.state(),
            "guard": self.guard.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.optimizer.restore(state["optimizer"])
        self.guard.restore(state["guard"])
