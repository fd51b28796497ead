"""Search by the model's own costs: greedy, with a beam, and exhaustive for few tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.autoencoder import MergeCosts, TreeEncoder
from htm_env.checks import at_least
from htm_env.forest import children_table, legal_pairs
from htm_env.population import Population, merge_pairs, start_population, subtree_errors
from htm_env.types import NONE, TokenBatch

UNKNOWN = 1e30
"""Replaces a cost that is not a number: worst of all, but still a legal merge."""
CANDIDATES = 2**24
"""Candidates whose costs are held at a time, or those of one sample."""
A_CALL = 2**16
"""Merges of known cost that are evaluated at a time."""


@dataclass(frozen=True)
class Beam:
    """Keeps the ``width`` partial forests of each sample with the smallest cost.

    The cost is the ``nmse`` of an autoencoder, and under a known merger the summed cost of the
    merges. Every ordered pair is a candidate, or every unordered one where the merger is
    commutative. Forests with the same trees are kept once, however they were reached; trees that
    differ in the order within pairs are the same under a commutative merger. Width 1 is greedy
    search; a wider beam need not end better than a narrower.

    Cost: a candidate's cost holds until one of its two trees is merged, so a sample of ``n``
    tokens needs ``n (n - 1)`` candidates at first and ``2 (k - 1)`` for each kept forest of ``k``
    trees later: about ``(1 + width) n^2`` merges in all, each decoded down to its tokens. A
    commutative merger halves that, and a known one decodes nothing.
    """

    width: int = 4

    def __post_init__(self) -> None:
        at_least(1, width=self.width)

    @torch.no_grad()
    def __call__(
        self, batch: TokenBatch, autoencoder: TreeEncoder, generator: torch.Generator
    ) -> Int64[Tensor, "B M 2"]:
        """The complete tree with the smallest cost that the search found; nothing is drawn."""
        at_once = max(1, CANDIDATES // (self.width * batch.present.shape[1] ** 2))
        return torch.cat([self._trees(part, autoencoder) for part in batch.parts(at_once)])

    def _trees(self, batch: TokenBatch, autoencoder: TreeEncoder) -> Int64[Tensor, "B M 2"]:
        samples, slots = batch.present.shape
        forests = _start_forests(autoencoder, batch)  # R = B of them at first, B * width later
        for _ in range(slots - 1):
            forests = forests.merged(self._best(forests, samples))
        best = forests.costs.view(samples, -1).argmin(dim=1)
        beams = len(forests.costs) // samples
        return forests.merges[torch.arange(samples, device=best.device) * beams + best]

    def _best(self, forests: Forests, samples: int) -> Kept:
        """The candidates of least cost, as many for each sample."""
        keys, after = forests.keys, forests.costs_after()
        rows, slots = keys.shape
        beams = rows // samples
        totals = after.view(samples, -1)
        # Pairs of one forest differ in outcome, so an outcome comes at most once from each forest.
        totals, index = totals.topk(
            min(self.width * min(beams, forests.repeats), totals.shape[1]), dim=1, largest=False
        )  # (B, C), ascending
        offset = torch.arange(samples, device=index.device)[:, None] * beams
        row = index // slots**2 + offset
        first, second = index // slots % slots, index % slots
        outcome = (
            (keys * forests.active).sum(dim=1)[row]
            - keys[row, first]
            - keys[row, second]
            + forests.mixed(keys[row, first], keys[row, second])
        )  # (B, C)
        totals = totals.masked_fill(repeated(outcome), torch.inf)
        totals, kept = totals.topk(min(self.width, totals.shape[1]), dim=1, largest=False)
        # Small samples have fewer outcomes than the beam is wide: the best one fills it up, and the
        # copies go as duplicates in the next step.
        copied = totals.isinf()
        kept = torch.where(copied, kept[:, :1], kept)
        row, first, second = (chosen.gather(1, kept).flatten() for chosen in (row, first, second))
        return Kept(row, first, second, copied.flatten())


class Kept(NamedTuple):
    """The candidates that a search keeps: forests, and the pairs of slots to be merged in them."""

    row: Int64[Tensor, "K"]
    first: Int64[Tensor, "K"]
    second: Int64[Tensor, "K"]
    copied: Bool[Tensor, "K"]
    """True <--> it is kept a second time, to fill a beam that is wider than there are outcomes."""


@runtime_checkable
class Forests(Protocol):
    """The forests of a search, as many of each sample, and the costs of their candidates."""

    @property
    def active(self) -> Bool[Tensor, "R P"]: ...

    @property
    def keys(self) -> Int64[Tensor, "R P"]:
        """A key of the tree in each slot; equal trees have equal keys."""

    @property
    def costs(self) -> Float[Tensor, "R"]:
        """Cost of each forest."""

    @property
    def merges(self) -> Int64[Tensor, "R M 2"]: ...

    @property
    def repeats(self) -> int:
        """How often one outcome comes, at most, from different forests of one sample."""

    def costs_after(self) -> Float[Tensor, "R P P"]:
        """Cost of the forest after each candidate; infinite where a pair is none.

        A finished tree has one candidate, the first pair of slots, which changes nothing.
        """

    def mixed(self, first: Int64[Tensor, "*C"], second: Int64[Tensor, "*C"]) -> Int64[Tensor, "*C"]:
        """The keys of the trees that merges of trees with these keys make."""

    def merged(self, kept: Kept) -> Forests:
        """The forests after the kept merges."""


def _start_forests(model: TreeEncoder, batch: TokenBatch) -> Forests:
    """The forests before the first merge: one of each sample."""
    if model.merge_costs is None:
        return DecodedForests.start(model, batch)
    return KnownForests.start(model, model.merge_costs, batch)


@dataclass(frozen=True)
class DecodedForests:
    """Forests whose cost is the error of the tokens that an autoencoder decodes."""

    autoencoder: TreeEncoder
    population: Population
    errors: Float[Tensor, "R P P"]
    """See :func:`candidate_errors`."""
    keys: Int64[Tensor, "R P"]

    @classmethod
    def start(cls, autoencoder: TreeEncoder, batch: TokenBatch) -> DecodedForests:
        """The forests before the first merge."""
        population = start_population(autoencoder, _tokens_only(batch), autoencoder.token_std)
        errors = candidate_errors(autoencoder, population, legal_pairs(population.forest.active))
        return cls(autoencoder, population, errors, _leaf_keys(batch))

    @property
    def active(self) -> Bool[Tensor, "R P"]:
        return self.population.forest.active

    @property
    def costs(self) -> Float[Tensor, "R"]:
        return self.population.error

    @property
    def merges(self) -> Int64[Tensor, "R M 2"]:
        return self.population.forest.merges

    @property
    def repeats(self) -> int:
        return len(self.keys)  # what fills up a beam is there as often as in it

    def costs_after(self) -> Float[Tensor, "R P P"]:
        own = self.population.squared_errors
        total = own.sum(dim=1)
        after = self.errors + total[:, None, None] - own[:, :, None] - own[:, None, :]
        after = after.nan_to_num(nan=UNKNOWN, posinf=UNKNOWN)
        after = after.masked_fill(~legal_pairs(self.active), torch.inf)
        finished = self.population.forest.num_active <= 1
        after[:, 0, 0] = torch.where(finished, total.nan_to_num(nan=UNKNOWN), after[:, 0, 0])
        return after

    def mixed(self, first: Int64[Tensor, "*C"], second: Int64[Tensor, "*C"]) -> Int64[Tensor, "*C"]:
        return mixed(first, second)

    def merged(self, kept: Kept) -> DecodedForests:
        row, first, second, _ = kept
        population, errors, keys = self.population.rows(row), self.errors[row], self.keys[row]
        running = population.forest.num_active > 1
        population = merge_pairs(
            self.autoencoder, population, first, second, self.autoencoder.token_std, running
        )
        here = torch.arange(len(row), device=row.device)
        keys[here, first] = mixed(keys[here, first], keys[here, second])
        new = torch.zeros_like(errors, dtype=torch.bool)
        new[here, first] = True
        new[here, :, first] = True
        new &= legal_pairs(population.forest.active)
        errors = torch.where(new, candidate_errors(self.autoencoder, population, new), errors)
        return DecodedForests(self.autoencoder, population, errors, keys)


@dataclass(frozen=True)
class KnownForests:
    """Forests under a known merger, whose cost is the sum of the costs of their merges.

    The cost of a candidate is that of one merge, so nothing has to be known of the trees below it.
    """

    model: TreeEncoder
    merge_costs: MergeCosts
    embeddings: Float[Tensor, "R P D"]
    active: Bool[Tensor, "R P"]
    keys: Int64[Tensor, "R P"]
    nodes: Int64[Tensor, "R P"]
    """The node in each active slot."""
    num_leaves: Int64[Tensor, "R"]
    merges: Int64[Tensor, "R M 2"]
    costs: Float[Tensor, "R"]
    candidates: Float[Tensor, "R P P"]
    """Cost of merging each pair; infinite where it is no candidate."""

    @classmethod
    def start(cls, model: TreeEncoder, merge_costs: MergeCosts, batch: TokenBatch) -> KnownForests:
        """The forests before the first merge, in double precision."""
        samples, slots = batch.present.shape
        embeddings = model.lifter(model.standardise(batch.tokens.double()))
        nodes = torch.arange(slots, device=embeddings.device).repeat(samples, 1)
        forests = cls(
            model,
            merge_costs,
            embeddings,
            batch.present,
            _leaf_keys(batch),
            nodes,
            batch.num_tokens,
            nodes.new_full((samples, slots - 1, 2), NONE),
            embeddings.new_zeros(samples),
            embeddings.new_full((samples, slots, slots), torch.inf),
        )
        pairs = legal_pairs(batch.present)
        forests._evaluate(*(pairs.triu() if model.commutative else pairs).nonzero().unbind(1))
        return forests

    @property
    def repeats(self) -> int:
        # Once for each of its trees that a merge may have made last.
        return self.active.shape[1] // 2

    def costs_after(self) -> Float[Tensor, "R P P"]:
        after = self.costs[:, None, None] + self.candidates
        finished = self.active.sum(dim=1) <= 1
        after[:, 0, 0] = torch.where(finished, self.costs, after[:, 0, 0])
        return after

    def mixed(self, first: Int64[Tensor, "*C"], second: Int64[Tensor, "*C"]) -> Int64[Tensor, "*C"]:
        if self.model.commutative:
            first, second = torch.minimum(first, second), torch.maximum(first, second)
        return mixed(first, second)

    def merged(self, kept: Kept) -> KnownForests:
        row, first, second, copied = kept
        after = replace(
            self,
            embeddings=self.embeddings[row],
            active=self.active[row],
            keys=self.keys[row],
            nodes=self.nodes[row],
            num_leaves=self.num_leaves[row],
            merges=self.merges[row],
            costs=self.costs_after()[row, first, second],
            candidates=self.candidates[row],
        )
        num_active = after.active.sum(dim=1)
        here = (num_active > 1).nonzero().squeeze(1)
        first, second, time = first[here], second[here], (after.num_leaves - num_active)[here]
        after.merges[here, time, 0] = after.nodes[here, first]
        after.merges[here, time, 1] = after.nodes[here, second]
        after.nodes[here, first] = after.num_leaves[here] + time
        after.keys[here, first] = self.mixed(after.keys[here, first], after.keys[here, second])
        pair = after.embeddings[here, first], after.embeddings[here, second]
        after.embeddings[here, first] = self.model.merger(torch.cat(pair, dim=1))
        after.active[here, second] = False
        for gone in (first, second):
            after.candidates[here, gone] = torch.inf
            after.candidates[here, :, gone] = torch.inf
        after.candidates[copied] = torch.inf
        others = after.active[here] & ~copied[here, None]
        others[torch.arange(len(here), device=here.device), first] = False
        at, other = others.nonzero(as_tuple=True)
        row, parent = here[at], first[at]
        if self.model.commutative:
            after._evaluate(row, torch.minimum(parent, other), torch.maximum(parent, other))
        else:
            both = torch.cat([parent, other]), torch.cat([other, parent])
            after._evaluate(row.repeat(2), *both)
        return after

    def _evaluate(
        self, row: Int64[Tensor, "C"], first: Int64[Tensor, "C"], second: Int64[Tensor, "C"]
    ) -> None:
        """Fill in the costs of these candidates, in place."""
        last = self.active.sum(dim=1) == 2
        for r, a, b in zip(
            row.split(A_CALL), first.split(A_CALL), second.split(A_CALL), strict=True
        ):
            pair = self.embeddings[r, a], self.embeddings[r, b]
            merged = self.model.merger(torch.cat(pair, dim=1))
            costs = self.merge_costs(*pair, merged, last[r]).to(self.costs.dtype)
            self.candidates[r, a, b] = costs.nan_to_num(nan=UNKNOWN, posinf=UNKNOWN)


def _leaf_keys(batch: TokenBatch) -> Int64[Tensor, "B P"]:
    samples, slots = batch.present.shape
    return mixed(torch.arange(slots, device=batch.tokens.device), 1).repeat(samples, 1)


def mixed(first: Tensor, second: Tensor | int) -> Tensor:
    """A 64-bit key of an ordered pair of keys (multiply and shift, as in splitmix64)."""
    mixed = first * 0x1E3779B97F4A7C15 + second * 0x3F58476D1CE4E5B9 + 0x14D049BB133111EB
    mixed = (mixed ^ (mixed >> 30)) * 0x3F58476D1CE4E5B9
    mixed = (mixed ^ (mixed >> 27)) * 0x14D049BB133111EB
    return mixed ^ (mixed >> 31)


def repeated(values: Int64[Tensor, "B C"]) -> Tensor:
    """True <--> the same value is further to the left in its row."""
    ordered, index = values.sort(dim=1, stable=True)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(again).scatter_(1, index, again)


def _tokens_only(batch: TokenBatch) -> TokenBatch:
    """The batch without clades and merges, so that a copy for every forest costs little."""
    return batch._replace(clades=batch.clades[:, :0], merges=batch.merges[:, :0])


TOKENS_A_CALL = 16384
"""Tokens decoded at once: with a hidden width of 256, some 20 MB a hidden layer."""


@torch.no_grad()
def candidate_errors(
    autoencoder: TreeEncoder, population: Population, pairs: Bool[Tensor, "R P P"]
) -> Float[Tensor, "R P P"]:
    """The summed squared error of the tokens under the parent that each ordered pair would have.

    ``pairs`` must be legal; 0 where it is False. All candidates are merged and decoded together,
    ``TOKENS_A_CALL`` tokens at a time. An entry stays right until one of its two slots changes.
    """
    forest, counts = population.forest, population.leaf_counts
    children = children_table(forest.merges, forest.num_leaves)
    rows, first, second = pairs.nonzero(as_tuple=True)
    errors = population.embeddings.new_zeros(pairs.shape)
    if not len(rows):
        return errors
    largest = int((counts[rows, first] + counts[rows, second]).max())
    a_call = max(1, TOKENS_A_CALL // largest)
    for row, left, right in zip(
        rows.split(a_call), first.split(a_call), second.split(a_call), strict=True
    ):
        slots = torch.stack([left, right], dim=1)  # (C, 2)
        embeddings = population.embeddings[row[:, None], slots]  # (C, 2, D)
        merged = autoencoder.merger(embeddings.flatten(1))
        below = autoencoder.decoding().unmerge(merged)  # (2 C, D)
        # The parent does not exist yet, so decoding starts at its children, which do.
        nodes = forest.slots[row[:, None], slots] + row[:, None] * children.shape[1]
        decoded = subtree_errors(
            autoencoder, below, nodes.flatten(), children, population.batch, autoencoder.token_std
        )
        errors[row, left, right] = decoded.view(-1, 2).sum(dim=1)
    return errors


def all_merge_sequences(num_leaves: int) -> Int64[Tensor, "S M 2"]:
    """Every sequence of ordered merges over ``n`` tokens, in node ids, ``M = n - 1``.

    There are ``n! (n - 1)!``: 2, 12 and 144 for two, three and four tokens. Some differ only in
    when their merges are made. Raises ``ValueError`` for fewer than one token.
    """
    at_least(1, num_leaves=num_leaves)

    def continued(active: list[int]) -> list[list[list[int]]]:
        if len(active) == 1:
            return [[]]
        parent = 2 * num_leaves - len(active)
        return [
            [[first, second], *rest]
            for first, second in permutations(active, 2)
            for rest in continued([*(set(active) - {first, second}), parent])
        ]

    sequences = continued(list(range(num_leaves)))
    return torch.tensor(sequences, dtype=torch.int64).view(len(sequences), num_leaves - 1, 2)
