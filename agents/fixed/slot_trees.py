"""Trees without distances: given with the data, random, chain, balanced, and balanced over tokens
in sorted order or along a curve."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from agents.fixed.order import LAST, hilbert_index
from htm_env.autoencoder import TreeEncoder
from htm_env.types import NONE, TokenBatch


def random_tree(
    batch: TokenBatch, autoencoder: TreeEncoder, generator: torch.Generator
) -> Int64[Tensor, "B M 2"]:
    """At each step one of the ``k (k - 1)`` legal ordered pairs, all equally likely.

    Written in place: with ``Forest.merge``, which copies the merges so far at every step, 256
    tokens take 1.9 times as long (measured).
    """
    samples, slots = batch.present.shape
    num_leaves, device = batch.num_tokens, batch.tokens.device
    drawn = torch.rand(
        slots - 1, samples, generator=generator, device=generator.device, dtype=torch.float64
    ).to(device)
    rows = torch.arange(samples, device=device)
    nodes = torch.arange(slots, device=device).repeat(samples, 1)  # the active ones are in front
    merges = nodes.new_full((samples, slots - 1, 2), NONE)
    for step, uniform in enumerate(drawn):
        num_active = (num_leaves - step).clamp(min=2)  # finished samples are cut off below
        pair = (uniform * (num_active * (num_active - 1))).long()
        first, second = pair // (num_active - 1), pair % (num_active - 1)
        second = second + (second >= first)
        merges[:, step, 0], merges[:, step, 1] = nodes[rows, first], nodes[rows, second]
        nodes[rows, first] = num_leaves + step
        nodes[rows, second] = nodes[rows, num_active - 1]  # the last active fills the gap
    return only_real(merges, num_leaves)


def chain_tree(
    batch: TokenBatch, autoencoder: TreeEncoder, generator: torch.Generator
) -> Int64[Tensor, "B M 2"]:
    """One growing tree that takes in the tokens in slot order: ``((0, 1), 2), 3``."""
    steps = torch.arange(batch.present.shape[1] - 1, device=batch.tokens.device)
    grown = batch.num_tokens[:, None] + steps - 1  # (B, M)
    grown[:, :1] = 0
    return only_real(torch.stack([grown, (steps + 1).expand_as(grown)], dim=-1), batch.num_tokens)


def balanced_tree(
    batch: TokenBatch, autoencoder: TreeEncoder, generator: torch.Generator
) -> Int64[Tensor, "B M 2"]:
    """Neighbours in slot order are paired level by level; an odd last one waits for the next."""
    samples, slots = batch.present.shape
    num_leaves, device = batch.num_tokens, batch.tokens.device
    level = torch.arange(slots, device=device).repeat(samples, 1)  # this level's nodes, then any
    merges = level.new_full((samples, slots, 2), NONE)  # the last merge collects what is no pair
    width, made = num_leaves, torch.zeros_like(num_leaves)
    while level.shape[1] > 1:
        if level.shape[1] % 2:
            level = torch.cat([level, level[:, -1:]], dim=1)
        pairs = level.view(samples, -1, 2)
        index = torch.arange(pairs.shape[1], device=device)
        real = index < (width // 2)[:, None]  # (B, pairs)
        step = torch.where(real, made[:, None] + index, slots - 1)
        merges.scatter_(1, step[..., None].expand_as(pairs), pairs)
        level = torch.where(real, num_leaves[:, None] + step, pairs[..., 0])
        made = made + width // 2
        width = width - width // 2
    return only_real(merges[:, :-1], num_leaves)


def balanced_sorted_tree(
    batch: TokenBatch, autoencoder: TreeEncoder, generator: torch.Generator
) -> Int64[Tensor, "B M 2"]:
    """Neighbours in the order of the first coordinate, then the next, are paired level by level.

    Tokens on a grid, such as the patches of an image, get one and the same tree in every sample.
    """
    merges = balanced_tree(batch, autoencoder, generator)
    return in_slots(merges, sorted_slots(batch), batch.num_tokens)


def balanced_hilbert_tree(
    batch: TokenBatch, autoencoder: TreeEncoder, generator: torch.Generator
) -> Int64[Tensor, "B M 2"]:
    """Neighbours along a Hilbert curve through the standardised coordinates are paired level by
    level; tokens of one cell of the curve in sorted order."""
    order = sorted_slots(batch)
    index = hilbert_index(autoencoder.standardise(batch.tokens).double())
    index = index.masked_fill(~batch.present, LAST).gather(1, order)
    order = order.gather(1, index.argsort(dim=1, stable=True))
    merges = balanced_tree(batch, autoencoder, generator)
    return in_slots(merges, order, batch.num_tokens)


def in_slots(
    merges: Int64[Tensor, "B M 2"], order: Int64[Tensor, "B P"], num_leaves: Int64[Tensor, "B"]
) -> Int64[Tensor, "B M 2"]:
    """Merges over the tokens in some order as merges over the slots that they come from."""
    is_leaf = (merges >= 0) & (merges < num_leaves[:, None, None])
    slots = order.gather(1, merges.where(is_leaf, 0).flatten(1)).view_as(merges)
    return torch.where(is_leaf, slots, merges)


def sorted_slots(batch: TokenBatch) -> Int64[Tensor, "B P"]:
    """The slots by the coordinates of their tokens, the first counting most; empty ones last."""
    order = torch.arange(batch.present.shape[1], device=batch.tokens.device)
    order = order.expand_as(batch.present)
    empty = (~batch.present).int()  # GPUs sort no booleans before torch 2.6
    for key in (*batch.tokens.unbind(2)[::-1], empty):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    return order


def only_real(
    merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]
) -> Int64[Tensor, "B M 2"]:
    """The first ``n - 1`` merges of each sample, -1 behind them."""
    steps = torch.arange(merges.shape[1], device=merges.device)
    return merges.masked_fill((steps >= num_leaves[:, None] - 1)[..., None], NONE)


def structure_tree(
    batch: TokenBatch, autoencoder: TreeEncoder, generator: torch.Generator
) -> Int64[Tensor, "B M 2"]:
    """The merges that come with the samples, in the data's canonical order.

    Raises ``ValueError`` naming the first sample that has no complete hierarchy.
    """
    return given_merges(
        batch, "the structure policies expected a complete hierarchy of every sample"
    )


def given_merges(batch: TokenBatch, expected: str) -> Int64[Tensor, "B M 2"]:
    """The merges that come with the samples.

    Raises ``ValueError`` naming the first sample that has no complete hierarchy, and ending with
    what was ``expected``.
    """
    given = (batch.merges[..., 0] >= 0).sum(dim=1)
    missing = given != (batch.num_tokens - 1).clamp(min=0)
    if missing.any():
        row = int(missing.nonzero()[0])
        raise ValueError(
            f"sample {row} of this data comes with {int(given[row])} merges over its "
            f"{int(batch.num_tokens[row])} tokens; {expected}"
        )
    return batch.merges


def spans_tree(
    batch: TokenBatch, autoencoder: TreeEncoder, generator: torch.Generator
) -> Int64[Tensor, "B M 2"]:
    """The trees of spans that were given with the data, in the order in which they were given.

    All spans of a level come before those of the next, and the things of a span are joined
    neighbour to neighbour (see ``htm_env.datasets.spans``). Generated Trees and Crosses
    give theirs as merges: there this is ``structure_canonical``.

    Raises ``ValueError`` naming the first sample that comes without any.
    """
    return given_merges(
        batch,
        "the spans policy expected levels of spans, which HTM-v0 takes as 'spans' and "
        "'span_counts' of an .npz or as spans= beside an array",
    )
