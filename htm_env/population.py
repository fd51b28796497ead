"""The state of a batch of episodes: which embeddings are active, and how well they decode.

A transition never changes its inputs: :func:`merge_pairs` returns a new population.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.autoencoder import TreeEncoder
from htm_env.candidates import Nearest, Neighbourhood
from htm_env.forest import Forest, active_nodes, children_table, descend, leaf_counts
from htm_env.types import Batched, SampleRows, TokenBatch

MOST_LEAVES = 1 << 16
"""Decoded leaves that wait for their errors, about: those of a chain's subtrees are P^2 / 2."""


@dataclass(frozen=True)
class Population(Batched):
    """``B`` episodes in progress, seen through one autoencoder."""

    batch: TokenBatch
    forest: Forest
    embeddings: Float[Tensor, "B P D"]
    """Active embeddings, each in its slot; zeros in empty slots."""
    leaf_counts: Int64[Tensor, "B P"]
    """Tokens under the node in each slot; 0 in empty slots."""
    squared_errors: Float[Tensor, "B P"]
    """Summed squared error of the tokens under each slot, in units of the coordinates' variance; of
    a known merger the summed cost of the merges under it."""
    initial_error: Float[Tensor, "B"]
    """``E_0``: the ``nmse`` before the first merge, from lifting and unlifting alone; 0 of a known
    merger."""
    units: Float[Tensor, "B"]
    """Divisor of a sample's summed errors: its coordinates; 1 of a known merger."""
    neighbourhood: Neighbourhood | None = None
    """The candidates of every slot; None <--> all pairs may be merged."""

    @property
    def candidates(self) -> Int64[Tensor, "B P k"] | None:
        """The slots that each slot may come before in a merge, -1 <--> none; None <--> all."""
        return None if self.neighbourhood is None else self.neighbourhood.candidates.partners

    @cached_property
    def error(self) -> Float[Tensor, "B"]:
        """``E_t``: the ``nmse`` of each sample with every active node decoded to its leaves; of a
        known merger the cost of all merges so far."""
        return self.squared_errors.sum(1) / self.units


@torch.no_grad()
def start_population(
    autoencoder: TreeEncoder,
    batch: TokenBatch,
    std: Float[Tensor, "T"],
    nearest: Nearest | None = None,
) -> Population:
    """The episodes before their first merge; ``std`` are the units of the error.

    ``nearest`` says who are candidates; None <--> all pairs.
    """
    batch_size, slots = batch.present.shape
    standardised = autoencoder.standardise(batch.tokens)
    embeddings = autoencoder.lifter(standardised) * batch.present[..., None]
    if autoencoder.decodes:
        leaves = torch.arange(slots, device=std.device).expand(batch_size, slots)
        leaf_ids = leaves + torch.arange(batch_size, device=std.device)[:, None] * (2 * slots - 1)
        errors = token_errors(
            autoencoder, embeddings.reshape(-1, embeddings.shape[2]), leaf_ids.flatten(), batch, std
        ).view(batch_size, slots)
    else:
        errors = embeddings.new_zeros(batch_size, slots)
    return unmerged_population(
        autoencoder, batch, standardised, embeddings, errors * batch.present, nearest
    )


def error_units(autoencoder: TreeEncoder, batch: TokenBatch) -> Float[Tensor, "B"]:
    """Divisor of the summed errors of every sample: its coordinates, so that an error is the mean
    over them; 1 where errors are the costs of a known merger."""
    num_tokens = batch.num_tokens.to(batch.tokens.dtype)
    if autoencoder.decodes:
        return num_tokens * batch.tokens.shape[2]
    return torch.ones_like(num_tokens)


def unmerged_population(
    autoencoder: TreeEncoder,
    batch: TokenBatch,
    standardised: Float[Tensor, "B P T"],
    embeddings: Float[Tensor, "B P D"],
    errors: Float[Tensor, "B P"],
    nearest: Nearest | None = None,
) -> Population:
    """The episodes before their first merge, from the embeddings and errors of their tokens."""
    population = Population(
        batch,
        Forest.start(batch.present),
        embeddings,
        batch.present.long(),
        errors,
        errors[:, 0],
        error_units(autoencoder, batch),
    )
    neighbourhood = None
    if nearest is not None:
        neighbourhood = Neighbourhood.of(nearest, standardised, embeddings, batch.present)
    return replace(population, initial_error=population.error, neighbourhood=neighbourhood)


@torch.no_grad()
def encode_population(
    autoencoder: TreeEncoder,
    batch: TokenBatch,
    forest: Forest,
    std: Float[Tensor, "T"],
    nearest: Nearest | None = None,
) -> Population:
    """The episodes of given forests, encoded level by level by the autoencoder as it is now.

    The candidates are those that the same merges lead to.
    """
    start = start_population(autoencoder, batch, std, nearest)
    merges, num_leaves = forest.merges, forest.num_leaves
    encoding = autoencoder.encode(batch.tokens, batch.present, merges)
    row, slot = forest.active.nonzero(as_tuple=True)
    nodes = row * encoding.nodes.shape[1] + forest.slots[row, slot]
    embeddings, children = encoding.population[row, slot], children_table(merges, num_leaves)
    errors = torch.zeros_like(start.squared_errors)
    if autoencoder.decodes:
        errors[row, slot] = subtree_errors(autoencoder, embeddings, nodes, children, batch, std)
    else:
        costs = node_errors(autoencoder, batch, merges, encoding.nodes, std)
        errors[row, slot] = costs.flatten()[nodes]
    counts = leaf_counts(merges, num_leaves).gather(1, forest.slots.clamp(min=0)) * forest.active
    neighbourhood = start.neighbourhood
    if neighbourhood is not None:
        neighbourhood = neighbourhood.followed(encoding.nodes, merges, num_leaves)
    return replace(
        start,
        forest=forest,
        embeddings=encoding.population,
        leaf_counts=counts,
        squared_errors=errors,
        neighbourhood=neighbourhood,
    )


@torch.no_grad()
def merge_pairs(
    autoencoder: TreeEncoder,
    population: Population,
    first: Int64[Tensor, "B"],
    second: Int64[Tensor, "B"],
    std: Float[Tensor, "T"],
    where: Bool[Tensor, "B"] | None = None,
) -> Population:
    """The population after merging slots ``(first, second)`` in the samples of ``where``.

    Only the merged subtree is decoded again: the other trees of the forest keep their errors. The
    candidates follow where there are any.
    """
    rows = torch.arange(len(first), device=first.device)
    forest = population.forest.merge(first, second, where)
    if where is not None:
        rows, first, second = rows[where], first[where], second[where]
    embeddings = population.embeddings.clone()
    pair = embeddings[rows, first], embeddings[rows, second]
    merged = autoencoder.merger(torch.cat(pair, dim=-1))
    embeddings[rows, first], embeddings[rows, second] = merged, 0.0
    counts, errors = population.leaf_counts.clone(), population.squared_errors.clone()
    counts[rows, first] += counts[rows, second]
    counts[rows, second] = 0
    if autoencoder.merge_costs is None:
        children = children_table(forest.merges, forest.num_leaves)
        nodes = rows * children.shape[1] + forest.slots[rows, first]
        errors[rows, first] = subtree_errors(
            autoencoder, merged, nodes, children, population.batch, std
        )
    else:
        last = forest.num_active[rows] == 1
        errors[rows, first] += errors[rows, second]
        errors[rows, first] += autoencoder.merge_costs(*pair, merged, last)
    errors[rows, second] = 0.0
    neighbourhood = population.neighbourhood
    if neighbourhood is not None:
        neighbourhood = neighbourhood.merged(rows, first, second, embeddings, counts)
    return Population(
        population.batch,
        forest,
        embeddings,
        counts,
        errors,
        population.initial_error,
        population.units,
        neighbourhood,
    )


def subtree_errors(
    autoencoder: TreeEncoder,
    embeddings: Float[Tensor, "S D"],
    nodes: Int64[Tensor, "S"],
    children: Int64[Tensor, "B N 2"],
    batch: TokenBatch,
    std: Float[Tensor, "T"],
) -> Float[Tensor, "S"]:
    """Summed squared error of the tokens under each node, decoded from the node's embedding.

    ``nodes`` are flat node ids (``sample * N + node``); every level of all subtrees is one call.
    """
    errors = embeddings.new_zeros(len(nodes))
    state = embeddings
    waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def add() -> None:
        leaves, leaf_ids, origins = (torch.cat(parts) for parts in zip(*waiting, strict=True))
        waiting.clear()
        errors.index_add_(0, origins, token_errors(autoencoder, leaves, leaf_ids, batch, std))

    for level in descend(children, nodes):
        if len(level.leaves):
            here = level.leaves
            waiting.append((state[here], level.nodes[here], level.origin[here]))
            if sum(len(leaves) for leaves, _, _ in waiting) > MOST_LEAVES:
                add()
        if len(level.internal):
            state = autoencoder.decoding().unmerge(state[level.internal])
    if waiting:
        add()
    return errors


@torch.no_grad()
def node_errors(
    autoencoder: TreeEncoder,
    batch: TokenBatch,
    merges: Int64[Tensor, "B M 2"],
    nodes: Float[Tensor, "B N D"],
    std: Float[Tensor, "T"],
) -> Float[Tensor, "B N"]:
    """Summed squared error of the tokens under every node, decoded from that node alone; of a known
    merger the summed cost of the merges under it.

    The subtrees of all nodes are walked down together: as many calls as the tree is high. What
    several trees of one sample share is decoded once, so embeddings must be one function of tokens
    and merges. 0 for nodes that do not exist.
    """
    if not autoencoder.decodes:
        return _summed_costs(merge_costs(autoencoder, batch, merges, nodes), batch, merges)
    rows, children = SampleRows.of(batch), children_table(merges, batch.num_tokens)
    made = batch.num_tokens + (merges[..., 0] >= 0).sum(1)
    exists = torch.arange(nodes.shape[1], device=merges.device) < made[:, None]  # (B, N)
    repeated = rows.repeated(merges, batch.num_tokens)
    ids = (exists & ~repeated).flatten().nonzero().squeeze(1)
    found = subtree_errors(autoencoder, nodes.flatten(0, 1)[ids], ids, children, batch, std)
    errors = nodes.new_zeros(exists.numel()).index_copy(0, ids, found).view(exists.shape)
    return torch.where(repeated, errors[rows.first_row], errors)


class MadeMerges(NamedTuple):
    """All merges of whole episodes in one list."""

    rows: Int64[Tensor, "I"]
    """The sample of each."""
    times: Int64[Tensor, "I"]
    """Its number in the episode."""
    first: Float[Tensor, "I D"]
    second: Float[Tensor, "I D"]
    merged: Float[Tensor, "I D"]
    """Embeddings of the pair, and of what it became."""
    last: Bool[Tensor, "I"]
    """True <--> the merge made the root."""

    @classmethod
    def of(
        cls,
        merges: Int64[Tensor, "B M 2"],
        num_leaves: Int64[Tensor, "B"],
        nodes: Float[Tensor, "B N D"],
    ) -> MadeMerges:
        """The merges of episodes whose ``nodes`` are embedded; padding is left out."""
        rows, times = (merges[..., 0] >= 0).nonzero(as_tuple=True)
        first, second = nodes[rows[:, None], merges[rows, times]].unbind(1)
        made, last = num_leaves[rows] + times, times == num_leaves[rows] - 2
        return cls(rows, times, first, second, nodes[rows, made], last)


@torch.no_grad()
def merge_costs(
    autoencoder: TreeEncoder,
    batch: TokenBatch,
    merges: Int64[Tensor, "B M 2"],
    nodes: Float[Tensor, "B N D"],
) -> Float[Tensor, "B M"]:
    """The cost of every merge under a known merger; 0 in padding."""
    costs = nodes.new_zeros(merges.shape[:2])
    rows, times, *pairs = MadeMerges.of(merges, batch.num_tokens, nodes)
    if autoencoder.merge_costs is not None:
        costs[rows, times] = autoencoder.merge_costs(*pairs)
    return costs


def _summed_costs(
    costs: Float[Tensor, "B M"], batch: TokenBatch, merges: Int64[Tensor, "B M 2"]
) -> Float[Tensor, "B N"]:
    """The cost of the merges under every node, from that of each; children come before parents."""
    rows, num_leaves = torch.arange(len(merges), device=merges.device), batch.num_tokens
    summed = costs.new_zeros(len(merges), 2 * merges.shape[1] + 1)
    for time, pair in enumerate(merges.unbind(1)):
        real = pair[:, 0] >= 0
        below = summed[rows[:, None], pair.clamp(min=0)].sum(1)
        summed[rows[real], (num_leaves + time)[real]] = (below + costs[:, time])[real]
    return summed


@torch.no_grad()
def final_errors(
    autoencoder: TreeEncoder,
    batch: TokenBatch,
    merges: Int64[Tensor, "B M 2"],
    nodes: Float[Tensor, "B N D"],
    std: Float[Tensor, "T"],
) -> Float[Tensor, "B"]:
    """The ``nmse`` where episodes with these merges end: only the last active nodes are decoded; of
    a known merger the cost of all merges."""
    if not autoencoder.decodes:
        return merge_costs(autoencoder, batch, merges, nodes).sum(1)
    last = active_nodes(merges, batch.num_tokens)
    ids, children = last.flatten().nonzero()[:, 0], children_table(merges, batch.num_tokens)
    errors = subtree_errors(autoencoder, nodes.flatten(0, 1)[ids], ids, children, batch, std)
    summed = errors.new_zeros(len(last)).index_add_(0, ids // last.shape[1], errors)
    return summed / (batch.num_tokens * batch.tokens.shape[2])


def token_errors(
    autoencoder: TreeEncoder,
    leaves: Float[Tensor, "L D"],
    leaf_ids: Int64[Tensor, "L"],
    batch: TokenBatch,
    std: Float[Tensor, "T"],
) -> Float[Tensor, "L"]:
    """Squared error of every unlifted leaf against its token, in units of ``std`` squared."""
    slots = batch.tokens.shape[1]
    num_nodes = 2 * slots - 1
    target = batch.tokens.flatten(0, 1)[leaf_ids // num_nodes * slots + leaf_ids % num_nodes]
    unlifted = autoencoder.decoding().unlifter(leaves)
    tokens = autoencoder.to_tokens(unlifted)
    return ((tokens - target) / std).square().sum(dim=1)
