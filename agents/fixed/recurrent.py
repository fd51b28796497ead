"""Trees of what recurs: the two parts whose tokens have the largest mean affinity are merged."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64
from torch import Tensor

from agents.fixed.linkage import PAIRS, average_update, linked
from agents.fixed.slot_trees import in_slots, sorted_slots
from htm_env.autoencoder import TreeEncoder
from htm_env.datasets import Dataset
from htm_env.types import TokenBatch


@dataclass(frozen=True)
class Recurrent:
    """Average linkage by the affinities of :class:`htm_env.recurrence.Recurrence`.

    It is estimated from the tokens of the training split, without labels, hierarchy or order.
    """

    dataset: Dataset | None = None

    def on(self, dataset: Dataset) -> Recurrent:
        """The same for tokens of that data."""
        return replace(self, dataset=dataset)

    def __call__(
        self, batch: TokenBatch, autoencoder: TreeEncoder, generator: torch.Generator, /
    ) -> Int64[Tensor, "B M 2"]:
        """One tree a sample; the pairs are in no order that means anything.

        Raises ``ValueError`` without the data, and where its training split has too few samples.
        """
        from htm_env.recurrence import recurrence  # it loads much, and most learners need none

        if self.dataset is None:
            raise ValueError(
                "the recurrent policies expected the dataset, whose training split says what "
                "recurs; dataset is None"
            )
        order = sorted_slots(batch)  # (B, P), the tokens of a sample in front
        rows = torch.arange(len(order), device=order.device)[:, None]
        affinities = recurrence(self.dataset).affinities(batch).double()
        distances = -affinities[rows[..., None], order[:, :, None], order[:, None]]
        at_once = max(1, PAIRS // batch.present.shape[1] ** 2)
        parts = zip(distances.split(at_once), batch.present.split(at_once), strict=True)
        merges = torch.cat([linked(*part, average_update) for part in parts])
        return in_slots(merges, order, batch.num_tokens)


recurrent_tree = Recurrent()
