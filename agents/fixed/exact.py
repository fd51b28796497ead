"""The best tree of few tokens, by dynamic programming over their subsets.

Where the merger is associative and commutative, an embedding is a function of its set of leaves,
and where merges have known costs, the best tree over a set is the best pair of trees over the two
parts of one of its splits. A sample of ``n`` tokens has ``2^n`` sets and ``(3^n + 1) / 2 - 2^n``
splits (87,000 for 11 tokens), and each split is evaluated once. The trellis of Macaluso et al.
2021, "Cluster Trellis: Data Structures & Algorithms for Exact Inference in Hierarchical
Clustering", is the same recursion.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from htm_env.autoencoder import MergeCosts, TreeEncoder
from htm_env.forest import pad_merges
from htm_env.types import NONE, TokenBatch

LARGEST = 11
"""Each token more takes three times as long: of 11 tokens a sample takes some 50 ms."""
ROWS = 2**16
"""Splits whose costs are evaluated at a time."""

Merger = Callable[[Tensor], Tensor]
"""``merger(pairs (I, 2 D)) -> (I, D)``, associative and commutative."""


@torch.no_grad()
def exact_tree(
    batch: TokenBatch, model: TreeEncoder, generator: torch.Generator, largest: int = LARGEST
) -> Int64[Tensor, "B M 2"]:
    """The merges of the least summed cost of each sample, in double precision.

    The merger of the model is associative and commutative, and its merges have known costs. The
    order within a pair means nothing: the part with the token in the lowest slot comes first.

    Raises ``ValueError`` naming the first sample of more than ``largest`` tokens.
    """
    assert model.merge_costs is not None
    num_leaves, num_slots = batch.num_tokens, batch.present.shape[1]
    if (num_leaves > largest).any():
        row = int((num_leaves > largest).nonzero()[0])
        raise ValueError(
            f"sample {row} has {int(num_leaves[row])} tokens; the exact search takes at most "
            f"{largest}"
        )
    embeddings = model.lifter(model.standardise(batch.tokens.double()))  # (B, P, D)
    best = num_leaves.new_full((len(num_leaves), num_slots - 1, 2), NONE)
    for size in num_leaves.unique().tolist():
        rows = (num_leaves == size).nonzero().squeeze(1)
        for part in rows.split(max(1, ROWS >> size)):
            merges, _ = best_trees(embeddings[part, :size], model.merger, model.merge_costs)
            best[part] = pad_merges(merges, num_slots)
    return best


def best_trees(
    leaves: Float[Tensor, "S n D"], merger: Merger, costs: MergeCosts
) -> tuple[Int64[Tensor, "S K 2"], Float[Tensor, "S"]]:
    """The cheapest binary tree over the leaves of each sample, and what it costs.

    A set of leaves is a number whose bits are its leaves, so that tables over sets are arrays.
    """
    samples, num_leaves, dim = leaves.shape
    sets = 1 << num_leaves
    embeddings = leaves.new_zeros(sets, samples, dim)
    least = leaves.new_zeros(sets, samples)
    parts = torch.zeros(sets, samples, dtype=torch.int64, device=leaves.device)
    for leaf in range(num_leaves):
        embeddings[1 << leaf] = leaves[:, leaf]
    for size in range(2, num_leaves + 1):
        is_root = size == num_leaves
        of_size = _sets_of(num_leaves, size).to(leaves.device)
        lowest = of_size & -of_size
        pairs = torch.cat([embeddings[lowest], embeddings[of_size - lowest]], dim=-1)
        embeddings[of_size] = merger(pairs.flatten(0, 1)).view(-1, samples, dim)
        splits = (1 << (size - 1)) - 1
        for some in of_size.split(max(1, ROWS // (splits * samples))):
            first = _parts_with_lowest(some, size)  # (c, splits)
            second = some[:, None] - first
            whole = some[:, None].expand_as(first)
            one, other, both = (
                embeddings[of.flatten()].flatten(0, 1) for of in (first, second, whole)
            )
            last = torch.full((len(both),), is_root, device=leaves.device)
            total = costs(one, other, both, last).view(*first.shape, samples)
            total = total + least[first] + least[second]
            least[some], choice = total.min(dim=1)  # (c, samples)
            parts[some] = first.gather(1, choice)
    return _merges(parts, num_leaves), least[sets - 1]


def _sets_of(num_leaves: int, size: int) -> Int64[Tensor, "c"]:
    """All sets of so many leaves, rising."""
    sets = torch.arange(1 << num_leaves)
    counts = sum((sets >> leaf) & 1 for leaf in range(num_leaves))
    return sets[counts == size]


def _parts_with_lowest(sets: Int64[Tensor, "c"], size: int) -> Int64[Tensor, "c splits"]:
    """The first part of every split of these sets of ``size`` leaves: the one with the lowest."""
    patterns = torch.arange((1 << (size - 1)) - 1, device=sets.device)
    rest, parts = sets, torch.zeros_like(sets)[:, None]
    for position in range(size):
        bit = rest & -rest
        chosen = torch.ones_like(patterns) if position == 0 else (patterns >> (position - 1)) & 1
        parts = parts + bit[:, None] * chosen
        rest = rest - bit
    return parts


def _merges(parts: Int64[Tensor, "sets S"], num_leaves: int) -> Int64[Tensor, "S K 2"]:
    """The merges of the trees in which every set that is used has this first part; small sets come
    first."""
    sets, samples = parts.shape
    used = torch.zeros_like(parts, dtype=torch.bool)
    used[sets - 1] = True
    levels = [_sets_of(num_leaves, size).to(parts.device) for size in range(2, num_leaves + 1)]
    for of_size in levels[::-1]:
        at, sample = used[of_size].nonzero(as_tuple=True)
        whole = of_size[at]
        first = parts[whole, sample]
        used[first, sample] = used[whole - first, sample] = True
    nodes = parts.new_full((samples, sets), NONE)
    nodes[:, [1 << leaf for leaf in range(num_leaves)]] = torch.arange(
        num_leaves, device=parts.device
    )
    if num_leaves == 1:
        return parts.new_zeros(samples, 0, 2)
    rising = torch.cat(levels)
    sample, at = used[rising].T.nonzero(as_tuple=True)  # n - 1 of each sample
    wholes = rising[at].view(samples, num_leaves - 1)
    made = torch.arange(num_leaves, 2 * num_leaves - 1, device=parts.device)
    nodes.scatter_(1, wholes, made.expand_as(wholes))
    first = parts.T.gather(1, wholes)
    return torch.stack([nodes.gather(1, first), nodes.gather(1, wholes - first)], dim=-1)
