"""Fixed policies: rules for whole trees, and planners that follow them on an autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor

from htm_env.autoencoder import TreeEncoder
from htm_env.datasets import Dataset
from htm_env.forest import pad_merges
from htm_env.types import TokenBatch

Shape = Callable[[TokenBatch, TreeEncoder, torch.Generator], Tensor]
"""``shape(batch, autoencoder, generator) -> merges (B, M, 2)``: one complete tree a sample."""

Order = Callable[[Tensor, TokenBatch, TreeEncoder, torch.Generator], Tensor]
"""``order(merges, batch, autoencoder, generator) -> merges``: the same trees, pairs turned."""


class Need(NamedTuple):
    """What a rule has to have of a model."""

    is_met: Callable[[TreeEncoder], bool]
    expected: str
    """What is expected, for the error where there is none."""


@dataclass(frozen=True)
class FixedRule:
    """A rule for the tree, and one for the order within each pair.

    The order is information (an autoencoder learns sorted pairs far better than shuffled ones), so
    the same tree in another order is another policy.
    """

    name: str
    """The name under which results are reported."""
    shape: Shape
    order: Order
    needs_hierarchy: bool = False
    """True <--> it follows merges that come with the data."""
    need: Need | None = None
    """What only some models have; None <--> it plans with any."""

    def suits(self, dataset: Dataset, model: TreeEncoder) -> bool:
        """True <--> it plans trees of this data with this model."""
        has_hierarchy = dataset.has_hierarchy or not self.needs_hierarchy
        return has_hierarchy and (self.need is None or self.need.is_met(model))

    def on(self, dataset: Dataset) -> FixedRule:
        """The rule for tokens of that data, whatever it has to know of it."""
        return self


@runtime_checkable
class ShapeOfData(Protocol):
    """A shape that has to know the data that the samples are of."""

    def on(self, dataset: Dataset) -> Shape:
        """The shape for tokens of that data."""

    def __call__(
        self, batch: TokenBatch, autoencoder: TreeEncoder, generator: torch.Generator, /
    ) -> Tensor:
        """One complete tree a sample; ``ValueError`` before :meth:`on`."""


@dataclass(frozen=True)
class MeasuredRule(FixedRule):
    """A rule that measures the data: what its tokens stand for, or what recurs in it."""

    shape: ShapeOfData

    def on(self, dataset: Dataset) -> FixedRule:
        return FixedRule(
            self.name, self.shape.on(dataset), self.order, self.needs_hierarchy, self.need
        )


@dataclass(frozen=True)
class FixedPolicy:
    """The planner that follows a rule, greedy or not; it learns nothing."""

    rule: FixedRule
    autoencoder: TreeEncoder
    """Standardises the coordinates; gives the embeddings and errors to the rules that use them."""

    @torch.no_grad()
    def plan(
        self, batch: TokenBatch, generator: torch.Generator, *, greedy: bool = True
    ) -> Int64[Tensor, "B M 2"]:
        """One complete tree for each sample, in node ids; -1 pads.

        Empty slots behind the largest sample change nothing, random numbers included: all of them
        come from ``generator``, as many as that sample needs.

        Raises ``ValueError`` where the policy needs a hierarchy that the data does not have, or
        what the model does not.
        """
        need = self.rule.need
        if need is not None and not need.is_met(self.autoencoder):
            raise ValueError(
                f"{self.rule.name} cannot plan with {type(self.autoencoder).__name__}; expected "
                f"{need.expected}"
            )
        num_slots = batch.present.shape[1]
        filled = _without_empty_slots(batch)
        merges = self.rule.shape(filled, self.autoencoder, generator)
        ordered = self.rule.order(merges, filled, self.autoencoder, generator)
        return pad_merges(ordered, num_slots)


def _without_empty_slots(batch: TokenBatch) -> TokenBatch:
    """The same samples in as many slots as the largest of them fills."""
    slots = max(1, int(batch.num_tokens.max()))
    return batch._replace(
        tokens=batch.tokens[:, :slots],
        present=batch.present[:, :slots],
        clades=batch.clades[:, :, :slots],
        merges=batch.merges[:, : slots - 1],
    )
