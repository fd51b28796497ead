"""``ArrayDataset``: the user's own sets of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from htm_env import checks
from htm_env.datasets.base import Dataset, FiniteDataset, check_split
from htm_env.datasets.coordinates import Coordinates, OfCoordinates
from htm_env.datasets.files import MEMORY_LIMIT, Arrays, Memory, read_idx, read_npy, read_npz
from htm_env.datasets.kinds import own_kind
from htm_env.datasets.sets import TokenSets, joined, token_sets
from htm_env.datasets.shards import HELD, ShardedDataset, shard_paths, too_large
from htm_env.datasets.spans import SpanHierarchy, checked_levels
from htm_env.datasets.splits import rows_as_told, split_rows
from htm_env.datasets.tables import TABLES, TableColumns, read_table

BESIDE_ROWS = ("lengths", "present", "labels", "names", "split_of", "token_names", "spans")
"""Keywords of what comes beside an array or a list; a file holds it itself."""


OF_SHARDS = "shards_held"
"""The keyword that goes with a folder or a pattern of shards only."""


class ArrayDataset(OfCoordinates, FiniteDataset):
    """Token sets from an array, a ragged list or a file; a hierarchy where spans come with them."""

    name = "HTM-v0"

    @classmethod
    def keywords(cls) -> tuple[str, ...]:
        own = ("dataset", "split_fractions", "threshold", "memory_limit", OF_SHARDS)
        coordinates = ("kind", "categorical", "weights")
        return (*own, *BESIDE_ROWS, *coordinates, *TableColumns.__dataclass_fields__)

    @classmethod
    def make(cls, split: str, **keywords: Any) -> Dataset:
        """The split; a :class:`ShardedDataset` of shards that are more than ``memory_limit`` bytes
        hold, of tables in shards, and where ``shards_held`` is given."""
        if "dataset" not in keywords:
            raise ValueError("HTM-v0 has no data: expected dataset= an array, a list or a path")
        data, held = keywords["dataset"], keywords.pop(OF_SHARDS, None)
        shards = shard_paths(Path(data)) if isinstance(data, str | PathLike) else None
        if shards is not None:
            limit = keywords.get("memory_limit", MEMORY_LIMIT)
            Memory("dataset", limit)
            if held is not None or too_large(shards, limit):
                beside = {key: keywords.pop(key, None) for key in BESIDE_ROWS}
                _refuse_beside(Path(data), beside)
                keywords.pop("threshold", None)
                keywords[OF_SHARDS] = HELD if held is None else held
                return ShardedDataset(split=split, **keywords)
        elif held is not None:
            if isinstance(data, str | PathLike) and not Path(data).exists():
                raise FileNotFoundError(f"no folder {str(data)!r}: expected one with shards")
            raise ValueError(
                "shards_held= goes with shards: expected dataset= a folder or a pattern of them"
            )
        return cls(split=split, **keywords)

    def __init__(
        self,
        dataset: Any,
        split: str = "train",
        *,
        lengths: Any = None,
        present: Any = None,
        labels: Any = None,
        names: Any = None,
        split_of: Any = None,
        token_names: Any = None,
        spans: Any = None,
        kind: str | None = None,
        categorical: Any = None,
        weights: Any = None,
        split_fractions: Sequence[float] = (0.8, 0.1, 0.1),
        threshold: int = 130,
        memory_limit: int = MEMORY_LIMIT,
        **columns: Any,
    ) -> None:
        """Reads, checks and splits the data.

        Spans give the data a hierarchy: every span is a clade, and the merges join the things of
        each span neighbour to neighbour, level by level (see :class:`SpanHierarchy`).

        Args:
            dataset: an array (N, P, T), of which every token is present unless ``lengths`` or
                ``present`` say otherwise; an array (sum n_i, T) with ``lengths``; a list of arrays
                (n_i, T); or the path of a file or of a folder (or pattern, as in ``"sets/*.npz"``)
                of ``.npz`` and ``.npy`` shards, whose rows follow each other in the order of their
                names (:class:`ShardedDataset` does not read them as a whole). An ``.npz`` has
                ``tokens`` (N, P, T), perhaps with ``lengths`` or ``present``, or ``values``
                (sum n_i, T) and ``lengths``; it may also have
                ``labels``, ``names``, ``split``, ``token_names``, and ``spans`` (all spans, 2) with
                ``span_counts`` (N, levels), those of row 0, level by level, then those of row 1. An
                ``.npy`` has the tokens alone. A ``.csv`` or ``.parquet`` has a token in each line.
                Anything else is an IDX file of images, gzipped or not.
            split: the split's name.
            lengths: whole numbers (N,): only the first tokens of each row are there.
            present: (N, P), True <--> the token is there. Where it is not, nothing is read.
            labels: (N,) classes, whole numbers or strings, numbered in sorted order.
            names: (N,) of the rows.
            split_of: (N,), each ``"train"``, ``"validation"`` or ``"test"``: takes the place of
                ``split_fractions``.
            token_names: (P,) of the places of every row, or (N, P).
            spans: what is known of the structure of data that is no file: of each row its levels,
                of each level its half-open spans ``(start, end)``, in order. Those of the first
                level are over the tokens of the row that are there, in the order in which they are
                given, those of every other one over the spans of the level before it. What is in no
                span is joined last.
            kind: drawing style of the tokens: ``"points"`` (of the plane or of space),
                ``"segments"``, ``"strokes"`` (T/2 points each), ``"patches"`` (x, y and the
                intensities of a square) or ``"vectors"``. None: points where T is 2, else vectors.
            categorical: the columns of a token that are categories, each with its number of values
                ``K``: whole numbers ``0 .. K - 1`` in the data (see :class:`Coordinates`).
            weights: one number above 0 for each column: how much it counts in loss and error. They
                are divided by their mean.
            split_fractions: shares of the training, validation and test rows. The rows are put in
                an order that depends on their number alone, then cut.
            threshold: of IDX files, the grey value, 0 to 255, above which a pixel becomes a token
                ``(x, y)``, its column and row.
            memory_limit: bytes of memory that reading files may take; a file that needs more is
                refused before it is read.
            columns: of tables, the names of their columns (see :class:`TableColumns`).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file or an array cannot be used (the message names the file or the row),
                a file needs more memory than it may, numbers are too near to each other for 32
                bits, all tokens are the same,
                a span is empty, out of range, unordered or overlaps another (the message names the
                row, the level and the span), a row has fewer than two tokens, a split would be
                empty, or an argument is out of range.
        """
        check_split(split)
        checks.whole_number("threshold", threshold, 0, 255)
        Memory("dataset", memory_limit)
        checks.keywords("HTM-v0", tuple(columns), tuple(TableColumns.__dataclass_fields__))
        beside = dict(
            zip(
                BESIDE_ROWS,
                (lengths, present, labels, names, split_of, token_names, spans),
                strict=True,
            )
        )
        sets = read_sets(dataset, beside, threshold, TableColumns(**columns), memory_limit)
        sets.check_spread()
        values, own_lengths = sets.padded(), sets.lengths
        self.kind = own_kind(kind, values.shape[2])
        self.coordinates = Coordinates.of(values.shape[2], categorical, weights)
        values = self.coordinates.expand(sets.name, values, own_lengths)
        self.categories = self.coordinates.values
        hierarchy = _hierarchy(sets.name, own_lengths, sets.spans, values.shape[1])
        if sets.split is None:
            rows_of_splits = split_rows(len(values), split_fractions, sets.name)
        else:
            rows_of_splits = rows_as_told(sets.name, sets.split)
        facts = sets.facts(
            Path(dataset).name if isinstance(dataset, str | PathLike) else "array",
            {} if hierarchy is None else hierarchy._asdict(),
        )
        super().__init__(split, values, own_lengths, rows_of_splits, facts)
        tokens = self.training_tokens()
        if (tokens == tokens[0]).all():
            raise ValueError(
                f"{sets.name} has one and the same token in all of its training rows: expected "
                "tokens that differ"
            )
        self.column_names = sets.column_names
        self.has_hierarchy = hierarchy is not None
        self._hierarchy = None if hierarchy is None else hierarchy.rows(self.rows)

    def hierarchy(
        self, rows: Int64[np.ndarray, "B"], order: Int64[np.ndarray, "B P"]
    ) -> tuple[Bool[np.ndarray, "B C P"], Int64[np.ndarray, "B M 2"]]:
        if self._hierarchy is None:
            return super().hierarchy(rows, order)
        return self._hierarchy.rows(rows).shuffled(order, self._lengths[rows])


def read_sets(
    dataset: Any,
    beside: Mapping[str, Any],
    threshold: int = 130,
    columns: TableColumns | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> TokenSets:
    """The checked token sets of any supported source; arguments and errors are as in
    :class:`ArrayDataset`, with ``beside`` the values of ``BESIDE_ROWS`` by name."""
    with checks.briefly():  # messages quote what a file holds
        if isinstance(dataset, str | PathLike):
            columns = TableColumns() if columns is None else columns
            return _read_files(Path(dataset), beside, threshold, columns, memory_limit)
        given = {"split" if key == "split_of" else key: value for key, value in beside.items()}
        flat = given.get("lengths") is not None and getattr(dataset, "ndim", None) == 2
        return token_sets("dataset", {"values" if flat else "tokens": dataset, **given})


def _read_files(
    path: Path,
    beside: Mapping[str, Any],
    threshold: int,
    columns: TableColumns,
    memory_limit: int,
) -> TokenSets:
    _refuse_beside(path, beside)
    shards = shard_paths(path)
    further = None if shards is None else "or shards_held= reads shards as they are needed"
    memory = Memory(str(path), memory_limit, further)

    def read(file: Path) -> TokenSets:
        return token_sets(str(file), _read(file, threshold, columns, memory))

    sets = read(path) if shards is None else joined(str(path), [read(shard) for shard in shards])
    most = int(sets.lengths.max())
    memory.take_array((len(sets.rows), most, sets.rows[0].shape[1]))  # with padding
    if sets.spans is not None:
        memory.take_array((len(sets.rows), most, max(map(len, sets.spans))))
    return sets


def _refuse_beside(path: Path, beside: Mapping[str, Any]) -> None:
    for key, value in beside.items():
        if value is not None:
            inside = "'split'" if key == "split_of" else f"{key!r}"
            inside += " and 'span_counts'" if key == "spans" else ""
            raise ValueError(
                f"{key}= goes with an array or a list, not with the file {path}: expected it "
                f"inside an .npz, as {inside}"
            )


def _read(path: Path, threshold: int, columns: TableColumns, memory: Memory) -> Arrays:
    if path.suffix == ".npz":
        return read_npz(path, memory)
    if path.suffix == ".npy":
        return read_npy(path, memory)
    if path.name.endswith(TABLES):
        return read_table(path, columns, memory)
    return read_idx(path, threshold, memory)


def _hierarchy(
    name: str, lengths: Int64[np.ndarray, "N"], spans: Any, max_tokens: int
) -> SpanHierarchy | None:
    """Spans of all rows; None where there is not a single span."""
    if spans is None:
        return None
    if not isinstance(spans, Sequence | np.ndarray) or isinstance(spans, str):
        raise ValueError(f"spans is {spans!r}: expected the levels of each row of {name}")
    if len(spans) != len(lengths):
        raise ValueError(
            f"{name} has spans of {len(spans)} rows: expected those of its {len(lengths)} rows"
        )
    levels = [
        checked_levels(f"{name}: row {row}", given, int(length))
        for row, (given, length) in enumerate(zip(spans, lengths, strict=True))
    ]
    if not any(len(level) for row in levels for level in row):
        return None
    return SpanHierarchy.build(lengths, levels, max_tokens)
