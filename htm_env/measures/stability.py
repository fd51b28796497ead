"""Stability of trees: the same samples with noise on their tokens, or without one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.forest import leaf_sets
from htm_env.measures.metrics import clade_scores
from htm_env.types import NONE, TokenBatch

JITTER = 0.02
"""Standard deviation of the noise, as a share of that of each coordinate."""


class Changed(NamedTuple):
    """Samples that were changed, their tokens shuffled anew."""

    batch: TokenBatch
    slots: Int64[Tensor, "B P"]
    """The slot that each token had before; -1 in empty slots."""


def jittered(
    batch: TokenBatch,
    std: Float[Tensor, "T"],
    generator: torch.Generator,
    *,
    categories: int = 0,
    share: float = JITTER,
) -> Changed:
    """Samples with Gaussian noise of ``share`` of ``std`` on every coordinate of their tokens.

    The last ``categories`` coordinates, probabilities of categories, stay as they are. All random
    numbers come from ``generator``, which is on the device of the batch.
    """
    noise = _drawn(torch.randn, batch.tokens, generator) * (share * std)
    noise[..., noise.shape[2] - categories :] = 0
    tokens = batch.tokens + noise.masked_fill(~batch.present[..., None], 0.0)
    return _shuffled(batch._replace(tokens=tokens), batch.present, generator)


def without_one(batch: TokenBatch, generator: torch.Generator) -> Changed:
    """Samples without one token each, which is drawn.

    Raises ``ValueError`` for a sample of fewer than two tokens.
    """
    if int(batch.num_tokens.min()) < 2:
        raise ValueError("a sample has fewer than 2 tokens; expected one to drop and one to keep")
    draws = _drawn(torch.rand, batch.present, generator).masked_fill(~batch.present, -1.0)
    kept = batch.present.clone().scatter_(1, draws.argmax(1, keepdim=True), False)
    return _shuffled(batch, kept, generator)


def stability(
    batch: TokenBatch,
    merges: Int64[Tensor, "B M 2"],
    changed: Changed,
    changed_merges: Int64[Tensor, "B M 2"],
) -> Float[Tensor, "B"]:
    """The share of clades that the trees of a sample before and after a change have in common.

    Both trees are restricted to the tokens that both have; of binary trees the share is the exact
    F1, and 1 minus the normalised Robinson-Foulds distance. NaN where fewer than three tokens are
    left, of which all trees are the same.
    """
    size, slots = batch.present.shape
    places = torch.where(changed.slots == NONE, slots, changed.slots)  # a place for what is empty
    kept = batch.present.new_zeros(size, slots + 1).scatter_(1, places, True)[:, :slots]
    found = leaf_sets(changed_merges, changed.batch.num_tokens)  # (B, N, P) over changed slots
    moved = found.new_zeros(size, found.shape[1], slots + 1)
    moved.scatter_(2, places[:, None].expand(-1, found.shape[1], -1), found)
    before = leaf_sets(merges, batch.num_tokens)
    return clade_scores(moved[..., :slots], before, kept).exact_f1


def restricted_merges(
    merges: Int64[Tensor, "B M 2"],
    num_leaves: Int64[Tensor, "B"],
    slots: Int64[Tensor, "B P"],
) -> Int64[Tensor, "B M 2"]:
    """The same trees over other leaves: leaf ``s`` of a result is leaf ``slots[s]`` of the tree.

    Leaves that no slot names are left out, with the merges that joined them to something.
    """
    restricted = torch.full_like(merges, NONE)
    for row, (pairs, leaves, named) in enumerate(
        zip(merges.tolist(), num_leaves.tolist(), slots.tolist(), strict=True)
    ):
        named = [leaf for leaf in named if leaf != NONE]
        nodes = {leaf: slot for slot, leaf in enumerate(named)}
        made: list[list[int]] = []
        for parent, (first, second) in enumerate(pairs, start=leaves):
            both = [nodes[child] for child in (first, second) if child in nodes]
            if len(both) == 2:
                nodes[parent] = len(named) + len(made)
                made.append(both)
            elif both:
                nodes[parent] = both[0]
        if made:
            restricted[row, : len(made)] = torch.tensor(made, device=merges.device)
    return restricted


def _shuffled(batch: TokenBatch, kept: Bool[Tensor, "B P"], generator: torch.Generator) -> Changed:
    """The kept tokens of every sample in a random order."""
    draws = _drawn(torch.rand, kept, generator).masked_fill(~kept, 2.0)
    order = draws.argsort(1)  # (B, P)
    present = kept.gather(1, order)
    tokens = batch.tokens.gather(1, order[..., None].expand_as(batch.tokens))
    clades = batch.clades.gather(2, order[:, None].expand_as(batch.clades)) & present[:, None]
    slots = order.masked_fill(~present, NONE)
    merges = restricted_merges(batch.merges, batch.num_tokens, slots)
    tokens = tokens.masked_fill(~present[..., None], 0.0)
    return Changed(TokenBatch(tokens, present, clades, merges), slots)


def _drawn(draw: Callable[..., Tensor], like: Tensor, generator: torch.Generator) -> Tensor:
    return draw(like.shape, generator=generator, device=generator.device).to(like.device)
