"""Merging large populations with a policy that is done learning: no more is kept than is needed.

Both functions choose among candidates, one sample after the other. :func:`merge_greedily` takes the
best pair at every step. :func:`merge_matchings` merges a whole matching a round: every pair that is
the best of both its tokens, the best of all pairs among them, so that ``P`` tokens need about
``log P`` rounds. Populations are made smaller, and their lists anew, whenever half of the tokens
are gone; no table of all pairs, and no history, is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.rollouts.pair_scores import (
    PairScorer,
    StateScorer,
    bounded,
    population_observation,
)
from htm_env.autoencoder import TreeEncoder
from htm_env.candidates import Nearest, nearest_candidates, squared_distances
from htm_env.types import NONE, TokenBatch

GONE = -torch.inf


class _Tokens(NamedTuple):
    """The active tokens of one sample, in any order."""

    node: Int64[Tensor, "n"]
    embedding: Float[Tensor, "n D"]
    leaf_counts: Int64[Tensor, "n"]
    centroid: Float[Tensor, "n T"]

    @classmethod
    def of(cls, autoencoder: TreeEncoder, tokens: Float[Tensor, "n T"]) -> _Tokens:
        """The leaves of a sample."""
        standardised = autoencoder.standardise(tokens[None])[0]
        node = torch.arange(len(tokens), device=tokens.device)
        return cls(node, autoencoder.lifter(standardised), torch.ones_like(node), standardised)

    def only(self, index: Tensor) -> _Tokens:
        return _Tokens(*(values[index] for values in self))

    def merged(
        self, autoencoder: TreeEncoder, first: Tensor, second: Tensor, next_node: int
    ) -> _Tokens:
        """The parents of these disjoint pairs."""
        node = next_node + torch.arange(len(first), device=first.device)
        pair = torch.cat([self.embedding[first], self.embedding[second]], dim=1)
        count = self.leaf_counts[first] + self.leaf_counts[second]
        share = (self.leaf_counts[first] / count)[:, None]
        centroid = torch.lerp(self.centroid[second], self.centroid[first], share)
        return _Tokens(node, autoencoder.merger(pair), count, centroid)

    def places(self, nearest: Nearest) -> Tensor:
        """Points between which distances are measured."""
        return self.centroid if nearest.by_centroids else self.embedding

    def candidates(self, nearest: Nearest) -> tuple[Int64[Tensor, "n k"], Float[Tensor, "n k"]]:
        """The partners of every token, and how far they are."""
        active = torch.ones(1, len(self.node), dtype=torch.bool, device=self.node.device)
        found = nearest_candidates(self.places(nearest)[None], active, nearest.k)
        return found.partners[0], found.distances[0]


@torch.no_grad()
def merge_greedily(
    autoencoder: TreeEncoder, policy: PairScorer, batch: TokenBatch, nearest: Nearest
) -> Int64[Tensor, "B M 2"]:
    """The merges of the best candidate at every step, down to one root."""
    merges = torch.full_like(batch.merges, NONE)
    for row, leaves in enumerate(batch.num_tokens.tolist()):
        tokens, made = _Tokens.of(autoencoder, batch.tokens[row, :leaves]), 0
        while len(tokens.node) > 1:
            lists = _Lists(policy, tokens, nearest)
            for _ in range(len(tokens.node) - max(1, len(tokens.node) // 2)):
                merges[row, made] = lists.merge_best(autoencoder, leaves + made)
                made += 1
            tokens = lists.tokens.only(lists.alive)
    return merges


@torch.no_grad()
def merge_matchings(
    autoencoder: TreeEncoder,
    policy: StateScorer,
    batch: TokenBatch,
    nearest: Nearest | None = None,
) -> Int64[Tensor, "B M 2"]:
    """The merges of a matching of disjoint pairs a round, down to one root.

    Within a round the better pairs come first. ``nearest`` is the rule for candidates; None makes
    them all the other tokens.
    """
    merges = torch.full_like(batch.merges, NONE)
    for row, leaves in enumerate(batch.num_tokens.tolist()):
        sample = batch.tokens[row, :leaves]
        rule = Nearest(max(1, leaves - 1)) if nearest is None else nearest
        made = 0
        for pairs in matching_rounds(autoencoder, policy, sample, rule):
            merges[row, made : made + len(pairs)] = pairs
            made += len(pairs)
    return merges


def matching_rounds(
    autoencoder: TreeEncoder,
    policy: StateScorer,
    sample: Float[Tensor, "P T"],
    nearest: Nearest,
) -> Iterator[Int64[Tensor, "R 2"]]:
    """The pairs of nodes that each round merges."""
    tokens = _Tokens.of(autoencoder, sample)
    under, next_node = _Under(policy, autoencoder, sample), len(sample)
    while len(tokens.node) > 1:
        partners, _ = tokens.candidates(nearest)
        first, second = matching(under.scores(tokens, partners), partners)
        parents = tokens.merged(autoencoder, first, second, next_node)
        yield torch.stack([tokens.node[first], tokens.node[second]], dim=1)
        under.merge(tokens.node[first], tokens.node[second], parents.node)
        stays = torch.ones_like(tokens.node, dtype=torch.bool)
        stays[first] = stays[second] = False
        rest = tokens.only(stays)
        tokens = _Tokens(*(torch.cat(both) for both in zip(rest, parents, strict=True)))
        next_node += len(parents.node)


def matching(
    scores: Float[Tensor, "n k"], partners: Int64[Tensor, "n k"]
) -> tuple[Int64[Tensor, "R"], Int64[Tensor, "R"]]:
    """The pairs that are the best of both their tokens, the best first; no token is in two.

    ``partners``: -1 <--> none. Of equal scores the one that is listed first counts as better.
    """
    first, place = (partners >= 0).nonzero(as_tuple=True)
    second, score = partners[first, place], scores[first, place]
    order = score.argsort(descending=True, stable=True)
    first, second = first[order], second[order]
    rank = torch.arange(len(first), device=first.device)
    best = torch.full_like(partners[:, 0], len(first))
    for end in (first, second):
        best.scatter_reduce_(0, end, rank, "amin")
    chosen = (best[first] == rank) & (best[second] == rank)
    return first[chosen], second[chosen]


class _Under:
    """The scores of a whole population, and the tokens under its nodes where they are read."""

    def __init__(self, policy: StateScorer, autoencoder: TreeEncoder, sample: Tensor) -> None:
        self.policy, self.leaves = policy, autoencoder.standardise(sample[None])
        self.sets: Tensor | None = None
        """(N, P) True <--> the token is under the node."""
        if policy.observes:
            self.sets = torch.eye(2 * len(sample) - 1, len(sample), device=sample.device).bool()

    def scores(self, tokens: _Tokens, partners: Int64[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        observation = population_observation(
            self.policy.observes,
            torch.arange(len(tokens.node), device=partners.device)[None],
            tokens.embedding[None],
            tokens.leaf_counts[None],
            None if self.sets is None else self.sets[tokens.node][None],
            self.leaves,
            torch.ones_like(self.leaves[..., 0], dtype=torch.bool),
        )
        return self.policy.state_scores(observation | {"candidates": partners[None]})[0][0]

    def merge(self, first: Tensor, second: Tensor, parent: Tensor) -> None:
        if self.sets is not None:
            self.sets[parent] = self.sets[first] | self.sets[second]


class _Lists:
    """The candidates of one sample's tokens, with their scores; changed in place.

    Every list keeps its farthest distance and its best score, so that a merge touches few lists.
    """

    def __init__(self, policy: PairScorer, tokens: _Tokens, nearest: Nearest) -> None:
        self.policy, self.nearest = policy, nearest
        self.tokens = _Tokens(*(values.clone() for values in tokens))
        self.alive = torch.ones_like(tokens.node, dtype=torch.bool)
        self.partners, self.distances = tokens.candidates(nearest)
        features = policy.features(tokens.embedding, tokens.leaf_counts)
        # Of copies: they are written to, and may be the embeddings themselves.
        self.first, self.second = features.first.clone(), features.second.clone()
        row, place = (self.partners >= 0).nonzero(as_tuple=True)
        self.scores = self.first.new_full(self.partners.shape, GONE)
        self.scores[row, place] = self._score(row, self.partners[row, place])
        self.farthest, self.best = self.distances.amax(1), self.scores.amax(1)

    def merge_best(self, autoencoder: TreeEncoder, node: int) -> Int64[Tensor, "2"]:
        """Merge the best pair into ``node``; returns its two nodes."""
        first = self.best.argmax()[None]
        second = self.partners[first, self.scores[first].argmax(1)]
        tokens = self.tokens
        pair = torch.cat([tokens.node[first], tokens.node[second]])
        parent = tokens.merged(autoencoder, first, second, node)
        for values, new in zip(tokens, parent, strict=True):
            values[first] = new
        self.alive[second] = False
        features = self.policy.features(parent.embedding, parent.leaf_counts)
        self.first[first], self.second[first] = features.first, features.second
        self._replace(first, second, parent.places(self.nearest))
        return pair

    def _replace(self, parent: Tensor, gone: Tensor, place: Float[Tensor, "1 D"]) -> None:
        """The lists forget the children, and take up the parent (see ``candidates.py``)."""
        named = (self.partners == parent) | (self.partners == gone)
        row, spot = named.nonzero(as_tuple=True)
        self._forget(row, spot)
        self._forget(torch.cat([parent, gone]), slice(None))
        apart = squared_distances(self.tokens.places(self.nearest), place)
        apart.masked_fill_(~self.alive, torch.inf)
        apart[parent] = torch.inf
        near, who = apart.topk(min(self.partners.shape[1], len(apart)), largest=False)
        who = who[near < torch.inf]
        self._enter(parent.expand(len(who)), torch.arange(len(who), device=who.device), who, near)
        self.farthest[row] = torch.inf
        slot = (apart < self.farthest).nonzero()[:, 0]
        spot = self.distances[slot].argmax(1)
        self._enter(slot, spot, parent.expand(len(slot)), apart[slot])
        changed = torch.cat([row, slot, parent])
        self.farthest[changed] = self.distances[changed].amax(1)
        self.best[changed] = self.scores[changed].amax(1)
        self.best[gone], self.farthest[gone] = GONE, GONE

    def _forget(self, row: Tensor, spot: Tensor | slice) -> None:
        self.partners[row, spot] = NONE
        self.distances[row, spot], self.scores[row, spot] = torch.inf, GONE

    def _enter(self, row: Tensor, spot: Tensor, partner: Tensor, distance: Tensor) -> None:
        self.partners[row, spot] = partner
        self.distances[row, spot] = distance[: len(row)]
        self.scores[row, spot] = self._score(row, partner)

    def _score(self, first: Tensor, second: Tensor) -> Tensor:
        return bounded(self.policy.paired_scores(self.first[first], self.second[second]))
