"""The best of all ordered trees over few tokens, under any autoencoder."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.search.errors import TreeErrors
from agents.search.places import places_of
from htm_env.autoencoder import TreeEncoder
from htm_env.forest import pad_merges
from htm_env.trees.merge_tree import MergeTree, Nested
from htm_env.types import NONE, TokenBatch

LARGEST = 6
"""Tokens whose trees can all be evaluated: of six there are 30,240, of seven 665,280."""
AT_ONCE = 4096
"""Trees whose embeddings are held at a time."""


def all_trees(num_leaves: int) -> Int64[Tensor, "S M 2"]:
    """Every ordered binary tree over ``n`` tokens once, in node ids, ``M = n - 1``.

    There are ``n!`` times the Catalan number of ``n - 1``: 2, 12, 120 and 1,680 over two to five
    tokens.
    """

    shapes = [MergeTree.from_nested(shape).merges for shape in _shapes(tuple(range(num_leaves)))]
    merges = torch.from_numpy(np.stack(shapes))  # (C, M, 2)
    leaf = torch.tensor(list(permutations(range(num_leaves))))  # (n!, n)
    named = leaf[:, merges.clamp(max=num_leaves - 1)]
    return torch.where(merges < num_leaves, named, merges).flatten(0, 1)


def _shapes(leaves: tuple[int, ...]) -> list[Nested]:
    """The nested pairs of every tree with these leaves from left to right."""
    if len(leaves) == 1:
        return list(leaves)
    return [
        (one, other)
        for left in range(1, len(leaves))
        for one in _shapes(leaves[:left])
        for other in _shapes(leaves[left:])
    ]


@torch.no_grad()
def best_of_all(
    autoencoder: TreeEncoder, batch: TokenBatch, std: Float[Tensor, "T"]
) -> Int64[Tensor, "B M 2"]:
    """The merges with the smallest ``nmse`` of each sample, of all trees that there are.

    Raises ``ValueError`` naming the first sample of more than ``LARGEST`` tokens.
    """
    num_leaves, best = batch.num_tokens, torch.full_like(batch.merges, NONE)
    if (num_leaves > LARGEST).any():
        row = int((num_leaves > LARGEST).nonzero()[0])
        raise ValueError(
            f"sample {row} has {int(num_leaves[row])} tokens; all trees are evaluated of at most "
            f"{LARGEST}"
        )
    for size in num_leaves.unique().tolist():
        trees = pad_merges(all_trees(size), batch.present.shape[1]).to(best.device)
        for row in (num_leaves == size).nonzero()[:, 0].tolist():
            errors_of = TreeErrors(autoencoder, batch.rows(slice(row, row + 1)), std)
            errors = []
            for some in trees.split(AT_ONCE):
                places = places_of(some, num_leaves[row].expand(len(some)))
                same = torch.zeros(len(some), dtype=torch.int64, device=best.device)
                errors.append(errors_of.of(places, same)[0])
            best[row] = trees[torch.cat(errors).nan_to_num(nan=torch.inf).argmin()]
    return best
