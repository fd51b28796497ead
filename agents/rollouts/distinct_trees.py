"""Several trees of each sample, no two alike, from a policy: drawn, or its beam.

Stochastic beam search (Kool, van Hoof and Welling 2019, "Stochastic beams and where to find them"):
every partial forest has its log-probability plus Gumbel noise, drawn from the top down so that the
largest among those that follow a forest is the forest's own. The largest of all are then drawn
without replacement. Without noise this is the policy's beam.

Many sequences of merges make the same forest. Of each forest, the sequence is kept whose perturbed
log-probability is the largest, so that a policy that is sure of the tree and not of the order of
its merges still gives several trees.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.fixed.search import mixed, repeated
from agents.rollouts.pair_scores import ILLEGAL, StateScorer
from htm_env.autoencoder import TreeEncoder
from htm_env.candidates import Nearest, Neighbourhood
from htm_env.checks import at_least
from htm_env.forest import Forest, legal_pairs
from htm_env.membership import Membership, observed_extras
from htm_env.types import TokenBatch

CHOICES = 2**22
"""Choices of a step that are held at a time, or those of one sample."""


class DistinctTrees(NamedTuple):
    """Whole trees of each sample, the likeliest first; drawn ones by their perturbed likelihood."""

    merges: Int64[Tensor, "B S M 2"]
    """Where a sample has fewer trees, its first one fills up."""
    log_probs: Float[Tensor, "B S"]
    """Of the sequences of merges; minus infinity of what fills up."""


@torch.no_grad()
def distinct_trees(
    autoencoder: TreeEncoder,
    policy: StateScorer,
    batch: TokenBatch,
    count: int,
    seeds: Int64[Tensor, "B"] | None,
    nearest: Nearest | None = None,
) -> DistinctTrees:
    """``count`` trees of every sample: drawn by its seed, or without ``seeds`` the policy's beam.

    A sample's trees depend on its own tokens and seed alone. A policy that carries a state from
    merge to merge begins anew at each. Raises ``ValueError`` for a count below 1.
    """
    at_least(1, count=count)
    slots = batch.present.shape[1]
    choices = count * slots * (slots if nearest is None else nearest.k)
    found = []
    for rows in torch.arange(len(batch.tokens)).split(max(1, CHOICES // choices)):
        rows = rows.to(batch.tokens.device)
        noise = None if seeds is None else seeds[rows]
        found.append(_search(autoencoder, policy, batch.rows(rows), count, noise, nearest))
    return DistinctTrees(*map(torch.cat, zip(*found, strict=True)))


def _search(
    autoencoder: TreeEncoder,
    policy: StateScorer,
    batch: TokenBatch,
    count: int,
    seeds: Int64[Tensor, "B"] | None,
    nearest: Nearest | None,
) -> DistinctTrees:
    samples, slots = batch.present.shape
    device = batch.tokens.device
    leaves, sample = autoencoder.standardise(batch.tokens), torch.arange(samples, device=device)
    forest = Forest.start(batch.present)
    nodes = autoencoder.lifter(leaves) * batch.present[..., None]  # (R, P, D), R = B at first
    counts = batch.present.long()
    near = None if nearest is None else Neighbourhood.of(nearest, leaves, nodes, batch.present)
    keys = mixed(torch.arange(slots, device=device), 1).repeat(samples, 1)
    log_prob = nodes.new_zeros(samples, dtype=torch.float64)
    noisy = log_prob
    for _ in range(slots - 1):
        running = forest.num_active > 1
        observation = {"tokens": nodes, "active": forest.active, "leaf_counts": counts}
        if policy.observes:
            members = Membership.of(leaves[sample], batch.present[sample], forest)
            observation |= observed_extras(members, policy.observes)
        legal, partner = legal_pairs(forest.active), torch.arange(slots, device=device)
        partner = partner.expand_as(legal)  # (R, P, C)
        if near is not None:
            partner = near.candidates.partners
            legal, observation["candidates"] = partner >= 0, partner
        scores = policy.state_scores(observation)[0].masked_fill(~legal, ILLEGAL)
        chances = scores.flatten(1).double().log_softmax(1)  # (R, P C)
        chances = chances.masked_fill(~legal.flatten(1), -torch.inf)
        chances[~running] = -torch.inf
        chances[~running, 0] = 0.0  # a whole tree stays what it is
        total = log_prob[:, None] + chances

        own = (keys * forest.active).sum(1)[:, None]
        first = torch.arange(slots, device=device)[:, None].expand_as(partner).flatten(1)
        second = partner.clamp(min=0).flatten(1)
        pair = keys.gather(1, first), keys.gather(1, second)
        outcome = own - pair[0] - pair[1] + mixed(*pair)
        outcome = torch.where(running[:, None], outcome, own)
        ranked = total
        if seeds is not None:
            uniform = _uniform(mixed(mixed(seeds[sample, None], own), outcome))
            ranked = _conditional(total - (-uniform.log()).log(), noisy)

        # Pairs of one forest differ in outcome, so an outcome comes at most once from each.
        beams = len(sample) // samples
        some = min(count * min(beams, max(1, slots // 2)), beams * total.shape[1])
        best, index = ranked.view(samples, -1).topk(some, dim=1)
        again = repeated(outcome.view(samples, -1).gather(1, index))
        best, kept = best.masked_fill(again, -torch.inf).topk(min(count, some), dim=1)
        gone = best.isinf()
        index = index.gather(1, torch.where(gone, kept[:, :1], kept))  # copies of the best
        offset = torch.arange(samples, device=device)[:, None] * beams
        row, at = (index // total.shape[1] + offset).flatten(), (index % total.shape[1]).flatten()
        noisy = best.flatten()
        log_prob = total[row, at].masked_fill(gone.flatten(), -torch.inf)

        forest, sample, running = forest.rows(row), sample[row], running[row]
        first, second = first[row, at], second[row, at]
        forest = forest.merge(first, second, where=running)
        nodes, counts, keys = nodes[row], counts[row], keys[row]
        one, first, second = running.nonzero()[:, 0], first[running], second[running]
        pairs = torch.cat([nodes[one, first], nodes[one, second]], dim=1)
        nodes[one, first], nodes[one, second] = autoencoder.merger(pairs), 0.0
        counts[one, first] += counts[one, second]
        counts[one, second] = 0
        keys[one, first] = mixed(keys[one, first], keys[one, second])
        if near is not None:
            near = near.rows(row).merged(one, first, second, nodes, counts)
    beams = len(sample) // samples
    merges, log_probs = forest.merges.unflatten(0, (samples, beams)), log_prob.view(samples, beams)
    fill = torch.arange(count, device=device)
    fill = fill.where(fill < beams, 0)
    copies = torch.arange(count, device=device) >= beams
    log_probs = log_probs[:, fill].masked_fill(copies, -torch.inf)
    return DistinctTrees(merges[:, fill], log_probs)


def _uniform(words: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Numbers in (0, 1) from words of :func:`mixed`, which are never negative: 63 bits, of which a
    float64 holds 53."""
    return (words >> 10).double().add(0.5) * 2.0**-53


def _conditional(
    perturbed: Float[Tensor, "R C"], largest: Float[Tensor, "R"]
) -> Float[Tensor, "R C"]:
    """Perturbed log-probabilities given that the largest of each row is another number (Kool et al.
    2019, appendix B.3, in a form that keeps small differences)."""
    most = perturbed.amax(1, keepdim=True)
    shift = largest[:, None] - perturbed + (-(perturbed - most).exp()).log1p()
    found = largest[:, None] - shift.relu() - (-shift.abs()).exp().log1p()
    return found.nan_to_num(nan=-torch.inf, neginf=-torch.inf)
