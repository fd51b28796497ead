"""The probability of an ordered tree, over all the merge sequences that make it.

Merges of separate subtrees can be made in any order relative to each other, so one ordered tree has
``M! / prod over merges of (merges in its subtree, itself included)`` sequences (the hook length
formula for forests; Knuth, The Art of Computer Programming 3, 5.1.4, exercise 20). What depends on
the tree alone, such as a terminal reward, can be weighted by the ratio of the tree's probabilities:
it is the conditional mean of the sequences' ratios given the tree, so its variance is never larger.

A policy that observes the forest alone makes the same choice whichever merge sequence led to it. So
the probability of a tree is a sum over paths through the distinct forests that lead to it, and
there are far fewer forests than sequences: a merge with ``a`` and ``b`` forests below its children
has ``a b + 1``. The balanced tree of 15 tokens has 417 forests and 2,745,600 merge sequences, a
chain of any length one forest more than it has merges.

All of it holds for partial forests too: ``M`` merges over ``n > M + 1`` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.checks import at_least
from htm_env.forest import check_merges
from htm_env.softmax import log_totals
from htm_env.types import NONE

Merges = Int64[Tensor, "B M 2"]
"""Ordered node ids: leaves ``0 .. n-1``, merge ``t`` makes ``n + t``; -1 pads."""
Counts = Int64[Tensor, "B"]
"""One integer a sample."""
MOST_MERGES = 40
"""A set of merges is the bits of one integer, with the episode's number in those above."""

SequenceLogProb = Callable[[Tensor, Tensor], Tensor]
"""``sequence_log_prob(merges (S, M, 2), episode (S,)) -> (S,)``: of the whole sequence, in the
sample that ``episode`` names."""


def merge_counts(merges: Merges, num_leaves: Counts) -> Int64[Tensor, "B M"]:
    """The number of merges in the subtree of each merge, itself included; 0 in padding.

    Raises ``ValueError`` naming the first sample whose merges are not a forest.
    """
    check_merges(merges, num_leaves)
    counts = torch.zeros_like(merges[..., 0])
    children = merges - num_leaves[:, None, None]  # as merges; negative for leaves
    for step in range(merges.shape[1]):
        child = children[:, step]
        below = counts.gather(1, child.clamp(min=0)) * (child >= 0)
        counts[:, step] = (1 + below.sum(1)) * (merges[:, step, 0] >= 0)
    return counts


def log_number_of_sequences(merges: Merges, num_leaves: Counts) -> Float[Tensor, "B"]:
    """The logarithm of :func:`number_of_sequences`, in double precision."""
    counts = merge_counts(merges, num_leaves)
    made = (counts > 0).sum(1)
    return torch.lgamma(made.double() + 1) - counts.clamp(min=1).double().log().sum(1)


def number_of_sequences(merges: Merges, num_leaves: Counts) -> Float[Tensor, "B"]:
    """The number of merge sequences that make each ordered tree, in double precision.

    Exact up to 1e12 or so; beyond it to some twelve digits. Raises ``ValueError`` naming the first
    episode whose merges are not a forest.
    """
    return log_number_of_sequences(merges, num_leaves).exp().round()


def all_sequences(
    merges: Merges, num_leaves: Counts
) -> tuple[Int64[Tensor, "S M 2"], Int64[Tensor, "S"]]:
    """Every merge sequence of every tree, and the episode that each belongs to, in ascending order.

    Nodes are numbered anew, so that merge ``t`` of a sequence makes node ``n + t``. Their number
    grows as a factorial: see :func:`number_of_sequences`. Raises ``ValueError`` naming the first
    episode whose merges are not a forest.
    """
    check_merges(merges, num_leaves)
    batch, steps, _ = merges.shape
    children = merges - num_leaves[:, None, None]
    real = merges[..., 0] >= 0
    episode = torch.arange(batch, device=merges.device)
    order = merges.new_empty(batch, 0)
    made = torch.zeros_like(real)
    for step in range(steps):
        below = children[episode]  # (R, M, 2)
        waits = ~made.gather(1, below.clamp(min=0).flatten(1)).view_as(below) & (below >= 0)
        ready = real[episode] & ~made & ~waits.any(-1)
        ready[:, step] |= ~real[episode, step]  # padding stays where it is
        row, chosen = ready.nonzero(as_tuple=True)
        order = torch.cat([order[row], chosen[:, None]], dim=1)
        episode, made = episode[row], made[row]
        made[torch.arange(len(row), device=row.device), chosen] = True
    return _reordered(merges[episode], num_leaves[episode], order), episode


def uniform_sequences(merges: Merges, num_leaves: Counts, generator: torch.Generator) -> Merges:
    """One merge sequence of each tree, all of its sequences equally likely.

    Give every merge a time, uniform in [0, 1], under the condition that none precedes one of its
    subtree: every order is then equally likely. Under this condition a root with ``h`` merges in
    its subtree has the largest of their ``h`` times, ``U^(1/h)``, and everything below it is
    uniform before that. So the times are drawn from the roots down, each as its parent's times
    ``U^(1/h)``, and the merges are made in their order.

    Raises ``ValueError`` naming the first sample whose merges are not a forest.
    """
    counts = merge_counts(merges, num_leaves)
    batch, steps = counts.shape
    drawn = torch.empty(batch, steps, dtype=torch.float64, device=generator.device)
    # log U^(1/h), on the way from the parent's time to this one
    log_factor = -drawn.exponential_(generator=generator).to(merges.device) / counts.clamp(min=1)
    log_time = torch.zeros(batch, steps + 1, dtype=torch.float64, device=merges.device)
    parent = _parents(merges, num_leaves)
    for step in reversed(range(steps)):
        above = log_time.gather(1, parent[:, step, None])[:, 0]  # 0 over a root
        log_time[:, step] = above + log_factor[:, step]
    log_time = log_time[:, :steps].masked_fill(counts == 0, math.inf)  # padding stays behind
    return _reordered(merges, num_leaves, log_time.argsort(dim=1, stable=True))


def tree_log_prob(
    merges: Merges,
    num_leaves: Counts,
    sequence_log_prob: SequenceLogProb,
    generator: torch.Generator,
    *,
    exact_up_to: int = 6,
    sequences: int = 16,
) -> Float[Tensor, "B"]:
    """The log-probability of each ordered tree under the policy of ``sequence_log_prob``.

    Exact, by enumeration, for trees of at most ``exact_up_to`` tokens and for those with no more
    than ``sequences`` merge sequences. For the others it is the mean over that many sequences,
    drawn uniformly, times the number of sequences there are. The estimate of the probability is
    unbiased (but for its being cut at 1), so that of its logarithm, and of a ratio of two such
    estimates, is consistent and *not* unbiased; it is poor where a policy prefers a few sequences
    of a tree by far, since uniform draws then seldom meet them.

    Calls ``sequence_log_prob`` once, and is differentiable if that is. For a partial forest of
    ``K`` merges this is the probability that the policy's first ``K`` merges make it.

    Raises ``ValueError`` naming the first sample whose merges are not a forest, and for fewer than
    one of ``sequences``.
    """
    at_least(1, sequences=sequences)
    log_count = log_number_of_sequences(merges, num_leaves)
    exact = (num_leaves <= exact_up_to) | (log_count.exp().round() <= sequences)
    listed, owner = all_sequences(merges[exact], num_leaves[exact])
    drawn_for = (~exact).nonzero()[:, 0].repeat_interleave(sequences)
    drawn = uniform_sequences(merges[drawn_for], num_leaves[drawn_for], generator)
    episode = torch.cat([exact.nonzero()[:, 0][owner], drawn_for])
    log_prob = sequence_log_prob(torch.cat([listed, drawn]), episode)
    if log_prob.shape != episode.shape:
        raise ValueError(
            f"sequence_log_prob gave {tuple(log_prob.shape)} for {len(episode)} sequences; "
            "expected one number each"
        )
    total = _logsumexp_by(episode, log_prob.double(), len(merges))
    scale = torch.where(exact, 0.0, log_count - math.log(sequences))
    return (total + scale).clamp(max=0.0).to(log_prob.dtype)


def _logsumexp_by(
    group: Int64[Tensor, "S"], values: Float[Tensor, "S"], num_groups: int
) -> Float[Tensor, "B"]:
    """The logarithm of the summed exponentials of each group."""
    place = _place(group)
    widest = int(place.max()) + 1 if len(place) else 0
    table = values.new_full((num_groups, widest), -math.inf)
    return table.index_put((group, place), values).logsumexp(dim=1)


def _parents(merges: Merges, num_leaves: Counts) -> Int64[Tensor, "B M"]:
    """The merge that uses the node of each merge; ``M`` over roots."""
    batch, steps, _ = merges.shape
    parents = merges.new_full((batch, steps + 1), steps)
    child = merges - num_leaves[:, None, None]
    index = torch.where((merges >= 0) & (child >= 0), child, steps).flatten(1)
    step = torch.arange(steps, device=merges.device).repeat_interleave(2).expand(batch, -1)
    return parents.scatter_(1, index, step)[:, :steps]


def _reordered(
    merges: Int64[Tensor, "S M 2"], num_leaves: Int64[Tensor, "S"], order: Int64[Tensor, "S M"]
) -> Int64[Tensor, "S M 2"]:
    """The same trees, their merges made in another order: ``order[t]`` is made at ``t``."""
    position = order.argsort(dim=1)
    merged = merges.gather(1, order[..., None].expand(-1, -1, 2))
    child = merged - num_leaves[:, None, None]
    made: Bool[Tensor, "S M 2"] = (merged != NONE) & (child >= 0)
    moved = position.gather(1, child.clamp(min=0).flatten(1)).view_as(merged)
    return torch.where(made, moved + num_leaves[:, None, None], merged)


# ---------------------------------------------------------------- forests on the way to a tree


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
    """The index of the merge among the tree's."""
    made: Int64[Tensor, "E"]
    """The number of merges made before it."""
    last: Int64[Tensor, "B"]
    """The forest that is the whole tree."""


def number_of_states(merges: Merges, num_leaves: Counts) -> Float[Tensor, "B"]:
    """The number of forests that lead to each tree, itself and the bare tokens included.

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


def forest_states(merges: Merges, num_leaves: Counts) -> ForestStates:
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
    states: ForestStates, merges: Merges, scores: Float[Tensor, "B N N"]
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
    num_leaves: Counts,
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
