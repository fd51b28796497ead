"""Rewards: what one merge, or a whole episode of merges, earns.

Let ``E_t`` be the ``nmse`` of a sample when every active node after ``t`` merges is decoded down to
its leaves. ``incremental`` pays ``E_t - E_{t+1}``: each merge is charged for exactly the damage
that it did, and the return is ``E_0 - E_final`` for any order. ``terminal`` pays the same sum at
the end.
``one_step`` pays minus the squared error of unmerging what was just merged, in embedding space (the
published method's reward; an autoencoder can shrink its embeddings to please it, so it is never a
measure of quality).
``right_merges`` asks nothing of the autoencoder: a merge whose tokens are one of the data's clades
pays one over the number of the sample's clades, so that the return is the share that was found.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.autoencoder import HTMAutoencoder
from htm_env.datasets import DATASETS, Dataset
from htm_env.forest import are_clades, children_table, leaf_sets
from htm_env.population import Population, subtree_errors
from htm_env.sample_rows import SampleRows
from htm_env.types import TokenBatch

StepReward = Callable[[HTMAutoencoder, Population, Population, Tensor, Tensor], Tensor]


def incremental_reward(
    autoencoder: HTMAutoencoder,
    before: Population,
    after: Population,
    first: Int64[Tensor, "B"],
    second: Int64[Tensor, "B"],
) -> Float[Tensor, "B"]:
    return before.error - after.error


def terminal_reward(
    autoencoder: HTMAutoencoder,
    before: Population,
    after: Population,
    first: Int64[Tensor, "B"],
    second: Int64[Tensor, "B"],
) -> Float[Tensor, "B"]:
    finished = (after.forest.num_active == 1) & (before.forest.num_active > 1)
    return (after.initial_error - after.error) * finished


def one_step_reward(
    autoencoder: HTMAutoencoder,
    before: Population,
    after: Population,
    first: Int64[Tensor, "B"],
    second: Int64[Tensor, "B"],
) -> Float[Tensor, "B"]:
    rows = torch.arange(len(first), device=first.device)
    pair = torch.stack([before.embeddings[rows, first], before.embeddings[rows, second]], dim=1)
    merged = after.embeddings[rows, first]  # (B, D)
    return -one_step_error(autoencoder, merged, pair) * (
        after.forest.num_merges > before.forest.num_merges
    )


def right_merges_reward(
    autoencoder: HTMAutoencoder,
    before: Population,
    after: Population,
    first: Int64[Tensor, "B"],
    second: Int64[Tensor, "B"],
) -> Float[Tensor, "B"]:
    forest, clades = after.forest, after.batch.clades
    rows = torch.arange(len(first), device=first.device)
    made = forest.num_leaves + forest.num_merges - 1  # the latest node
    sets = leaf_sets(forest.merges, forest.num_leaves)[rows, made]  # (B, P)
    moved = forest.num_merges > before.forest.num_merges
    right = are_clades(sets[:, None], clades)[:, 0] & moved
    return right / _number_of(clades)


REWARDS: dict[str, StepReward] = {
    "incremental": incremental_reward,
    "terminal": terminal_reward,
    "one_step": one_step_reward,
    "right_merges": right_merges_reward,
}
NEED_CLADES = {"right_merges"}
"""The rewards for which the data must have a hierarchy of its own."""


def step_reward(name: str) -> StepReward:
    """The reward of that name; ``ValueError`` with the choices if there is none."""
    if name not in REWARDS:
        raise ValueError(f"unknown reward {name!r}; choose from {sorted(REWARDS)}")
    return REWARDS[name]


def reward_on(dataset: Dataset, name: str | None = None) -> str:
    """The name of the reward on this data: that of the data's own environment if not given.

    Raises ``ValueError`` for an unknown reward, and for one that needs clades where the data has
    none.
    """
    name = DATASETS[dataset.name].reward if name is None else name
    step_reward(name)  # knows the names
    if name in NEED_CLADES and not dataset.has_hierarchy:
        raise ValueError(
            f"the reward {name} counts clades, but {dataset.name} has no hierarchy; "
            f"choose from {sorted(REWARDS.keys() - NEED_CLADES)}"
        )
    return name


def one_step_error(
    autoencoder: HTMAutoencoder, merged: Float[Tensor, "I D"], pairs: Float[Tensor, "I 2 D"]
) -> Float[Tensor, "I"]:
    """Mean squared error of unmerging each embedding against the pair that it was merged from."""
    unmerged = autoencoder.unmerge(merged).view_as(pairs)
    return (unmerged - pairs).square().mean(dim=(1, 2))


# ---------------------------------------------------------------- whole episodes, by level


@torch.no_grad()
def node_errors(
    autoencoder: HTMAutoencoder,
    nodes: Float[Tensor, "B N D"],
    exists: Bool[Tensor, "B N"],
    merges: Int64[Tensor, "B M 2"],
    batch: TokenBatch,
    std: Float[Tensor, "T"],
) -> Float[Tensor, "B N"]:
    """Summed squared error of the tokens under every node, decoded from that node alone.

    The subtrees of all nodes are walked down together: as many calls as the tree is high. What
    several trees of one sample share is decoded once, so embeddings must be one function of tokens
    and merges.
    """
    rows, children = SampleRows.of(batch), children_table(merges, batch.num_tokens)
    repeated = rows.repeated(merges, batch.num_tokens)
    ids = (exists & ~repeated).flatten().nonzero().squeeze(1)
    found = subtree_errors(autoencoder, nodes.flatten(0, 1)[ids], ids, children, batch, std)
    errors = nodes.new_zeros(exists.numel()).index_copy(0, ids, found).view(exists.shape)
    return torch.where(repeated, errors[rows.first_row], errors)


def incremental_rewards(
    errors: Float[Tensor, "B N"],
    merges: Int64[Tensor, "B M 2"],
    num_leaves: Int64[Tensor, "B"],
    token_dim: int,
) -> Float[Tensor, "B M"]:
    """The incremental rewards of all merges, from what :func:`node_errors` gives; 0 in padding."""
    made = num_leaves[:, None] + torch.arange(merges.shape[1], device=merges.device)  # (B, M)
    real = merges[..., 0] >= 0
    children = errors.gather(1, merges.clamp(min=0).flatten(1)).view(merges.shape).sum(-1)
    damage = errors.gather(1, made) - children
    return -damage * real / (num_leaves[:, None] * token_dim)


@torch.no_grad()
def one_step_rewards(
    autoencoder: HTMAutoencoder,
    nodes: Float[Tensor, "B N D"],
    merges: Int64[Tensor, "B M 2"],
    num_leaves: Int64[Tensor, "B"],
) -> Float[Tensor, "B M"]:
    """The one-step rewards of all merges; 0 in padding."""
    batch, steps, _ = merges.shape
    rows, times = (merges[..., 0] >= 0).nonzero(as_tuple=True)
    pairs = nodes[rows[:, None], merges[rows, times]]  # (I, 2, D)
    merged = nodes[rows, num_leaves[rows] + times]
    rewards = nodes.new_zeros(batch, steps)
    rewards[rows, times] = -one_step_error(autoencoder, merged, pairs)
    return rewards


def right_merges_rewards(merges: Int64[Tensor, "B M 2"], batch: TokenBatch) -> Float[Tensor, "B M"]:
    """The right-merges rewards of all merges; 0 in padding."""
    made = batch.num_tokens[:, None] + torch.arange(merges.shape[1], device=merges.device)  # (B, M)
    rows = torch.arange(len(merges), device=merges.device)[:, None]
    sets = leaf_sets(merges, batch.num_tokens)[rows, made]  # (B, M, P), empty in padding
    return are_clades(sets, batch.clades) / _number_of(batch.clades)[:, None]


def _number_of(clades: Bool[Tensor, "B C P"]) -> Int64[Tensor, "B"]:
    """The clades of each sample, at least 1 so that it can divide."""
    return clades.any(2).sum(1).clamp(min=1)
