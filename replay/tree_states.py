"""The exact probability of an ordered tree, from the forests on the way to it.

A policy that sees the forest, and not how it came about, makes the same choice whichever merge
sequence led there. So the probability of a tree is a sum over paths through the distinct forests
that lead to it, and there are far fewer forests than sequences: a merge with ``a`` and ``b``
forests below its children has ``a b + 1``. The balanced tree of 15 tokens has 417 forests and
2,745,600 merge sequences, a chain of any length one forest more than it has merges.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.forest import check_merges
from htm_env.softmax import log_totals

MOST_MERGES = 40
"""A set of merges is the bits of one integer, and the episode's number stands above them."""


class ForestStates(NamedTuple):
    """All forests on the way to each tree, and the merges that lead from one to the next."""

    episode: Int64[Tensor, "S"]
    """The tree that the forest leads to."""
    active: Bool[Tensor, "S N"]
    """True <--> the node, numbered as in the tree, is a root of this forest."""
    start: Int64[Tensor, "E"]
    """The forest in which a merge is made; ascending in the number of merges made before."""
    end: Int64[Tensor, "E"]
    """The forest that it makes."""
    merge: Int64[Tensor, "E"]
    """Which of the tree's merges it is."""
    made: Int64[Tensor, "E"]
    """How many merges were made before it."""
    last: Int64[Tensor, "B"]
    """The forest that is the whole tree."""


def number_of_states(
    merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """How many forests lead to each tree, itself and the bare tokens included.

    Raises ``ValueError`` naming the first sample whose merges are not a forest.
    """
    check_merges(merges, num_leaves)
    batch, steps, _ = merges.shape
    below = torch.ones(batch, 2 * steps + 1, dtype=torch.float64, device=merges.device)
    total = below[:, 0].clone()
    rows = torch.arange(batch, device=merges.device)
    for step in range(steps):
        first, second = merges[:, step].clamp(min=0).unbind(-1)
        children = below[rows, first] * below[rows, second]
        grown = torch.where(merges[:, step, 0] >= 0, (children + 1) / children, 1.0)
        total = total * grown  # over the product of the roots, which the children leave
        below[rows, num_leaves + step] = children + 1
    return total.round()


def forest_states(merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]) -> ForestStates:
    """All forests on the way to each tree; see :func:`number_of_states` for how many there are.

    Raises ``ValueError`` naming the first sample whose merges are not a forest, and for more than
    ``MOST_MERGES`` merges.
    """
    check_merges(merges, num_leaves)
    real = merges[..., 0] >= 0
    steps = int(real.sum(1).max()) if len(real) else 0
    if steps > MOST_MERGES:
        raise ValueError(f"there are trees of {steps} merges; expected at most {MOST_MERGES}")
    real, children = real[:, :steps], merges[:, :steps] - num_leaves[:, None, None]
    bit = 1 << torch.arange(steps, device=merges.device)
    needs = (bit[children.clamp(min=0)] * (children >= 0)).sum(-1)  # (B, K): bits of the children
    episode = torch.arange(len(merges), device=merges.device)
    made = torch.zeros_like(episode)  # (S,) of this level: bits of the merges made
    all_episodes, all_made, edges, known = [episode], [made], [], 0
    for level in range(steps):
        ready = real[episode] & (made[:, None] & bit == 0)
        ready &= made[:, None] & needs[episode] == needs[episode]
        row, merge = ready.nonzero(as_tuple=True)
        reached = episode[row] << steps | made[row] | bit[merge]
        states, place = reached.unique(return_inverse=True)
        start, known = known + row, known + len(episode)
        edges.append(torch.stack([start, known + place, merge, torch.full_like(row, level)]))
        episode, made = states >> steps, states & (1 << steps) - 1
        all_episodes.append(episode)
        all_made.append(made)
    episode, made = torch.cat(all_episodes), torch.cat(all_made)
    nothing = episode.new_empty(4, 0)
    start, end, merge, before = torch.cat([nothing, *edges], dim=1).unbind(0)
    whole = (bit * real).sum(1)
    last = torch.empty_like(num_leaves)
    complete = (made == whole[episode]).nonzero()[:, 0]
    last[episode[complete]] = complete
    done = made[:, None] & bit != 0
    active = _active(merges[:, :steps], num_leaves, episode, done, 2 * merges.shape[1] + 1)
    return ForestStates(episode, active, start, end, merge, before, last)


def pairwise_log_prob(
    states: ForestStates, merges: Int64[Tensor, "B M 2"], scores: Float[Tensor, "B N N"]
) -> Float[Tensor, "E"]:
    """The log-probability of every merge between forests, for a policy that scores pairs of nodes.

    ``scores[b, i, j]`` is that of merging node ``i`` with node ``j`` in that order, in whatever
    forest both are active: the probability of a pair is the softmax over the active pairs. In
    double precision, and differentiable.
    """
    place = _place(states.episode)
    active = states.active.new_zeros(len(scores), int(place.max()) + 1, scores.shape[1])
    active[states.episode, place] = states.active
    log_total = log_totals(scores, active)[states.episode, place]  # (S,)
    episode = states.episode[states.start]
    first, second = merges[episode, states.merge].unbind(-1)
    return scores.double()[episode, first, second] - log_total[states.start]


def tree_log_prob_by_states(
    states: ForestStates, log_prob: Float[Tensor, "E"]
) -> Float[Tensor, "B"]:
    """The log-probability of each ordered tree, from that of every merge on the way to it.

    Exact and differentiable. Nothing that leaves the way to the tree can come back to it, so the
    probabilities of ``states.start``'s other merges are not needed.
    """
    reached = log_prob.new_zeros(len(states.episode))
    for level in range(int(states.made.max()) + 1 if len(states.made) else 0):
        here = (states.made == level).nonzero()[:, 0]
        end = states.end[here]
        flow = reached[states.start[here]] + log_prob[here]
        ends, place = end.unique(return_inverse=True)
        most = flow.new_full((len(ends),), -math.inf)
        most = most.scatter_reduce(0, place, flow.detach(), "amax").nan_to_num(neginf=0.0)
        total = flow.new_zeros(len(ends)).index_add(0, place, (flow - most[place]).exp())
        reached = reached.index_put((ends,), total.log() + most)
    return reached[states.last].clamp(max=0.0)


def _active(
    merges: Int64[Tensor, "B K 2"],
    num_leaves: Int64[Tensor, "B"],
    episode: Int64[Tensor, "S"],
    done: Bool[Tensor, "S K"],
    num_nodes: int,
) -> Bool[Tensor, "S N"]:
    """The leaves and what was made of them, without what was merged on."""
    device = merges.device
    parent = num_leaves[episode, None] + torch.arange(done.shape[1], device=device)
    parent = parent.where(done, num_nodes)  # the rest lands behind the last node
    used = merges[episode].where(done[..., None], num_nodes).flatten(1)
    nodes = torch.arange(num_nodes + 1, device=device)
    active = nodes < num_leaves[episode, None]  # (S, N + 1)
    return active.scatter(1, parent, True).scatter(1, used, False)[:, :num_nodes]


def _place(group: Int64[Tensor, "S"]) -> Int64[Tensor, "S"]:
    """The rank of every member within its group."""
    order = group.argsort(stable=True)
    sizes = torch.bincount(group)
    start = sizes.cumsum(0) - sizes
    place = torch.empty_like(group)
    place[order] = torch.arange(len(group), device=group.device) - start[group[order]]
    return place
