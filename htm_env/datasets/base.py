"""Sources of token sets, generated or finite: each episode is a pure function of its key."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt64
from torch import Tensor

from htm_env import checks
from htm_env.datasets.kinds import POLYLINES, Kind
from htm_env.types import LARGE, NONE, TokenBatch

SPLITS: Final = ("train", "validation", "test")
"""The names of the splits; the index of a split is its place here."""

KEY_LIMIT: Final = 2**62
"""Keys are ``0 <= key < KEY_LIMIT``, so that ``3 * key + 2`` still fits 64 bits."""

_GOLDEN_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)

STATISTICS_EPISODES = 4096
"""Training episodes behind ``mean`` and ``std`` of generated data."""
_CHUNK = 256
LARGEST_SIZE = 1e6
"""Lengths, masses and momenta of what is generated, at most: their squares have 32 bits."""
FEW = 8192
"""Tokens of a batch of large sets."""


class Dataset(ABC):
    """One split of a data set.

    Every episode's tokens are shuffled; its clades and merges name the shuffled slots.
    """

    name: str
    """The environment id that the data belongs to."""
    split: str
    """``"train"``, ``"validation"`` or ``"test"``; no sample is in two of them."""
    max_tokens: int
    """``P``: the largest population, over all three splits."""
    token_dim: int
    """``T``: the coordinates of one token."""
    categories: tuple[int, ...] = ()
    """Numbers of values of the categories, whose coordinates are a token's last ones: 1 for its
    value and 0 for the others (see ``coordinates.py``)."""
    kind: Kind
    """Drawing style of a token."""
    has_hierarchy: bool
    """True <--> the samples carry clades and merges."""
    has_labels: bool = False
    """True <--> :meth:`labels` says what each sample shows."""
    default_reward: str = "incremental"
    """Default reward of the data's environment: a name (see ``rewards.py``), or ``module:name`` in
    this package of what makes it from the data."""
    default_merger: str | None = None
    """``module:name`` in this package of what makes the merger that is known for this data (see
    ``known.py``); None <--> an autoencoder learns to merge."""
    size: int | None
    """Rows of this split; None where episodes are generated without end."""

    # Where episodes come from; None of it for generated data.
    rows: Int64[np.ndarray, "_"] | None = None
    """Rows of the data as given, in this split's own order: key ``k`` is row ``rows[k % size]``."""
    row_names: Sequence[str] | None = None
    """Name of each of ``rows``, in the same order; None where the data has no names."""
    token_names: list[list[str]] | None = None
    """Names of the tokens of each of ``rows``, by their place in the row as given (see
    :meth:`places`); None where the data has no such names."""
    label_names: list[str] | None = None
    """Name of each class number that :meth:`labels` gives; None without labels."""
    label_values: np.ndarray | None = None
    """The same as given, whole numbers or strings."""
    clade_label_names: list[str] | None = None
    """Name of each number that :meth:`clade_labels` gives; None without such labels."""
    token_label_names: list[str] | None = None
    """Name of each number that :meth:`token_labels` gives; None without such labels."""
    column_names: list[str] | None = None
    """Name of each number of a token as given; None where the data has no such names."""

    def __init__(self, split: str) -> None:
        """Raises ``ValueError`` where ``split`` is not a split's name."""
        check_split(split)
        self.split = split

    @classmethod
    def keywords(cls) -> tuple[str, ...]:
        """Keywords that :meth:`make` takes beside the split."""
        return ()

    @classmethod
    def make(cls, split: str, **keywords: Any) -> Dataset:
        """The split, from arguments of :func:`htm_env.make_dataset`.

        Raises ``ValueError`` for a value that is out of range.
        """
        return cls(split, **keywords)

    @abstractmethod
    def episodes(self, keys: Int64[np.ndarray, "B"]) -> TokenBatch:
        """The episodes of these keys, ``0 <= key < 2**62``, one a row.

        A row depends on its own key and on nothing else, to the last bit.

        Raises ``ValueError`` where ``keys`` is not a flat int64 array, or a key is out of range.
        """

    @abstractmethod
    def training_tokens(self) -> Float32[np.ndarray, "tokens T"]:
        """The present tokens of the training split that ``mean`` and ``std`` are taken over."""

    def training_sets(
        self, count: int
    ) -> tuple[Float32[np.ndarray, "N P T"], Bool[np.ndarray, "N P"]]:
        """``count`` sets of the training split, or as many as there are: tokens, zeros in padding,
        and True <--> a token is there.

        Here the first sets of this split, for a class that has no other at hand.
        """
        batch = self.fixed(count)
        return batch.tokens.numpy(), batch.present.numpy()

    def sample(self, batch: int, generator: torch.Generator) -> TokenBatch:
        """``batch`` episodes with keys drawn from ``generator``.

        Raises ``ValueError`` where ``batch`` is less than one.
        """
        if batch < 1:
            raise ValueError(f"batch is {batch}; expected at least 1")
        keys = torch.randint(
            KEY_LIMIT, (batch,), generator=generator, device=generator.device, dtype=torch.int64
        )
        return self.episodes(keys.cpu().numpy())

    def affordable(self, count: int) -> int:
        """``count`` samples of a batch, or fewer where sets have more than 256 tokens: at most
        8,192 tokens together, so that an update of large sets takes seconds and not minutes."""
        return count if self.max_tokens <= LARGE else max(1, min(count, FEW // self.max_tokens))

    def fixed(self, count: int) -> TokenBatch:
        """The first ``count`` episodes of this split, the same ones at every call.

        Finite data gives each of its rows once at most: ``min(count, size)`` episodes, so that
        ``fixed(size)`` is the whole split.

        Raises ``ValueError`` where ``count`` is less than one.
        """
        return self.episodes(self.fixed_keys(count))

    def fixed_keys(self, count: int) -> Int64[np.ndarray, "B"]:
        """The keys of the episodes that :meth:`fixed` gives.

        Raises ``ValueError`` where ``count`` is less than one.
        """
        checks.at_least(1, count=count)
        return np.arange(count if self.size is None else min(count, self.size), dtype=np.int64)

    def labels(self, keys: Int64[np.ndarray, "B"]) -> Int64[np.ndarray, "B"]:
        """Labels of the samples of these keys, as class numbers from 0.

        For the analysis of results only: no :class:`TokenBatch` carries labels, no learner asks for
        them, and training never sees them.

        Raises:
            ValueError: the data has no labels, or the keys are not those of :meth:`episodes`.
        """
        raise ValueError(f"{self.name} has no labels")

    def clade_labels(self, keys: Int64[np.ndarray, "B"]) -> Int64[np.ndarray, "B C"]:
        """What each of the clades is, as :meth:`episodes` gives them under these keys; -1 where a
        clade has no label, and in padding.

        Inner nodes of a tree that are clades of the data are labelled by them. For the analysis of
        results only, as :meth:`labels`, and raises what that does.
        """
        raise ValueError(f"{self.name} has no labels of clades")

    def token_labels(self, keys: Int64[np.ndarray, "B"]) -> Int64[np.ndarray, "B P"]:
        """What the token of each slot is, as :meth:`episodes` shuffles them under these keys; -1 in
        empty slots.

        For the analysis of results only, as :meth:`labels`, and raises what that does.
        """
        raise ValueError(f"{self.name} has no labels of tokens")

    def of_rank(self, rank: int, ranks: int) -> Dataset:
        """The part of this split that process ``rank`` of ``ranks`` draws from when they train
        together; all of it here, since each has keys of its own.

        Statistics, fingerprint and shape are those of all data.
        """
        return self

    def places(self, keys: Int64[np.ndarray, "B"]) -> Int64[np.ndarray, "B P"] | None:
        """The place that each slot's token has in its row as given; -1 in empty slots.

        The token of slot ``s`` under ``keys[b]`` is ``given[rows[keys[b] % size]][places[b, s]]``.
        None for generated data, whose rows are not given.
        """
        return None

    def fingerprint(self) -> dict[str, Any] | None:
        """What tells this data from other data; None for generated data.

        ``sha256`` of all arrays that a run depends on, whatever file or list they came in, ``rows``
        (N), ``tokens`` (P), ``token_dim`` (T), and ``name``: the file's name, or ``"array"``.
        """
        return None

    def to_user(self, tokens: Float[Tensor, "*rows T"]) -> Float[Tensor, "*rows C"]:
        """Tokens in the columns in which they were given: a category is its most probable value.

        The argument itself for data without categories.
        """
        return tokens

    def from_user(self, tokens: Float32[np.ndarray, "B P C"]) -> Float32[np.ndarray, "B P T"]:
        """The coordinates of tokens in the user's columns; the inverse of :meth:`to_user`.

        Raises ``ValueError`` for another number of columns, and for a value that is none of its
        category's.
        """
        if tokens.shape[-1] != self.token_dim:
            raise ValueError(f"tokens have {tokens.shape[-1]} numbers: expected {self.token_dim}")
        return tokens

    def polylines(self, tokens: Float[Tensor, "*rows T"]) -> Float[Tensor, "*rows K C"]:
        """The points of the line that each token describes: one of a point, two of a segment, all
        of a stroke, and the centre of a patch, in the data's units.

        Any other token is one point, at its standardised coordinates.
        """
        if self.kind in POLYLINES:
            return POLYLINES[self.kind](tokens)
        mean, unit = (values.to(tokens) for values in (self.mean, self.std))
        return ((tokens - mean) / unit)[..., None, :]

    @property
    def mean(self) -> Float[Tensor, "T"]:
        """The mean of each coordinate over the training split's tokens, float32."""
        return self._statistics[0].clone()

    @property
    def std(self) -> Float[Tensor, "T"]:
        """The unit of each coordinate: its standard deviation, 1 where it never varies.

        Errors are counted in it, and autoencoders standardise by it, so what changes it changes
        loss and error alike: weights of coordinates, and categories (``coordinates.py``).
        """
        return self._statistics[1].clone()

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        tokens = self.training_tokens().astype(np.float64)
        std = tokens.std(axis=0).astype(np.float32)
        std[std == 0] = 1.0  # exact: sums of equal float32 numbers are exact in float64
        mean = torch.from_numpy(tokens.mean(axis=0).astype(np.float32))
        return mean, self.units(mean, torch.from_numpy(std))

    def units(self, mean: Float[Tensor, "T"], std: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
        """The unit of each coordinate, from mean and standard deviation; the latter here."""
        return std


# ---------------------------------------------------------------- generated samples


class Shuffle(NamedTuple):
    """Permutation of the tokens of a batch: places are in generator order, slots are shuffled."""

    place_of_slot: Int64[np.ndarray, "B P"]
    slot_of_place: Int64[np.ndarray, "B P"]
    present: Bool[np.ndarray, "B P"]
    """True <--> the slot holds a token."""

    @classmethod
    def draw(
        cls, order_uniforms: Float64[np.ndarray, "B P"], present_places: Bool[np.ndarray, "B P"]
    ) -> Shuffle:
        """A uniformly random order of the present places; the empty slots come last."""
        place_of_slot = shuffled(order_uniforms, present_places)
        rows, slots = np.arange(len(place_of_slot))[:, None], np.arange(place_of_slot.shape[1])
        slot_of_place = np.empty_like(place_of_slot)
        slot_of_place[rows, place_of_slot] = slots
        return cls(place_of_slot, slot_of_place, slots < present_places.sum(axis=1)[:, None])

    def tokens(self, places: Float64[np.ndarray, "B places T"]) -> Float32[np.ndarray, "B P T"]:
        """The tokens in slot order, zeros in empty slots."""
        moved = places[np.arange(len(places))[:, None], self.place_of_slot]
        return np.where(self.present[:, :, None], moved, 0.0).astype(np.float32)

    def clades(
        self, members: Bool[np.ndarray, "C P"], exists: Bool[np.ndarray, "B C"]
    ) -> Bool[np.ndarray, "B C P"]:
        """Sets of places as sets of slots, less absent tokens; all False where not ``exists``."""
        in_slots = members.T[self.place_of_slot].transpose(0, 2, 1)  # (B, C, P)
        there: np.ndarray = in_slots & self.present[:, None] & exists[:, :, None]
        return there


GeneratedArrays = tuple[
    Float32[np.ndarray, "B P T"],
    Bool[np.ndarray, "B P"],
    Bool[np.ndarray, "B C P"],
    Int64[np.ndarray, "B M 2"],
]
"""Tokens, present, clades and merges, as in a :class:`TokenBatch`."""


class GeneratedDataset(Dataset):
    """Endless samples; a subclass draws them from the seeds of their streams."""

    has_hierarchy = True
    size = None
    geometry_class: type
    """The frozen dataclass of what is drawn; the subclass takes one after the split."""

    @classmethod
    def keywords(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls.geometry_class))

    @classmethod
    def make(cls, split: str, **keywords: Any) -> Dataset:
        return cls(split, cls.geometry_class(**keywords))  # type: ignore[call-arg]

    @abstractmethod
    def generate(self, seeds: UInt64[np.ndarray, "B"]) -> GeneratedArrays:
        """The samples with these seeds."""

    def episodes(self, keys: Int64[np.ndarray, "B"]) -> TokenBatch:
        check_keys(keys)
        arrays = self.generate(split_keys(keys, self.split))
        return TokenBatch(*(torch.from_numpy(array) for array in arrays))

    def training_sets(
        self, count: int
    ) -> tuple[Float32[np.ndarray, "N P T"], Bool[np.ndarray, "N P"]]:
        keys = np.arange(min(count, STATISTICS_EPISODES))
        return self.generate(split_keys(keys, "train"))[:2]

    def training_tokens(self) -> Float32[np.ndarray, "tokens T"]:
        chunks = []
        for start in range(0, STATISTICS_EPISODES, _CHUNK):
            keys = np.arange(start, start + _CHUNK)
            tokens, present, _, _ = self.generate(split_keys(keys, "train"))
            chunks.append(tokens[present])
        return np.concatenate(chunks)


# ---------------------------------------------------------------- given samples


@dataclass(frozen=True, kw_only=True)
class RowFacts:
    """What is known of all rows of finite data beside their tokens; None is unknown."""

    name: str = "array"
    """Name of the file that they came from."""
    places: Int64[np.ndarray, "N P"] | None = None
    """Place in the row as given of each token; None: the tokens are all there, in order."""
    classes: Int64[np.ndarray, "N"] | None = None
    """Class numbers."""
    label_values: np.ndarray | None = None
    """The label of each class number, a whole number or a string."""
    row_names: list[str] | None = None
    """Names of the rows."""
    token_names: list[list[str]] | None = None
    """Names of the tokens of each row, by place in the row as given."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """More arrays by name that tell this data from other data."""


class ArraysDigest:
    """The sha256 of named arrays of numbers, taken up in the order of their names.

    An array comes as a whole, or as its header and then its parts along the first dimension.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def begin(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        """The header of an array, whose parts follow."""
        self._digest.update(f"{name} {dtype.newbyteorder('<').str} {shape} ".encode())

    def part(self, array: np.ndarray) -> None:
        """The next rows of the array."""
        array = np.ascontiguousarray(array)
        self._digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)

    def hexdigest(self) -> str:
        """64 hex digits."""
        return self._digest.hexdigest()


def arrays_hash(arrays: Mapping[str, Any]) -> str:
    """The sha256 of named arrays of numbers, in the order of their names, as 64 hex digits."""
    digest = ArraysDigest()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.begin(name, array.dtype, array.shape)
        digest.part(array)
    return digest.hexdigest()


class GivenDataset(Dataset):
    """Rows that were given rather than drawn; key ``k`` is row ``k % size``, shuffled by ``k``.

    A subclass sets ``rows`` and ``size``, and says what is in the rows of its split.
    """

    has_hierarchy = False
    size: int
    rows: Int64[np.ndarray, "_"]

    @abstractmethod
    def lengths_of(self, rows: Int64[np.ndarray, "B"]) -> Int64[np.ndarray, "B"]:
        """The tokens of these rows of the split."""

    @abstractmethod
    def ordered(
        self, rows: Int64[np.ndarray, "B"], order: Int64[np.ndarray, "B P"]
    ) -> Float32[np.ndarray, "B P T"]:
        """The tokens of these rows, slot by slot from the place in the row that ``order`` names;
        anything from a place that has no token."""

    def places_of(
        self, rows: Int64[np.ndarray, "B"], order: Int64[np.ndarray, "B P"]
    ) -> Int64[np.ndarray, "B P"]:
        """The place in the row as given of each of these tokens; here all are there, in order."""
        return order

    @abstractmethod
    def classes_of(self, rows: Int64[np.ndarray, "B"]) -> Int64[np.ndarray, "B"]:
        """The class numbers of these rows; called only where ``has_labels``."""

    def episodes(self, keys: Int64[np.ndarray, "B"]) -> TokenBatch:
        rows, present, order = self._order(keys)
        tokens = self.ordered(rows, order)  # (B, P, T)
        clades, merges = self.hierarchy(rows, order)
        return TokenBatch(
            tokens=torch.from_numpy(np.where(present[:, :, None], tokens, np.float32(0))),
            present=torch.from_numpy(present),
            clades=torch.from_numpy(clades),
            merges=torch.from_numpy(merges),
        )

    def _order(
        self, keys: Int64[np.ndarray, "B"]
    ) -> tuple[Int64[np.ndarray, "B"], Bool[np.ndarray, "B P"], Int64[np.ndarray, "B P"]]:
        """Rows of the split, occupied slots, and the token of its row that fills each slot."""
        check_keys(keys)
        rows = keys % self.size
        present = np.arange(self.max_tokens) < self.lengths_of(rows)[:, None]
        order = shuffled(uniforms(split_keys(keys, self.split), self.max_tokens), present)
        return rows, present, order

    def places(self, keys: Int64[np.ndarray, "B"]) -> Int64[np.ndarray, "B P"]:
        rows, present, order = self._order(keys)
        return np.where(present, self.places_of(rows, order), NONE)

    def labels(self, keys: Int64[np.ndarray, "B"]) -> Int64[np.ndarray, "B"]:
        if not self.has_labels:
            return super().labels(keys)
        check_keys(keys)
        return self.classes_of(keys % self.size)

    def hierarchy(
        self, rows: Int64[np.ndarray, "B"], order: Int64[np.ndarray, "B P"]
    ) -> tuple[Bool[np.ndarray, "B C P"], Int64[np.ndarray, "B M 2"]]:
        """Clades and merges of these rows of the split; none here.

        ``order`` is the place in its row that each slot was filled from.
        """
        clades = np.zeros((len(rows), 0, self.max_tokens), dtype=bool)
        return clades, empty_merges(len(rows), self.max_tokens)


class FiniteDataset(GivenDataset):
    """Rows in memory."""

    def __init__(
        self,
        split: str,
        values: Float32[np.ndarray, "N P T"],
        lengths: Int64[np.ndarray, "N"],
        rows_of_splits: tuple[Int64[np.ndarray, "_"], ...],
        facts: RowFacts | None = None,
    ) -> None:
        """
        Args:
            split: the split's name.
            values: tokens of all rows of the data, padded with anything.
            lengths: how many tokens each row has.
            rows_of_splits: the rows of each split, in the order of ``SPLITS``.
            facts: labels and names of all rows.
        """
        super().__init__(split)
        facts = RowFacts() if facts is None else facts
        self.rows = rows_of_splits[check_split(split)]
        """Rows of the data in this split, in its own order; int64 (size,)."""
        self.size = len(self.rows)
        self.max_tokens, self.token_dim = values.shape[1:]
        self._values = values[self.rows]
        self._lengths = lengths[self.rows]
        present = np.arange(self.max_tokens) < lengths[:, None]
        train = rows_of_splits[0]
        self._training_lengths = lengths[train]
        self._training_tokens: np.ndarray = values[train][present[train]]
        self._places = None if facts.places is None else facts.places[self.rows]
        self._classes = None if facts.classes is None else facts.classes[self.rows]
        if self._classes is not None:
            self.has_labels = True
        self.label_values = facts.label_values
        if facts.label_values is not None:
            self.label_names = [str(value) for value in facts.label_values.tolist()]
        self.row_names = _chosen(facts.row_names, self.rows)
        self.token_names = _chosen(facts.token_names, self.rows)
        arrays = {"values": values[present], "lengths": lengths, **facts.others}
        if facts.places is not None:
            arrays["places"] = facts.places[present]
        self._fingerprint = {
            "sha256": arrays_hash(arrays),
            "rows": len(values),
            "tokens": self.max_tokens,
            "token_dim": self.token_dim,
            "name": facts.name,
        }

    def lengths_of(self, rows: Int64[np.ndarray, "B"]) -> Int64[np.ndarray, "B"]:
        lengths: np.ndarray = self._lengths[rows]
        return lengths

    def ordered(
        self, rows: Int64[np.ndarray, "B"], order: Int64[np.ndarray, "B P"]
    ) -> Float32[np.ndarray, "B P T"]:
        tokens: np.ndarray = self._values[rows[:, None], order]
        return tokens

    def places_of(
        self, rows: Int64[np.ndarray, "B"], order: Int64[np.ndarray, "B P"]
    ) -> Int64[np.ndarray, "B P"]:
        return order if self._places is None else self._places[rows[:, None], order]

    def classes_of(self, rows: Int64[np.ndarray, "B"]) -> Int64[np.ndarray, "B"]:
        assert self._classes is not None
        classes: np.ndarray = self._classes[rows]
        return classes

    def fingerprint(self) -> dict[str, Any]:
        return dict(self._fingerprint)

    def training_sets(
        self, count: int
    ) -> tuple[Float32[np.ndarray, "N P T"], Bool[np.ndarray, "N P"]]:
        lengths = self._training_lengths[:count]
        present = np.arange(self.max_tokens) < lengths[:, None]  # (N, P)
        tokens = np.zeros((*present.shape, self.token_dim), dtype=np.float32)
        tokens[present] = self._training_tokens[: lengths.sum()]
        return tokens, present

    def training_tokens(self) -> Float32[np.ndarray, "tokens T"]:
        return self._training_tokens


def _chosen(names: list[Any] | None, rows: Int64[np.ndarray, "_"]) -> list[Any] | None:
    return None if names is None else [names[row] for row in rows.tolist()]


# ---------------------------------------------------------------- keys, and random numbers of them


def check_split(split: Any) -> int:
    """The index of a split; ``ValueError`` where ``split`` is not one of ``SPLITS``."""
    if not isinstance(split, str):
        raise ValueError(
            f"split is a {type(split).__name__}: expected one of {', '.join(SPLITS)}; split= is "
            "the split to use, the splits of rows are split_of="
        )
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    return SPLITS.index(split)


def check_keys(keys: Any) -> None:
    """Raises ``ValueError`` unless ``keys`` is a flat int64 array within ``[0, KEY_LIMIT)``."""
    if not isinstance(keys, np.ndarray) or keys.dtype != np.int64 or keys.ndim != 1:
        found = (
            f"{keys.dtype} {keys.shape}" if isinstance(keys, np.ndarray) else type(keys).__name__
        )
        raise ValueError(f"episode keys are {found}: expected an int64 array (B,)")
    if keys.size and (int(keys.min()) < 0 or int(keys.max()) >= KEY_LIMIT):
        raise ValueError(
            f"episode keys run from {keys.min()} to {keys.max()}: expected 0 <= key < 2**62"
        )


def mix(values: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """The bijection of 64-bit words at the end of splitmix64.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (with
    Stafford's variant 13 of the constants).
    """
    mixed: np.ndarray = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def split_keys(keys: Int64[np.ndarray, "B"], split: str) -> UInt64[np.ndarray, "B"]:
    """The seed of each episode's stream.

    ``3 * key + split`` is injective over keys and splits, and ``mix`` is a bijection: no two splits
    share a seed.
    """
    numbers = keys.astype(np.uint64) * np.uint64(len(SPLITS)) + np.uint64(check_split(split))
    return mix(numbers)


def uniforms(
    seeds: UInt64[np.ndarray, "B"], count: int, skip: int = 0
) -> Float64[np.ndarray, "B {count}"]:
    """``count`` numbers in [0, 1) of each seed's splitmix64 stream, after the first ``skip``."""
    steps = np.arange(skip + 1, skip + count + 1, dtype=np.uint64) * _GOLDEN_GAMMA
    words = mix(seeds[:, None] + steps)  # (B, count)
    words >>= np.uint64(11)  # a float64 holds 53 bits
    return words * 2.0**-53


def shuffled(
    order_uniforms: Float64[np.ndarray, "B P"], present: Bool[np.ndarray, "B P"]
) -> Int64[np.ndarray, "B P"]:
    """Place that each slot is filled from: the present places in random order, then the rest."""
    return np.argsort(np.where(present, order_uniforms, 2.0), axis=1, kind="stable")


# ---------------------------------------------------------------- ordered merges


def empty_merges(batch: int, max_tokens: int) -> Int64[np.ndarray, "B M 2"]:
    """Merges of samples that have none yet."""
    return np.full((batch, max_tokens - 1, 2), NONE, dtype=np.int64)


def moved_merges(
    merges: Int64[np.ndarray, "B M 2"],
    place_of_slot: Int64[np.ndarray, "B P"],
    num_tokens: Int64[np.ndarray, "B"],
) -> Int64[np.ndarray, "B M 2"]:
    """The same merges, whose leaves are places, with the slots that were filled from them."""
    slot_of_place = np.argsort(place_of_slot, axis=1)
    is_leaf = (merges != NONE) & (merges < num_tokens[:, None, None])
    places = np.where(is_leaf, merges, 0).reshape(len(merges), -1)
    slots = np.take_along_axis(slot_of_place, places, axis=1).reshape(merges.shape)
    return np.where(is_leaf, slots, merges)


def write_merges(
    merges: Int64[np.ndarray, "B M 2"],
    exists: Bool[np.ndarray, "B K"],
    index: Int64[np.ndarray, "B K"],
    first: Int64[np.ndarray, "B K"],
    second: Int64[np.ndarray, "B K"],
) -> None:
    """Writes the ordered pairs ``(first, second)`` that exist into ``merges``, in place."""
    rows, columns = np.nonzero(exists)
    where = index[rows, columns]
    merges[rows, where, 0] = first[rows, columns]
    merges[rows, where, 1] = second[rows, columns]


def pair_merges(
    slots: Int64[np.ndarray, "B P"],
    exists: Bool[np.ndarray, "B K"],
    num_tokens: Int64[np.ndarray, "B"],
) -> Int64[np.ndarray, "B M 2"]:
    """Merges of the pairs of neighbours that exist, one after another, and of the pairs.

    ``slots`` are in generator order, so that pair ``k`` is ``2 k`` and ``2 k + 1``; the pairs are
    joined in a balanced way.
    """
    merges, pair = empty_merges(*slots.shape), np.arange(exists.shape[1])
    firsts, seconds = slots[:, 0 : 2 * len(pair) : 2], slots[:, 1 : 2 * len(pair) : 2]
    write_merges(merges, exists, np.broadcast_to(pair, exists.shape), firsts, seconds)
    num_pairs = exists.sum(axis=1)
    write_balanced_joins(merges, num_tokens[:, None] + pair, num_pairs, num_tokens, num_pairs)
    return merges


def write_balanced_joins(
    merges: Int64[np.ndarray, "B M 2"],
    parts: Int64[np.ndarray, "B K"],
    num_parts: Int64[np.ndarray, "B"],
    num_tokens: Int64[np.ndarray, "B"],
    made: Int64[np.ndarray, "B"],
) -> None:
    """Joins the first ``num_parts`` nodes of each row, neighbour to neighbour, level by level.

    Args:
        merges: written in place, from merge ``made`` on.
        parts: the node ids to join, in generator order.
        num_parts: how many of them a row has, one at least.
        num_tokens: the tokens of each row, so that merge ``t`` makes node ``num_tokens + t``.
        made: the merges that each row already has.
    """
    while parts.shape[1] > 1:
        pairs = parts.shape[1] // 2
        left, right, odd = parts[:, : 2 * pairs : 2], parts[:, 1::2], parts[:, 2 * pairs :]
        pair = np.arange(pairs)
        exists = 2 * pair + 1 < num_parts[:, None]  # (B, pairs)
        index = made[:, None] + pair
        write_merges(merges, exists, index, left, right)
        joined = np.where(exists, num_tokens[:, None] + index, left)
        parts = np.concatenate([joined, odd], axis=1)
        made = made + exists.sum(axis=1)
        num_parts = (num_parts + 1) // 2
