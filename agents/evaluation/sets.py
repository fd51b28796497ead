"""Token sets as they are given: read, put into slots, encoded, and back in their own indices.

A set gives the same tree, root and reconstruction whatever the order of its tokens and whatever
sets are beside it, but for rounding: its tokens come into the slots in an order that is drawn from
the set itself, and so are the random numbers of policies that draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, Shaped, UInt64
from torch import Tensor

from agents.evaluation.encoded import Encoded
from htm_env.autoencoder import TreeEncoder
from htm_env.datasets.base import Dataset, mix, shuffled, uniforms
from htm_env.datasets.sets import as_list, token_sets
from htm_env.trees.merge_tree import MergeTree
from htm_env.types import NONE, TokenBatch

SETS_AT_A_TIME, PAIRS_AT_A_TIME = 256, 2**20
"""Sets, and ordered pairs of tokens, that are encoded together at most; a set may have more."""


@runtime_checkable
class SetEncoder(Protocol):
    """A learner, as far as it is needed to encode sets."""

    dataset: Dataset
    device: torch.device
    std: Tensor
    autoencoder: TreeEncoder

    def greedy_trees(
        self, batch: TokenBatch, generator: torch.Generator
    ) -> Int64[Tensor, "B M 2"]: ...

    def encode(self, batch: TokenBatch, merges: Int64[Tensor, "B M 2"]) -> Encoded: ...

    def other_trees(
        self, count: int, batch: TokenBatch, seeds: Int64[Tensor, "B"]
    ) -> Int64[Tensor, "B S M 2"]: ...


# ---------------------------------------------------------------- in


@dataclass(frozen=True)
class PlacedSets:
    """Samples in slots, and the places of their tokens in the sets as they were given."""

    batch: TokenBatch
    places: Int64[Tensor, "B P"]
    """Index of the token in its set as it was given; -1 in empty slots."""
    columns: int
    """Tokens of the longest set, or columns of the array, that were given."""

    @classmethod
    def read(
        cls, sets: Any, dataset: Dataset, lengths: Any = None, present: Any = None
    ) -> PlacedSets:
        """Sets of any kind that is supported.

        Args:
            sets: an array (N, P, T), or a list of arrays (n_i, T).
            dataset: the data that a learner was trained on, whose columns tokens must have.
            lengths: the number of tokens of each row (N,); all of them if None.
            present: (N, P), True <--> there is a token; not beside ``lengths``.

        Raises ``ValueError`` naming what cannot be used: the shape, the numbers of a token, a row
        without tokens, a coordinate that is not finite.
        """
        sets = as_list(sets)
        given = {"tokens": sets, "lengths": lengths, "present": present}
        found = token_sets("sets", given, least=1)
        slots = int(found.lengths.max())
        full = np.arange(slots) < found.lengths[:, None]  # (N, P)
        tokens = np.where(full[..., None], dataset.from_user(found.padded()), np.float32(0))
        places = np.where(full, np.arange(slots), NONE)
        if found.places is not None:
            places[full] = np.concatenate(found.places)
        batch = TokenBatch(
            tokens=torch.from_numpy(tokens),
            present=torch.from_numpy(full),
            clades=torch.zeros((len(tokens), 0, slots), dtype=torch.bool),
            merges=torch.full((len(tokens), slots - 1, 2), NONE),
        )
        return cls(batch, torch.from_numpy(places), max(map(len, sets)))

    @classmethod
    def of(cls, dataset: Dataset, keys: Int64[np.ndarray, "B"]) -> PlacedSets:
        """Episodes of a dataset, with its hierarchy; generated ones are as they are generated."""
        batch, places = dataset.episodes(keys), dataset.places(keys)
        if places is None:
            slots = np.arange(batch.present.shape[1])
            places = np.where(batch.present.numpy(), slots, NONE)
        columns = max(dataset.max_tokens, int(places.max()) + 1)
        return cls(batch, torch.from_numpy(places), columns)

    def in_columns(self, tokens: Shaped[np.ndarray, "B P T"]) -> Shaped[np.ndarray, "B C T"]:
        """Values of slots in the columns of the sets as they were given, zeros elsewhere."""
        sample, slot = np.nonzero(self.batch.present.numpy())
        placed = np.zeros((len(tokens), self.columns, tokens.shape[2]), dtype=tokens.dtype)
        placed[sample, self.places.numpy()[sample, slot]] = tokens[sample, slot]
        return placed

    def parts(self) -> Iterator[Int64[np.ndarray, "R"]]:
        """Samples of like sizes, so many at a time that memory is bounded."""
        counts = self.batch.num_tokens.numpy()
        order = np.argsort(counts, kind="stable")
        start = 0
        while start < len(order):
            end = start + 1
            while end < min(len(order), start + SETS_AT_A_TIME):
                if (end + 1 - start) * int(counts[order[end]]) ** 2 > PAIRS_AT_A_TIME:
                    break
                end += 1
            yield order[start:end]
            start = end

    def part(self, rows: Int64[np.ndarray, "R"]) -> tuple[PlacedSets, UInt64[np.ndarray, "R"]]:
        """Some of the samples in slots of their own size, in the order that each set itself says,
        and the seeds of what else is drawn for each."""
        batch = self.batch.rows(torch.from_numpy(rows))._replace(sample=None)
        slots = int(batch.num_tokens.max())
        tokens, present = batch.tokens[:, :slots], batch.present[:, :slots].numpy()
        order, seeds = own_order(tokens.numpy(), present)
        slot = torch.from_numpy(order)
        own = torch.arange(len(rows))[:, None]
        moved = TokenBatch(
            tokens=tokens[own, slot],
            present=batch.present[:, :slots],
            clades=batch.clades[:, :, :slots].gather(
                2, slot[:, None].expand(-1, batch.clades.shape[1], -1)
            ),
            merges=renumbered(batch.merges[:, : slots - 1], slot.argsort(1), batch.num_tokens),
        )
        places = self.places[torch.from_numpy(rows)][own, slot]
        return PlacedSets(moved, places, self.columns), seeds


def own_order(
    tokens: Float32[np.ndarray, "B P T"], present: Bool[np.ndarray, "B P"]
) -> tuple[Int64[np.ndarray, "B P"], UInt64[np.ndarray, "B"]]:
    """A random order of the slots of every sample, the empty ones last, and a seed; both depend on
    the set of its tokens and on nothing else."""
    tokens = tokens + np.float32(0)  # there is one zero only
    order = np.argsort(~present, axis=1, kind="stable")
    for key in (*np.moveaxis(tokens, 2, 0)[::-1], ~present):
        within = np.argsort(np.take_along_axis(key, order, axis=1), axis=1, kind="stable")
        order = np.take_along_axis(order, within, axis=1)
    in_order = tokens[np.arange(len(tokens))[:, None], order]
    seeds = np.array(
        [
            int.from_bytes(hashlib.blake2b(one[:count].tobytes(), digest_size=8).digest(), "little")
            for one, count in zip(in_order, present.sum(axis=1), strict=True)
        ],
        dtype=np.uint64,
    )
    filled = np.take_along_axis(present, order, axis=1)
    mixed = shuffled(uniforms(seeds, order.shape[1]), filled)
    return np.take_along_axis(order, mixed, axis=1), mix(seeds)


def renumbered(
    merges: Int64[Tensor, "B M 2"], leaf: Int64[Tensor, "B P"], num_leaves: Int64[Tensor, "B"]
) -> Int64[Tensor, "B M 2"]:
    """Merges in which leaf ``i`` is ``leaf[i]``."""
    is_leaf = (merges >= 0) & (merges < num_leaves[:, None, None])
    named = leaf.gather(1, merges.where(is_leaf, 0).flatten(1)).view_as(merges)
    return torch.where(is_leaf, named, merges)


# ---------------------------------------------------------------- out


@dataclass(frozen=True)
class EncodedSets:
    """Sets in the order and the columns in which they were given, as arrays."""

    roots: Float[np.ndarray, "N D"]
    merges: Int64[np.ndarray, "N M 2"]
    """Of ``P`` columns: a leaf is its column, merge ``t`` makes node ``P + t``; -1 pads, and is
    everywhere where the learner makes no trees."""
    reconstruction: Float[np.ndarray, "N P T"] | None
    """The user's columns, decoded from the root alone; zeros where there is no token. None where
    nothing is decoded."""
    present: Bool[np.ndarray, "N P"]
    errors: Float[np.ndarray, "N"]
    """The ``nmse`` of every reconstruction; the cost of every tree where nothing is decoded."""

    @classmethod
    def joined(cls, parts: Sequence[EncodedSets]) -> EncodedSets:
        """Sets of equally many columns, one part after the other."""
        columns = zip(*map(_arrays, parts), strict=True)
        given = [[array for array in arrays if array is not None] for arrays in columns]
        joined: list[Any] = [np.concatenate(arrays) if arrays else None for arrays in given]
        return cls(*joined)

    def chosen(self, rows: Int64[np.ndarray, "R"]) -> EncodedSets:
        """Some of the sets, in that order."""
        chosen: list[Any] = [None if array is None else array[rows] for array in _arrays(self)]
        return EncodedSets(*chosen)

    def tree(self, row: int) -> MergeTree:
        """One tree; its leaves are the columns of the set's tokens."""
        leaves = np.flatnonzero(self.present[row])
        columns, count = self.present.shape[1], len(leaves)
        rank = np.zeros(columns, dtype=np.int64)
        rank[leaves] = np.arange(count)
        merges = self.merges[row]
        merges = merges[merges[:, 0] >= 0]
        own = np.where(merges < columns, rank[merges % columns], merges - columns + count)
        return MergeTree(own, count, leaves)


def _arrays(encoded: EncodedSets) -> list[np.ndarray | None]:
    return [getattr(encoded, field.name) for field in fields(encoded)]


@torch.no_grad()
def encode_sets(encoder: SetEncoder, sets: PlacedSets, search: int = 0) -> EncodedSets:
    """Greedy trees of sets, their roots, and what these decode to.

    ``search`` is the budget by which each tree is improved (see :func:`tree_search`).

    Raises ``ValueError`` for a policy that needs a hierarchy which the sets do not have.
    """
    count = len(sets.places)
    columns, to_user = sets.columns, encoder.dataset.to_user
    dim = to_user(sets.batch.tokens[:1]).shape[2]
    roots = np.zeros((count, encoder.autoencoder.embedding_dim), dtype=np.float32)
    merges = np.full((count, columns - 1, 2), NONE, dtype=np.int64)
    tokens: np.ndarray | None = np.zeros((count, columns, dim), dtype=np.float32)
    present = np.zeros((count, columns), dtype=bool)
    errors = np.zeros(count)
    for rows in sets.parts():
        part, seeds = sets.part(rows)
        batch = part.batch.to(encoder.device)
        made = _independent_trees(encoder, batch, seeds)
        if search:
            made = _searched(encoder, batch, made, seeds, search)
        encoded = encoder.encode(batch, made)
        roots[rows] = encoded.roots.cpu().numpy()
        errors[rows] = encoded.errors(encoder.std).double().cpu().numpy()
        named = _in_columns(made.cpu(), part)
        merges[rows, : named.shape[1]] = named
        if encoded.reconstruction is None:
            tokens = None
        elif tokens is not None:
            tokens[rows] = part.in_columns(to_user(encoded.reconstruction).cpu().numpy())
        present[rows] = part.in_columns(part.batch.present.numpy()[..., None])[..., 0]
    return EncodedSets(roots, merges, tokens, present, errors)


def _independent_trees(
    encoder: SetEncoder, batch: TokenBatch, seeds: UInt64[np.ndarray, "B"]
) -> Int64[Tensor, "B M 2"]:
    """Greedy trees that depend on their own sample and seed alone."""
    generator = torch.Generator(encoder.device).manual_seed(0)
    before = generator.get_state()
    merges = encoder.greedy_trees(batch, generator)
    if torch.equal(before, generator.get_state()):
        return merges
    # The policy drew, for all samples together: each gets random numbers of its own instead.
    own = [torch.Generator(encoder.device).manual_seed(int(seed >> 2)) for seed in seeds]
    each = [batch.rows(slice(row, row + 1)) for row in range(len(seeds))]
    return torch.cat(list(map(encoder.greedy_trees, each, own)))


def _searched(
    encoder: SetEncoder,
    batch: TokenBatch,
    merges: Int64[Tensor, "B M 2"],
    seeds: UInt64[np.ndarray, "B"],
    search: int,
) -> Int64[Tensor, "B M 2"]:
    if not ((merges >= 0).any() or batch.num_tokens.max() == 1):
        raise ValueError("a learner that makes no trees has none to search from; expected search 0")
    from agents.evaluation.search import searching  # nothing that learns needs it
    from agents.search import numbers_of_seeds

    return searching(encoder, search).improve(batch, merges, numbers_of_seeds(seeds))


def _in_columns(merges: Int64[Tensor, "B M 2"], part: PlacedSets) -> Int64[np.ndarray, "B M 2"]:
    """Merges of slots as merges of columns."""
    counts = part.batch.num_tokens
    later = torch.where(merges >= counts[:, None, None], merges - counts[:, None, None], NONE)
    named = renumbered(merges, part.places, counts)
    return torch.where(later >= 0, later + part.columns, named).numpy()
