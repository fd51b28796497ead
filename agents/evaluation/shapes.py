"""Diagnoses of learned trees: how many shapes there are, and how far they are from a rule's."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.config.options import TEST_EPISODES
from agents.evaluation.evaluate import CHUNK, EVALUATION_SEED, Planner, planned
from htm_env.datasets import Dataset
from htm_env.forest import leaf_sets
from htm_env.measures.metrics import clade_scores, mean_or_none
from htm_env.types import TokenBatch

FACTORS = (0x2545F4914F6CDD1D, -0x61C8864680B583EB, 0x369DEA0F31A53F85)
"""Odd factors of a hash in 64 bits."""


def shape_codes(
    merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]
) -> Int64[Tensor, "B"]:
    """The same number for trees of the same shape, whatever their leaves and the order of children.

    Two trees have one shape if they are the same but for names of leaves and turned pairs. A node's
    number is a hash of those of its children, so other shapes have others, but for 1 in 2^64.
    """
    size, steps, _ = merges.shape
    codes = merges.new_ones(size, 2 * steps + 1)
    rows, root = torch.arange(size, device=merges.device), torch.zeros_like(num_leaves)
    for step in range(steps):
        made = merges[:, step, 0] >= 0
        children = codes.gather(1, merges[:, step].clamp(min=0))
        low, high = children.amin(1), children.amax(1)
        code = (low * FACTORS[0] + high) * FACTORS[1]
        code = (code ^ (code >> 29)) * FACTORS[2]
        parent = (num_leaves + step).clamp(max=2 * steps)
        codes[rows, parent] = torch.where(made, code, codes[rows, parent])
        root = torch.where(made, code, root)
    return root


def tree_distances(
    merges: Int64[Tensor, "B M 2"], others: Int64[Tensor, "B M 2"], batch: TokenBatch
) -> Float[Tensor, "B"]:
    """The Robinson-Foulds distance (1981) of two trees of each sample, normalised: 0 the same, 1 no
    clade in common; NaN of fewer than three tokens, which have one tree."""
    sets, listed = (leaf_sets(tree, batch.num_tokens) for tree in (merges, others))
    return clade_scores(sets, listed, batch.present).robinson_foulds


@torch.no_grad()
def tree_diagnoses(
    planner: Planner,
    cloned: Planner | None,
    dataset: Dataset,
    device: torch.device,
    count: int = TEST_EPISODES,
) -> dict[str, float | None]:
    """``tree_shapes``, the number of different shapes of the greedy trees of fixed episodes, and
    ``cloned_distance``, their mean distance to the trees of the rule that was cloned, None without
    one (see :func:`shape_codes` and :func:`tree_distances`)."""
    generator = torch.Generator(device).manual_seed(EVALUATION_SEED)
    codes, distances = [], []
    for batch in dataset.fixed(count).to(device).parts(CHUNK):
        merges = planned(planner, batch, generator, greedy=True)
        codes.append(shape_codes(merges, batch.num_tokens))
        if cloned is not None:
            others = planned(cloned, batch, generator, greedy=True)
            distances.append(tree_distances(merges, others, batch).double())
    return {
        "tree_shapes": float(len(torch.cat(codes).unique())),
        "cloned_distance": mean_or_none(torch.cat(distances)) if distances else None,
    }
