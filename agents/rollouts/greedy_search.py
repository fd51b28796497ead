"""Merging large populations with a policy that is done learning: no more is kept than is needed.

Both functions choose among candidates, one sample after the other. :func:`merge_greedily` takes the
best pair at every step, compiled where numba is and on numpy arrays elsewhere: what one merge
computes is too little for the calls of torch, and for an accelerator. :func:`merge_matchings`
merges a whole matching a round, which gives other trees: every pair that is the best of both its
tokens, the best of all pairs among them, so that ``P`` tokens need about ``log P`` rounds.
Populations are made smaller, and their lists anew, whenever half of the tokens are gone; no table
of all pairs, and no history, is ever held.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.rollouts.pair_scores import (
    ArrayScorer,
    PairScorer,
    StateScorer,
    bounded_array,
    population_observation,
)
from agents.rollouts.rollout import compiled
from htm_env.autoencoder import TreeEncoder, packed_function
from htm_env.candidates import FARTHEST, Nearest, nearest_candidates
from htm_env.types import NONE, TokenBatch

GONE = -torch.inf
ROUNDING = 1e-5
"""Share of the squares of two points by which a distance may be wrong that a product gives."""


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
    """The merges of the best candidate at every step, down to one root; made on the processor."""
    where, batch = batch.tokens.device, batch.to("cpu")
    if where.type != "cpu":
        autoencoder = copy.deepcopy(autoencoder).cpu()
        policy = copy.deepcopy(policy).cpu()  # type: ignore[attr-defined]
    merger, scorer = autoencoder.merger, policy.on_arrays()
    merges = torch.full_like(batch.merges, NONE)
    for row, leaves in enumerate(batch.num_tokens.tolist()):
        tokens, made = _Tokens.of(autoencoder, batch.tokens[row, :leaves]), 0
        while len(tokens.node) > 1:
            lists = _Lists(merger, scorer, tokens, nearest)
            count = len(tokens.node) - max(1, len(tokens.node) // 2)
            found = lists.merge_so_many(count, leaves + made)
            merges[row, made : made + count] = torch.from_numpy(found)
            made, tokens = made + count, lists.left()
    return merges.to(where)


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
    """The candidates of one sample's tokens, with their scores, on arrays that change in place.

    Every list keeps its farthest distance and its best score, so that a merge touches few lists.
    """

    def __init__(
        self,
        merger: Callable[[Tensor], Tensor],
        scorer: ArrayScorer,
        tokens: _Tokens,
        nearest: Nearest,
    ) -> None:
        self.network, self.scorer, self.k = merger, scorer, min(nearest.k, len(tokens.node))
        self.merger = packed_function(merger)
        # (k, n): what is asked of many lists at once runs along the tokens.
        lists = [found.numpy().T.copy() for found in tokens.candidates(nearest)]
        self.partners, self.distances = lists[0].astype(np.int32), lists[1]
        copies = _Tokens(*(values.clone() for values in tokens))
        self.node, self.embedding, self.counts, self.centroid = (v.numpy() for v in copies)
        self.places = self.centroid if nearest.by_centroids else self.embedding
        self.squares = np.einsum("nd,nd->n", self.places, self.places)
        self.alive = np.ones(len(self.node), bool)
        features = scorer.features(self.embedding, self.counts)
        # Copies: they are written to, and may be the embeddings themselves.
        self.first, self.second = (values.copy() for values in features)
        spot, token = (self.partners >= 0).nonzero()
        scores = scorer.paired_scores(self.first[token], self.second[self.partners[spot, token]])
        self.scores = np.full(self.partners.shape, GONE, scores.dtype)
        self.scores[spot, token] = bounded_array(scores)
        self.farthest, self.best = self.distances.max(0), self.scores.max(0)

    def merge_so_many(self, count: int, node: int) -> np.ndarray:
        """Merge the best pair so many times, into ``node`` and those after it: ``(count, 2)``."""
        fast = compiled(self.network, self.scorer, self.embedding, self.centroid, self.first)
        if fast is None:
            return np.array([self.merge_best(node + made) for made in range(count)])
        lists = {name: getattr(self, name) for name in fast.functions.Lists._fields}
        found: np.ndarray = fast.functions.merge_listed(
            fast.merger, fast.scorer, node, count, **lists
        )
        return found

    def merge_best(self, node: int) -> tuple[int, int]:
        """Merge the best pair into ``node``; returns its two nodes."""
        first = int(self.best.argmax())
        second = int(self.partners[self.scores[:, first].argmax(), first])
        pair = int(self.node[first]), int(self.node[second])
        share = self.counts[first] / (self.counts[first] + self.counts[second])
        here, other = self.centroid[first], self.centroid[second]
        self.centroid[first] = share * here + (1 - share) * other
        both = np.concatenate([self.embedding[first], self.embedding[second]])
        self.embedding[first] = self.merger(both[None])[0]
        with np.errstate(over="ignore"):
            self.squares[first] = self.places[first] @ self.places[first]
        self.counts[first] += self.counts[second]
        self.node[first], self.alive[second] = node, False
        new = slice(first, first + 1)
        self.first[new], self.second[new] = self.scorer.features(
            self.embedding[new], self.counts[new]
        )
        self._replace(first, second)
        return pair

    def left(self) -> _Tokens:
        """The tokens that are left."""
        columns = self.node, self.embedding, self.counts, self.centroid
        return _Tokens(*(torch.from_numpy(values[self.alive]) for values in columns))

    def _replace(self, parent: int, gone: int) -> None:
        """The lists forget the children, and take up the parent (see ``candidates.py``)."""
        count = len(self.node)
        flat = self.partners.reshape(-1)
        named = ((flat == parent) | (flat == gone)).nonzero()[0]
        flat[named] = NONE
        self.distances.reshape(-1)[named], self.scores.reshape(-1)[named] = np.inf, GONE
        for token in (parent, gone):
            self.partners[:, token] = NONE
            self.distances[:, token], self.scores[:, token] = np.inf, GONE
        shortened = named % count

        self.farthest[shortened] = np.inf
        slot, apart = self._around(parent)
        near = np.arange(len(slot))
        if len(near) > self.k:
            near = np.argpartition(apart, self.k - 1)[: self.k]
        near = near[np.argsort(apart[near], kind="stable")]
        self.partners[: len(near), parent] = slot[near]
        self.distances[: len(near), parent] = apart[near]
        self.scores[: len(near), parent] = self._scores([parent], slot[near])[0]
        nearer = apart < self.farthest[slot]
        slot, apart = slot[nearer], apart[nearer]
        spot = self.distances.take(slot, axis=1).argmax(0)
        self.partners[spot, slot], self.distances[spot, slot] = parent, apart
        self.scores[spot, slot] = self._scores(slot, [parent])[:, 0]
        changed = np.concatenate([shortened, slot, [parent]])
        self.farthest[changed] = self.distances.take(changed, axis=1).max(0)
        self.best[changed] = self.scores.take(changed, axis=1).max(0)
        self.best[gone] = self.farthest[gone] = GONE

    def _around(self, parent: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that may be among the nearest of the parent, or the parent among theirs, and
        how far they are."""
        place = self.places[parent]
        others = self.alive.copy()
        others[parent] = False
        if np.isfinite(self.squares).all():
            # Found by a product, whose rounding is allowed for; what is kept is the exact distance.
            sums = self.squares + self.squares[parent]
            rough = sums - 2 * (self.places @ place) - ROUNDING * sums
            few = rough[others]
            bound = np.inf
            if len(few) > self.k:  # no more than these are nearer than that
                most = few + 2 * ROUNDING * sums[others]
                bound = np.partition(most, self.k - 1)[self.k - 1]
            others &= rough <= np.maximum(self.farthest, bound)
        slot = others.nonzero()[0]
        away = self.places.take(slot, axis=0)
        away -= place
        apart = np.einsum("nd,nd->n", away, away)
        apart[~(apart < FARTHEST)] = FARTHEST
        return slot, apart

    def _scores(self, first: Any, second: Any) -> np.ndarray:
        """Scores of all pairs of these tokens."""
        one, other = self.first.take(first, axis=0)[None], self.second.take(second, axis=0)[None]
        needed = np.ones((1, one.shape[1], other.shape[1]), bool)
        return bounded_array(self.scorer.scores(one, other, needed)[0])
