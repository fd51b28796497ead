"""Whether stored merges are a forest, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from htm_env.trees.merge_tree import MergeTree
from htm_env.types import NONE


def check_forests(
    merges: Int64[Tensor, "B M 2"],
    num_leaves: Int64[Tensor, "B"],
    name: Callable[[int], str] = "episode {}".format,
) -> None:
    """Raise ``ValueError`` naming the first row whose merges are not a forest, and its merge."""
    bad = not_forests(merges, num_leaves)
    if bad.any():
        row = int(bad.nonzero()[0])
        reason = "the merges are not those of a forest"
        try:
            MergeTree(merges[row].cpu().numpy(), int(num_leaves[row]))
        except ValueError as error:
            reason = str(error)
        raise ValueError(
            f"{name(row)} is not a forest over its {int(num_leaves[row])} tokens: {reason} "
            "Expected pairs of different nodes, each made before and used once."
        )


def not_forests(
    merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]
) -> Bool[Tensor, "B"]:
    """True <--> a merge joins a node that is not there by then or was used, or padding is amiss."""
    batch, steps, _ = merges.shape
    made = num_leaves[:, None] + torch.arange(steps, device=merges.device)  # (B, M)
    real = merges >= 0
    wrong = (merges >= made[..., None]).any(-1) | (merges < NONE).any(-1)
    wrong |= real[..., 0] != real[..., 1]
    wrong[:, 1:] |= real[:, 1:, 0] & ~real[:, :-1, 0]
    nodes = int(made.max()) if made.numel() else 0  # one more collects the rest
    uses = torch.zeros(batch, nodes + 1, dtype=torch.int64, device=merges.device)
    index = torch.where(real & (merges < nodes), merges, nodes).flatten(1)
    uses.scatter_add_(1, index, torch.ones_like(index))
    return wrong.any(1) | (uses[:, :nodes] > 1).any(1)
