"""Training of an autoencoder on given merges, in minibatches, which all learners share."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from agents.config.dataclasses_json import LARGEST, check_bounds
from agents.config.schedules import check_points, piecewise_linear
from agents.optim.optimizers import NonFiniteGuard, OptimizerConfig, ScheduledOptimizer
from agents.optim.ranks import Ranks
from htm_env.autoencoder import HTMAutoencoder
from htm_env.checks import check_choice
from htm_env.datasets.kinds import place_columns
from htm_env.files import load_weights
from htm_env.losses import LossWeights, autoencoder_losses
from htm_env.types import TokenBatch
from htm_env.views import ViewConfig, ViewNetworks, view_losses

PRECISIONS = ("float32", "bfloat16")
AUTOENCODER_OPTIMIZER = OptimizerConfig(method="soap", learning_rate=1e-2)
"""The numbers of an embedding have no axes of their own, so Adam, which scales every weight by
itself, scales along the wrong ones; in equal time SOAP left a sixth of its error (Trees, D=16)."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """The autoencoder and how it is trained."""

    hidden_dim: int = 256
    """Width of the hidden layers, counted in plain units: gated ones are two thirds as many."""
    architecture: str = "residual"
    """``residual``, ``mlp`` (the published method's), or ``posed``: a node is a pose and a content
    in its own frame, for tokens that have places."""
    loss: LossWeights = field(default_factory=LossWeights)
    """Weights of the losses."""
    subtree_share: tuple[tuple[float, float], ...] = ((0.0, 0.3), (1.0, 0.05))
    """(share of the budget, probability) points: how many nodes below the root are decoded for
    themselves."""
    transport_interpolation: tuple[tuple[float, float], ...] = ((0.05, 0.5), (0.8, 0.0))
    """(share of the budget, share) points: how much of the transport target is the decoder's own
    state, the rest the encoder's."""
    contrast_temperature: float = 0.2
    """Divides the cosines of the contrast between encoder and decoder."""
    views: ViewConfig = field(default_factory=ViewConfig)
    """Losses on other views of every sample: masking, and agreement; none by default."""
    noise_std: float = 0.0
    """Gaussian noise after lifting and merging in training."""
    precision: str = "float32"
    """Precision of matrix products in training: float32, or bfloat16, three digits of it, for large
    networks on devices that have it (elsewhere it stays float32). At the default sizes processors
    lose time by it, even those that have it."""
    lifter: OptimizerConfig = AUTOENCODER_OPTIMIZER
    """Lifter and unlifter."""
    merger: OptimizerConfig = AUTOENCODER_OPTIMIZER
    """Merger and unmerger."""
    classifier: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Leaf classifier."""
    view_networks: OptimizerConfig = field(default_factory=OptimizerConfig)
    """What is learned for views alone: the vector of hidden nodes, and the projector."""

    def __post_init__(self) -> None:
        check_bounds(self, hidden_dim=(1, LARGEST), noise_std=0, contrast_temperature=1e-3)
        check_choice("precision", self.precision, PRECISIONS)
        check_points("subtree_share", self.subtree_share)
        check_points("transport_interpolation", self.transport_interpolation)


class AutoencoderTrainer:
    """Three optimizers (lifter, merger, classifier) over one autoencoder.

    ``ranks`` are the processes over which a step averages; this one alone if None. ``kind`` is that
    of the tokens, whose places views may change. Where there are views, a fourth optimizer has what
    is learned for them alone.

    Raises ``ValueError`` where views are to change places and tokens have none.
    """

    def __init__(
        self,
        autoencoder: HTMAutoencoder,
        config: AutoencoderConfig,
        generator: torch.Generator,
        ranks: Ranks | None = None,
        kind: str = "vectors",
    ) -> None:
        self.autoencoder, self.config, self.generator = autoencoder, config, generator
        self.kind = kind
        self.ranks = Ranks() if ranks is None else ranks
        parts: dict[str, list[nn.Module]] = {
            "lifter": [autoencoder.lifter, autoencoder.unlifter],
            "merger": [autoencoder.merger, autoencoder.unmerger],
            "classifier": [autoencoder.classifier],
        }
        self.view_networks = self._view_networks()
        if self.view_networks is not None and any(True for _ in self.view_networks.parameters()):
            parts["view_networks"] = [self.view_networks]
        self.optimizers = {
            name: ScheduledOptimizer(
                [parameter for module in modules for parameter in module.parameters()],
                getattr(config, name),
            )
            for name, modules in parts.items()
        }
        self.guard = NonFiniteGuard()
        self.device = autoencoder.token_mean.device
        self.precision = usable_precision(config.precision, self.device)

    def _view_networks(self) -> ViewNetworks | None:
        """Alike in all processes; None without views."""
        views = self.config.views
        if not views.on:
            return None
        if views.moves:
            place_columns(self.kind, self.autoencoder.token_dim)
        device = self.autoencoder.token_mean.device
        # From a copy, so that a trainer that is made to be restored draws nothing.
        draws = torch.Generator(self.generator.device)
        draws.set_state(self.generator.get_state())
        networks = ViewNetworks(self.autoencoder.embedding_dim, views, draws).to(device)
        with torch.no_grad():
            for weight in networks.parameters():
                first = weight if self.ranks.index == 0 else torch.zeros_like(weight)
                weight.copy_(self.ranks.sum(first))
        return networks

    @property
    def steps(self) -> int:
        """Gradient steps so far, without those that were skipped."""
        return self.optimizers["merger"].updates

    def update(
        self, batch: TokenBatch, merges: Int64[Tensor, "B M 2"], progress: float
    ) -> dict[str, float]:
        """One gradient step on these trees or partial forests; returns losses and gradient norms.

        A non-finite loss or gradient skips the step; ``FloatingPointError`` if that persists.
        """
        begin_mean = self.ranks.begin_mean if self.ranks.count > 1 else None
        with products_in(self.precision, self.device):
            losses = autoencoder_losses(
                self.autoencoder,
                batch,
                merges,
                self.config.loss,
                subtree_share=piecewise_linear(self.config.subtree_share, progress),
                interpolation=piecewise_linear(self.config.transport_interpolation, progress),
                temperature=self.config.contrast_temperature,
                noise_std=self.config.noise_std,
                generator=self.generator,
                begin_mean=begin_mean,
            )
            if self.view_networks is not None:
                views = view_losses(
                    self.autoencoder,
                    self.view_networks,
                    batch,
                    merges,
                    self.config.views,
                    self.kind,
                    generator=self.generator,
                    begin_mean=begin_mean,
                )
                total = losses.pop("total") + views.pop("total")
                losses = {**losses, **views, "total": total}
        for optimizer in self.optimizers.values():
            optimizer.zero()
        losses["total"].backward()
        learned = [one for part in self.optimizers.values() for one in part.parameters]
        losses = self.ranks.average(learned, losses)
        total = losses.pop("total")
        norms = {name: optimizer.clip() for name, optimizer in self.optimizers.items()}
        if self.guard.allows("autoencoder", total, *norms.values()):
            for optimizer in self.optimizers.values():
                optimizer.step(progress)
        return {
            **{f"loss/{name}": float(loss.detach()) for name, loss in losses.items()},
            **{f"gradient_norm/{name}": float(norm) for name, norm in norms.items()},
            "train/skipped_updates": float(self.guard.skipped),
        }

    def update_in_parts(
        self,
        batch: TokenBatch,
        merges: Int64[Tensor, "B M 2"],
        trees_per_step: int,
        progress: float,
    ) -> dict[str, float]:
        """Steps on about ``trees_per_step`` of these trees each; returns the mean of each scalar.

        Trees cost more to make than to learn from, and several small steps learn more from them
        than a large one.
        """
        parts = equal_parts(len(merges), trees_per_step, merges.device)
        return mean_scalars(self.update(batch.rows(rows), merges[rows], progress) for rows in parts)

    def state(self) -> dict[str, Any]:
        return {
            **{name: optimizer.state() for name, optimizer in self.optimizers.items()},
            "guard": self.guard.state(),
            **self._learned_for_views(),
        }

    def _learned_for_views(self) -> dict[str, Any]:
        """The weights of the view networks; nothing where there are none."""
        if self.view_networks is None:
            return {}
        return {"views": copy.deepcopy(self.view_networks.state_dict())}

    def restore(self, state: dict[str, Any]) -> None:
        for name, optimizer in self.optimizers.items():
            optimizer.restore(state[name])
        self.guard.restore(state["guard"])
        if self.view_networks is not None:
            load_weights(self.view_networks, state["views"])


def equal_parts(
    total: int, size: int, device: str | torch.device = "cpu"
) -> list[Int64[Tensor, "part"]]:
    """The rows ``0 .. total - 1`` in parts that differ by one row at most, each about ``size``.

    A part takes every so many rows, so that trees of the same sample, which are neighbours, come
    into different parts where there are several.
    """
    parts = max(1, round(total / size))
    return [torch.arange(part, total, parts, device=device) for part in range(parts)]


def mean_scalars(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """The mean of every scalar over the rows where it is finite; NaN where it never is."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for tag, value in row.items():
            values.setdefault(tag, []).append(value)
    return {tag: mean_of_finite(numbers) for tag, numbers in values.items()}


def mean_of_finite(values: list[float]) -> float:
    """The mean of those that are finite; NaN if none is."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def has_bfloat16(device: str | torch.device) -> bool:
    """True <--> this device multiplies bfloat16 matrices itself, without a slow emulation."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        mkldnn = torch.backends.mkldnn.is_available()  # not on every build
        return mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def usable_precision(precision: str, device: str | torch.device) -> str:
    """The given one; float32, with a ``RuntimeWarning``, where the device does not have it."""
    if precision == "bfloat16" and not has_bfloat16(device):
        warnings.warn(f"{device} has no bfloat16; training in float32", RuntimeWarning, 2)
        return "float32"
    return precision


def products_in(precision: str, device: str | torch.device) -> AbstractContextManager[object]:
    """A context in which linear layers multiply in this precision; weights stay float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
