"""``SpanEncoder``: a descriptor of the leaves under each token, and of the population."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from agents.encoders.base import Context, ContextEncoder, Spans, without_junk
from agents.encoders.config import SpanConfig
from agents.encoders.reduction.reducers import make_reducer


class SpanEncoder(ContextEncoder):
    """A hierarchy reduction of the forest: leaves to tokens, tokens to the population.

    An embedding is what the autoencoder made of a subtree; the descriptor beside it comes from the
    subtree's own leaves, as a function of a set (Zaheer et al. 2017, "Deep sets"; several reducers
    side by side: Corso et al. 2020, "Principal neighbourhood aggregation"). A token's descriptor
    depends on what is under it and on nothing else; the others are in the summary. Costs
    O(tokens of the sample), however many are left.
    """

    needs = ("spans",)

    def __init__(self, width: int, config: SpanConfig, coordinates: int) -> None:
        super().__init__()
        hidden = config.expansion * width
        self.lift = nn.Sequential(
            nn.Linear(coordinates, hidden), nn.GELU(), nn.Linear(hidden, width)
        )
        self.leaf_reducers = nn.ModuleList(make_reducer(name, width) for name in config.reducers)
        self.describe = nn.Sequential(
            nn.Linear((1 + len(config.reducers)) * width, hidden),
            nn.GELU(),
            nn.Linear(hidden, width),
            nn.LayerNorm(width),
        )
        self.summary_reducer = make_reducer(config.summary, width)

    def forward(
        self,
        tokens: Float[Tensor, "B P W"],
        active: Bool[Tensor, "B P"],
        *,
        spans: Spans | None = None,
        **others: Any,
    ) -> Context:
        """See :class:`ContextEncoder`; ``ValueError`` also for an owner that is no slot."""
        leaves, owners = self.needed("spans", spans)
        batch, slots = active.shape
        if owners.numel() and int(owners.max()) >= slots:
            raise ValueError(f"owners name slot {int(owners.max())}; expected less than {slots}")
        rows = torch.arange(batch, device=tokens.device)[:, None]
        # A row of this batch for every leaf, a group for every slot of all populations.
        flat = torch.where(owners >= 0, rows * slots + owners, -1).flatten()
        lifted = self.lift(leaves.masked_fill(owners[..., None] < 0, 0.0)).flatten(0, 1)
        reduced = [reducer(lifted, flat, batch * slots) for reducer in self.leaf_reducers]
        beside = torch.cat(reduced, dim=1).unflatten(0, (batch, slots))  # (B, P, reducers W)
        described = self.describe(torch.cat([without_junk(tokens, active), beside], dim=2))
        described = without_junk(described, active)
        population = torch.where(active, rows, -1).flatten()
        summary = self.summary_reducer(described.flatten(0, 1), population, batch)
        return Context(described, summary)
