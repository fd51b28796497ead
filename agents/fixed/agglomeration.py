"""Agglomeration in lockstep: at each step every sample merges its two nearest active nodes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.fixed.slot_trees import only_real
from htm_env.forest import legal_pairs
from htm_env.types import NONE, TokenBatch

Joined = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``joined(distances (B, P, P), first (B,), second (B,)) -> (B, P)``: from the parent to all."""

UNKNOWN = 1e30
"""Stands for a distance that is not a number: farthest of all, but still a legal pair."""


def agglomerate(
    distances: Float[Tensor, "B P P"],
    batch: TokenBatch,
    joined: Joined,
    turn: torch.Generator | None = None,
) -> Int64[Tensor, "B M 2"]:
    """Merge the pair with the smallest of the symmetric ``distances`` until one root is left.

    The parent takes the place of the first of the pair, which is the one in the lower place unless
    a generator is given: then each pair is turned with probability 1/2 *before* ``joined`` sees it.
    Each step reads all distances: ``O(P^3)`` a sample.
    """
    samples, slots, _ = distances.shape
    num_leaves, device = batch.num_tokens, distances.device
    rows = torch.arange(samples, device=device)
    active = batch.present.clone()
    distances = _known(distances).masked_fill(~legal_pairs(active), torch.inf)
    nodes = torch.arange(slots, device=device).repeat(samples, 1)
    merges = nodes.new_full((samples, slots - 1, 2), NONE)
    coins = None
    if turn is not None:
        coins = torch.rand(slots - 1, samples, generator=turn, device=turn.device).to(device) < 0.5
    for step in range(slots - 1):
        # amin is many times faster than an argmin of the same values.
        first = distances.amin(dim=2).argmin(dim=1)
        second = distances[rows, first].argmin(dim=1)
        if coins is not None:
            coin = coins[step]
            first, second = torch.where(coin, second, first), torch.where(coin, first, second)
        merges[:, step, 0], merges[:, step, 1] = nodes[rows, first], nodes[rows, second]
        nodes[rows, first] = num_leaves + step
        active[rows, second] = False
        new = _known(joined(distances, first, second)).masked_fill(~active, torch.inf)
        new[rows, first] = torch.inf
        distances[rows, second], distances[rows, :, second] = torch.inf, torch.inf
        distances[rows, first], distances[rows, :, first] = new, new
    return only_real(merges, num_leaves)


def _known(distances: Tensor) -> Tensor:
    return distances.nan_to_num(nan=UNKNOWN, posinf=UNKNOWN, neginf=-UNKNOWN)
