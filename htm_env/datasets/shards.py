"""``ShardedDataset``: rows in shards, more than memory holds.

The numbers stay in files that are mapped, a few at a time, and only the rows of an episode are
read. What lies in a file as it would in memory (``.npy``, ``.npz`` that is not packed) is mapped
there; anything else is unpacked once. A first pass checks all rows and takes the statistics; what
it finds is kept beside the data, under a name that changes with the files.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from htm_env import checks
from htm_env.datasets.base import SPLITS, ArraysDigest, Dataset, GivenDataset, check_split
from htm_env.datasets.coordinates import Coordinates, OfCoordinates
from htm_env.datasets.files import (
    COPIES,
    KNOWN_ARRAYS,
    MEMORY_LIMIT,
    ArrayPlace,
    Arrays,
    Memory,
    places_of_arrays,
    read_arrays,
    read_npy,
    read_npz,
)
from htm_env.datasets.kinds import own_kind
from htm_env.datasets.sets import (
    BesideRows,
    Moments,
    Spread,
    beside_rows,
    check_row,
    numbers,
    row_lengths,
    token_sets,
)
from htm_env.datasets.splits import rows_as_told, split_rows, split_shares
from htm_env.datasets.tables import TableColumns, table_parts
from htm_env.files import atomic_folder, cache_folder, check_writable, read_json, remove, write_json

ARRAYS, TABLE = (".npz", ".npy"), ".parquet"
"""Endings of files that may be shards."""
HELD = 8
"""Shards that are mapped at a time, where nothing else is said."""
FOLDER = ".htm-shards"
"""The folder beside the data in which the passes over it are kept."""
_FORMAT = 1
"""Number of the form of what is kept."""
_PART = 2**18
"""Tokens that a pass has in memory at a time, unless one row has more."""
_TOKENS = 2**20
"""Tokens of ``training_tokens``, about, at most."""
_UNUSED = ("spans", "span_counts", "token_names")
"""Arrays of an ``.npz`` that shards have no room for."""


def shard_paths(path: Path) -> list[Path] | None:
    """The shards of a folder or of a pattern, by name; None for a file.

    Raises:
        FileNotFoundError: no file is like the pattern.
        ValueError: there are no shards in the folder, or what is like the pattern is none, or there
            are arrays and tables.
    """
    if path.is_dir():
        found = [one for one in sorted(path.iterdir()) if one.suffix in (*ARRAYS, TABLE)]
        if not found:
            raise ValueError(
                f"{path} is a folder without shards: expected .npz or .npy files, or .parquet"
            )
        _check_one_kind(found)
        return found
    if path.exists() or not any(sign in str(path) for sign in "*?["):
        return None
    found = [Path(shard) for shard in sorted(glob(str(path), recursive=True))]
    if not found:
        raise FileNotFoundError(
            f"no file is like {str(path)!r}: expected .npz or .npy shards, or .parquet"
        )
    for shard in found:
        if shard.suffix not in (*ARRAYS, TABLE):
            raise ValueError(
                f"{shard} is no shard: expected .npz or .npy files, or .parquet, for {path}"
            )
    _check_one_kind(found)
    return found


def _check_one_kind(shards: Sequence[Path]) -> None:
    for shard in shards:
        if (shard.suffix == TABLE) != (shards[0].suffix == TABLE):
            kinds = "a table and an array" if shard.suffix == TABLE else "an array and a table"
            raise ValueError(f"{shard} and {shards[0]} are {kinds}: expected one kind")


def too_large(shards: Sequence[Path], memory_limit: int) -> bool:
    """True <--> reading all of these shards would take more memory than it may, or they are tables,
    which are not read as a whole."""
    sizes = sum(shard.stat().st_size for shard in shards)
    return shards[0].suffix == TABLE or COPIES * sizes > memory_limit


class ShardedDataset(OfCoordinates, GivenDataset):
    """Token sets in a folder or a pattern of shards, of which ``shards_held`` are mapped at a time.

    The same rows as one array are the same data: the same split of every row, the same episode
    under every key, the same fingerprint.
    """

    name = "HTM-v0"

    def __init__(
        self,
        dataset: str | os.PathLike[str],
        split: str = "train",
        *,
        shards_held: int = HELD,
        kind: str | None = None,
        categorical: Any = None,
        weights: Any = None,
        split_fractions: Sequence[float] = (0.8, 0.1, 0.1),
        memory_limit: int = MEMORY_LIMIT,
        **columns: Any,
    ) -> None:
        """Finds what an earlier pass over these files left behind, or makes one.

        Args:
            dataset: a folder, or a pattern such as ``"sets/*.npz"``.
            split: the split's name.
            shards_held: shards whose numbers are in memory at the same time, at most.
            kind: as in ``ArrayDataset``, and so are ``categorical``, ``weights`` and
                ``split_fractions``.
            memory_limit: bytes of memory that reading one shard that is packed, or one row group of
                a table, may take in the first pass.
            columns: of tables, the names of their columns (see :class:`TableColumns`).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a shard cannot be used (the message names file and row), shards differ in
                the numbers of a token or in what comes beside them, a file changed after the pass,
                a split would be empty, or an argument is out of range.
        """
        check_split(split)
        super().__init__(split)
        shares = split_shares(split_fractions)
        checks.whole_number("shards_held", shards_held, 1, 2**31)
        Memory("dataset", memory_limit)
        with checks.briefly():
            shards = shard_paths(Path(dataset))
            if shards is None:
                raise ValueError(f"{dataset} is a file: expected a folder or a pattern of shards")
            source = _Source.of(Path(dataset), shards)
            reading = _Reading(TableColumns(**columns), categorical, shares, memory_limit)
            self._index = index = source.index(reading)
        self.column_names = index.column_names
        self.coordinates = Coordinates.of(index.columns, categorical, weights)
        self.kind = own_kind(kind, index.columns)
        self.categories = self.coordinates.values
        self.max_tokens, self.token_dim = index.max_tokens, self.coordinates.token_dim
        self._held = shards_held
        self._maps = _Maps(index, shards_held)
        if index.label_values is not None:
            self.has_labels = True
            values = index.label_values
            self.label_values = np.array(values, dtype=np.str_ if _texts(values) else np.int64)
            self.label_names = [str(value) for value in values]
        self._take(index.rows_of(split))

    def _take(self, rows: Int64[np.ndarray, "_"]) -> None:
        self.rows, self.size = rows, len(rows)
        names = all(shard.names is not None for shard in self._index.shards)
        self.row_names = _RowNames(self._index, rows) if names else None

    def of_rank(self, rank: int, ranks: int) -> Dataset:
        """The rows of this split that are in every ``ranks``-th shard from number ``rank`` on.

        Raises ``ValueError`` where ``rank`` is not one of ``ranks``, and, for every ``rank``, where
        one of the ranks has no row of the split.
        """
        checks.whole_number("ranks", ranks, 1, 2**31)
        checks.whole_number("rank", rank, 0, ranks - 1)
        rank_of_row = self._index.shard_of(self.rows) % ranks
        without = np.setdiff1d(np.arange(ranks), rank_of_row)
        if len(without):
            raise ValueError(
                f"{self._index.source.data} has no row of the split {self.split!r} for process "
                f"{without[0]} of {ranks} in its {len(self._index.shards)} shards: expected a "
                "shard for each process at least"
            )
        part = copy.copy(self)
        part._maps = _Maps(self._index, self._held)
        part._take(self.rows[rank_of_row == rank])
        return part

    def lengths_of(self, rows: Int64[np.ndarray, "B"]) -> Int64[np.ndarray, "B"]:
        lengths: np.ndarray = self._index.lengths[self.rows[rows]]
        return lengths

    def ordered(
        self, rows: Int64[np.ndarray, "B"], order: Int64[np.ndarray, "B P"]
    ) -> Float32[np.ndarray, "B P T"]:
        given = self._given(self.rows[rows])
        tokens: np.ndarray = given[np.arange(len(rows))[:, None], order]
        return tokens

    def _given(self, rows: Int64[np.ndarray, "B"]) -> Float32[np.ndarray, "B P T"]:
        """The tokens of these rows of the whole data, zeros behind them."""
        tokens = self._maps.tokens(rows, self.max_tokens)
        return self.coordinates.expand("shards", tokens, self._index.lengths[rows])

    def places_of(
        self, rows: Int64[np.ndarray, "B"], order: Int64[np.ndarray, "B P"]
    ) -> Int64[np.ndarray, "B P"]:
        places = self._maps.places(self.rows[rows], self.max_tokens)
        found: np.ndarray = places[np.arange(len(rows))[:, None], order]
        return found

    def classes_of(self, rows: Int64[np.ndarray, "B"]) -> Int64[np.ndarray, "B"]:
        assert self._index.classes is not None
        classes: np.ndarray = self._index.classes[self.rows[rows]]
        return classes

    def fingerprint(self) -> dict[str, Any]:
        """As of the array. A file that was changed with its size and its time kept is not told from
        the one before."""
        return {
            "sha256": self._index.sha256,
            "rows": len(self._index.lengths),
            "tokens": self.max_tokens,
            "token_dim": self.token_dim,
            "name": self._index.source.data.name,
        }

    def training_sets(
        self, count: int
    ) -> tuple[Float32[np.ndarray, "N P T"], Bool[np.ndarray, "N P"]]:
        rows = self._index.rows_of("train")[:count]
        present = np.arange(self.max_tokens) < self._index.lengths[rows][:, None]
        return np.where(present[:, :, None], self._given(rows), np.float32(0)), present

    def training_tokens(self) -> Float32[np.ndarray, "tokens T"]:
        """Those of the first training rows, about a million; the statistics are over all."""
        tokens, present = self.training_sets(max(1, _TOKENS // self.max_tokens))
        found: np.ndarray = tokens[present]
        return found

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(values) for values in (self._index.mean, self._index.std))
        return mean, self.units(mean, std)


class _RowNames(Sequence[str]):
    """Names of the rows of a split, read when they are asked for."""

    def __init__(self, index: _Index, rows: Int64[np.ndarray, "_"]) -> None:
        self._index, self._rows = index, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        row = self._rows[place]
        number = int(self._index.shard_of(row))
        names = self._index.shards[number].names
        assert names is not None
        mapped = names.map(self._index.source, self._index.folder)
        return str(mapped[row - self._index.first[number]])


# ---------------------------------------------------------------- the files, and what is kept


class _Stored(NamedTuple):
    """An array of a shard: in the shard itself, or unpacked beside the data."""

    file: str
    in_place: bool
    place: ArrayPlace

    def check(self, source: _Source, folder: Path) -> None:
        """Raise ``OSError``, ``ValueError`` or ``KeyError`` where it is not in a file of the
        source, or not in the folder as a whole."""
        size = math.prod(self.place.shape) * np.dtype(self.place.dtype).itemsize
        if self.in_place:
            whole = self.place.offset + size <= source.files[self.file][0]
        else:
            whole = (folder / self.file).stat().st_size == size
        if not whole or min(self.place.shape, default=0) < 0 or self.place.offset < 0:
            raise ValueError(f"{self.file} is damaged: expected {size} bytes")

    def map(self, source: _Source, folder: Path) -> np.ndarray:
        if self.in_place:
            source.check(self.file)
        return self.place.map(os.path.join(source.base if self.in_place else folder, self.file))


class _Shard(NamedTuple):
    """Where the arrays of a shard are; None is what it does not have."""

    rows: int
    values: _Stored
    """(tokens, C) in the order of the rows, perhaps with padding between them."""
    places: _Stored | None
    """(tokens,), where values have no padding."""
    names: _Stored | None
    """(rows,)"""


class _Reading(NamedTuple):
    """How shards are read, which decides on what a pass over them finds."""

    columns: TableColumns
    categorical: Any
    split_fractions: tuple[float, ...]
    memory_limit: int


@dataclass(frozen=True)
class _Source:
    """The files of the data."""

    data: Path
    """Folder or pattern."""
    beside: Path
    """The folder, or the one that all that is like the pattern is below, as it was given."""
    base: Path
    """The same from the root on, so that a process may go to another folder."""
    files: dict[str, tuple[int, int]]
    """Size and time of change, in ns, of each file, by its path below ``base``; in order."""

    @classmethod
    def of(cls, data: Path, shards: Sequence[Path]) -> _Source:
        base = data
        while not base.is_dir() or any(sign in str(base) for sign in "*?["):
            base = base.parent
        files = {str(path.relative_to(base)): _state(path) for path in shards}
        return cls(data, base, base.absolute(), files)

    def check(self, file: str) -> None:
        """Raise ``ValueError`` where the file is not as it was."""
        if _state(os.path.join(self.base, file)) != self.files[file]:
            raise ValueError(
                f"{self.base / file} was changed after it was opened: expected shards that stay as "
                "they are while they are used"
            )

    def index(self, reading: _Reading) -> _Index:
        """What a pass over these files found: an earlier one, or one that is made now."""
        asked = [_FORMAT, str(self.data.relative_to(self.beside)), asdict(reading.columns)]
        asked += [Coordinates.of(2**31, reading.categorical).categorical, reading.split_fractions]
        own = _short(asked)
        name = f"{own}-{_short(self.files)}"
        elsewhere = cache_folder() / "shards" / _short(str(self.base.resolve()))
        for parent in (self.base / FOLDER, elsewhere):
            with suppress(OSError, ValueError, KeyError, TypeError):
                return _Index.read(self, parent / name)
        parent = self.base / FOLDER
        try:
            check_writable(parent)
        except OSError:
            parent = elsewhere
            check_writable(parent)
        with _alone(parent / f"{own}.lock"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                return _Index.read(self, parent / name)  # another process made it meanwhile
            with atomic_folder(parent / name) as folder:
                _Pass(self, reading, folder).run()
            for earlier in parent.glob(f"{own}-*"):
                if earlier.name != name:
                    remove(earlier)
            return _Index.read(self, parent / name)


def _state(path: str | Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def _short(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _texts(values: Sequence[Any]) -> bool:
    return isinstance(values[0], str)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process is in such a block with this file."""
    try:
        import fcntl
    except ImportError:  # another system: at worst the pass is made twice
        yield
        return
    with open(path, "ab") as file:
        with suppress(OSError):  # a file system without locks: the same
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class _Index:
    """What a pass over the shards found; its arrays are mapped, not read."""

    source: _Source
    folder: Path
    shards: list[_Shard]
    sha256: str
    columns: int
    """``C``"""
    max_tokens: int
    mean: list[float]
    std: list[float]
    label_values: list[Any] | None
    column_names: list[str] | None
    sizes: list[int]
    """Rows of each split."""
    first: Int64[np.ndarray, "shards"]
    """The row of the whole data that each shard begins with."""
    lengths: Int64[np.ndarray, "N"]
    starts: Int64[np.ndarray, "N"]
    """The token of its shard that each row begins with."""
    rows: Int64[np.ndarray, "N"]
    """The rows of the splits, one split after another."""
    classes: Int64[np.ndarray, "N"] | None

    @classmethod
    def read(cls, source: _Source, folder: Path) -> _Index:
        """Raises ``OSError``, ``ValueError``, ``KeyError`` or ``TypeError`` where it is not there
        or is damaged."""
        found = read_json(folder / "index.json")
        shards = [
            _Shard(rows, *map(_stored, (values, places, names)))  # type: ignore[arg-type]
            for rows, values, places, names in found.pop("shards")
        ]
        for shard in shards:
            for stored in shard[1:]:
                if stored is not None:
                    stored.check(source, folder)
        counts = np.array([shard.rows for shard in shards])
        number = int(counts.sum())

        def mapped(name: str) -> np.ndarray:
            return ArrayPlace(0, "<i8", (number,)).map(folder / name)

        return cls(
            source=source,
            folder=folder,
            shards=shards,
            first=np.cumsum(counts) - counts,
            lengths=mapped("lengths"),
            starts=mapped("starts"),
            rows=mapped("rows"),
            classes=None if found["label_values"] is None else mapped("classes"),
            **found,
        )

    def rows_of(self, split: str) -> Int64[np.ndarray, "_"]:
        place = SPLITS.index(split)
        return np.split(self.rows, np.cumsum(self.sizes[:2]))[place]

    def shard_of(self, rows: Any) -> Any:
        """The number of the shard that each row of the data is in."""
        return np.searchsorted(self.first, rows, side="right") - 1


def _stored(found: Any) -> _Stored | None:
    """What :class:`_Stored` was written as; ``ValueError`` for a file elsewhere, and for what is
    neither numbers nor texts."""
    if found is None:
        return None
    file, in_place, (offset, dtype, shape) = found
    if (not in_place and Path(file).name != file) or np.dtype(dtype).kind not in "biufU":
        raise ValueError(f"{file} of {dtype} is no array of a shard")
    return _Stored(file, in_place, ArrayPlace(offset, dtype, tuple(shape)))


class _Maps:
    """The shards that are mapped: those that were used last, ``held`` at most."""

    def __init__(self, index: _Index, held: int) -> None:
        self._index, self._held = index, held
        self._open: OrderedDict[int, tuple[np.ndarray, np.ndarray | None]] = OrderedDict()

    def _shard(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Values and places of a shard."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if len(self._open) >= self._held:
            self._open.popitem(last=False)
        shard, index = self._index.shards[number], self._index
        values = shard.values.map(index.source, index.folder)
        places = None if shard.places is None else shard.places.map(index.source, index.folder)
        self._open[number] = values, places
        return self._open[number]

    def _by_shard(
        self, rows: Int64[np.ndarray, "B"], width: int
    ) -> Iterator[tuple[np.ndarray, int, Int64[np.ndarray, "b {width}"]]]:
        """For each shard of these rows: which rows, its number, and the tokens from the first of
        each row on, whether they belong to it or not."""
        shard = self._index.shard_of(rows)
        for number in np.unique(shard).tolist():
            here = np.flatnonzero(shard == number)
            last = self._index.shards[number].values.place.shape[0] - 1
            starts = self._index.starts[rows[here]]
            yield here, number, np.minimum(starts[:, None] + np.arange(width), last)

    def tokens(self, rows: Int64[np.ndarray, "B"], width: int) -> Float32[np.ndarray, "B P C"]:
        tokens = np.empty((len(rows), width, self._index.columns), dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # padding may hold anything
            for here, number, at in self._by_shard(rows, width):
                tokens[here] = numbers("shards", self._shard(number)[0][at])
        return tokens

    def places(self, rows: Int64[np.ndarray, "B"], width: int) -> Int64[np.ndarray, "B P"]:
        found = np.tile(np.arange(width), (len(rows), 1))
        for here, number, at in self._by_shard(rows, width):
            places = self._shard(number)[1]
            if places is not None:
                found[here] = places[at]
        return found


# ---------------------------------------------------------------- the pass over the data


class _Pass:
    """One reading of all shards, from the first to the last: packed ones are unpacked, then all
    rows are checked, hashed and counted."""

    def __init__(self, source: _Source, reading: _Reading, folder: Path) -> None:
        self.source, self.reading, self.folder = source, reading, folder
        self.spread = Spread()
        self.shards: list[_Shard] = []
        self.lengths: list[Int64[np.ndarray, "_"]] = []
        self.starts: list[Int64[np.ndarray, "_"]] = []
        self.beside: list[BesideRows] = []
        self.column_names: list[str] | None = None

    @property
    def name(self) -> str:
        return str(self.source.data)

    def run(self) -> None:
        """Write what :meth:`_Index.read` reads."""
        for file in self.source.files:
            path = self.source.base / file
            found = None if path.suffix == TABLE else self._in_place(file, path)
            shard = self._unpacked(file, path) if found is None else found
            self._check_alike(path, shard)
            self.shards.append(shard)
        lengths = np.concatenate(self.lengths)
        splits = self._joined("split")
        if splits is None:
            parts = split_rows(len(lengths), self.reading.split_fractions, self.name)
        else:
            parts = rows_as_told(self.name, splits)
        training = np.zeros(len(lengths), dtype=bool)
        training[parts[0]] = True
        arrays = {"lengths": lengths} | ({} if splits is None else {"split": splits})
        sha256, moments = self._numbers(arrays, training)
        self.spread.check(self.name)
        std = moments.std.astype(np.float32)
        if not std.any():
            raise ValueError(
                f"{self.name} has one and the same token in all of its training rows: expected "
                "tokens that differ"
            )
        std[std == 0] = 1.0
        labels, label_values = self._joined("labels"), None
        if labels is not None:
            values, classes = np.unique(labels, return_inverse=True)
            label_values = values.tolist()
            self._write("classes", classes.astype("<i8"))
        self._write("rows", np.concatenate(parts).astype("<i8"))
        self._write("lengths", lengths.astype("<i8"))
        self._write("starts", np.concatenate(self.starts).astype("<i8"))
        for file in self.source.files:
            self.source.check(file)
        about: Mapping[str, Any] = {
            "shards": self.shards,
            "sha256": sha256,
            "columns": self.shards[0].values.place.shape[1],
            "max_tokens": int(lengths.max()),
            "mean": moments.mean.astype(np.float32).tolist(),
            "std": std.tolist(),
            "label_values": label_values,
            "column_names": self.column_names,
            "sizes": [len(rows) for rows in parts],
        }
        write_json(self.folder / "index.json", about)

    def _write(self, name: str, array: np.ndarray) -> _Stored:
        array.tofile(self.folder / name)
        return _Stored(name, False, ArrayPlace(0, array.dtype.str, array.shape))

    def _joined(self, key: str) -> np.ndarray | None:
        found = [getattr(beside, key) for beside in self.beside]
        return None if found[0] is None else np.concatenate(found)

    def _check_alike(self, path: Path, shard: _Shard) -> None:
        """Raise ``ValueError`` where the last shard is not like the first."""
        if not self.shards:
            return
        here, there = (each.values.place.shape[1] for each in (shard, self.shards[0]))
        first = self.source.base / next(iter(self.source.files))
        if here != there:
            raise ValueError(
                f"{path} has tokens of {here} numbers: expected {there}, as in {first}"
            )
        for key, own, others in zip(
            BesideRows._fields, self.beside[-1], self.beside[0], strict=True
        ):
            if (own is None) != (others is None):
                raise ValueError(
                    f"{path if own is None else first} has no {key!r}, but "
                    f"{first if own is None else path} has"
                )
        own, others = self.beside[-1].labels, self.beside[0].labels
        if own is not None and others is not None and _kind(own) != _kind(others):
            raise ValueError(
                f"the labels of {path} and of {first} are strings and numbers: expected one of them"
            )

    # ------------------------------------------------------------ a shard

    def _in_place(self, file: str, path: Path) -> _Shard | None:
        """A shard whose tokens lie in its file as they would in memory; None for any other."""
        found = places_of_arrays(path, KNOWN_ARRAYS)
        self._refuse(path, found)
        key = "values" if "values" in found else "tokens"
        place = found.get(key)
        usual = "present" not in found and not {"values", "tokens"} <= found.keys()
        if place is None or not usual or np.dtype(place.dtype).kind not in "biuf":
            return None
        if len(place.shape) != (2 if key == "values" else 3) or min(place.shape) < 1:
            return None  # reading it says what is wrong
        memory = Memory(str(path), self.reading.memory_limit)
        given = {} if path.suffix == ".npy" else read_arrays(path, KNOWN_ARRAYS, memory, (key,))
        if key == "values":
            if "lengths" not in given:
                return None
            lengths = row_lengths(str(path), given["lengths"])
            starts = np.cumsum(lengths) - lengths
            if int(lengths.sum()) != place.shape[0]:
                return None
        else:
            rows, slots = place.shape[:2]
            lengths = row_lengths(str(path), given.get("lengths", np.full(rows, slots)))
            starts = np.arange(rows) * slots
            if len(lengths) != rows or (lengths > slots).any():
                return None
        if (lengths < 2).any():
            return None
        beside = beside_rows(str(path), given, len(lengths))
        self._keep(lengths, starts, beside)
        flat = place._replace(shape=(int(np.prod(place.shape[:-1])), place.shape[-1]))
        return _Shard(len(lengths), _Stored(file, True, flat), None, self._names(beside.names))

    def _refuse(self, path: Path, given: Mapping[str, Any]) -> None:
        for key in _UNUSED:
            if key in given:
                raise ValueError(
                    f"{path} has {key!r}, which shards that are read part by part have no room "
                    "for: expected it without, or all shards within memory_limit= and no "
                    "shards_held="
                )

    def _keep(
        self, lengths: Int64[np.ndarray, "_"], starts: Int64[np.ndarray, "_"], beside: BesideRows
    ) -> None:
        self.lengths.append(lengths)
        self.starts.append(starts)
        self.beside.append(beside._replace(names=None if beside.names is None else []))

    def _names(self, names: Sequence[str] | None) -> _Stored | None:
        if names is None:
            return None
        return self._write(f"{len(self.shards):06d}.names", np.array(names, dtype=np.str_))

    def _unpacked(self, file: str, path: Path) -> _Shard:
        """A shard whose tokens are written beside the data, as numbers of 32 bits."""
        number = f"{len(self.shards):06d}"
        lengths: list[Int64[np.ndarray, "_"]] = []
        beside: list[BesideRows] = []
        columns, moved = 0, False
        with (
            open(self.folder / f"{number}.values", "wb") as values,
            open(self.folder / f"{number}.places", "wb") as places,
        ):
            for part in self._parts(path):
                self._refuse(path, part)
                sets = token_sets(str(path), part)
                if self.column_names not in (None, sets.column_names):
                    raise ValueError(
                        f"{path} has the columns {sets.column_names}: expected "
                        f"{self.column_names}, as in the shards before it"
                    )
                self.column_names = sets.column_names
                columns, moved = sets.rows[0].shape[1], moved or sets.places is not None
                own = sets.places or [np.arange(len(row)) for row in sets.rows]
                self._append(values, places, sets.rows, own)
                lengths.append(sets.lengths)
                beside.append(BesideRows(sets.labels, sets.names, sets.split))
        if not lengths:
            raise ValueError(f"{path} is empty: expected at least one row of tokens")
        joined = BesideRows(*map(_concatenated, zip(*beside, strict=True)))
        every = np.concatenate(lengths)
        self._keep(every, np.cumsum(every) - every, joined)
        count = int(every.sum())
        stored = [
            _Stored(f"{number}.{what}", False, ArrayPlace(0, dtype, shape))
            for what, dtype, shape in (
                ("values", "<f4", (count, columns)),
                ("places", "<i8", (count,)),
            )
        ]
        if not moved:
            (self.folder / f"{number}.places").unlink()
        names = self._names(joined.names)
        return _Shard(len(every), stored[0], stored[1] if moved else None, names)

    def _parts(self, path: Path) -> Iterator[Arrays]:
        if path.suffix == TABLE:
            yield from table_parts(path, self.reading.columns, self.reading.memory_limit)
            return
        memory = Memory(str(path), self.reading.memory_limit)
        yield read_npz(path, memory) if path.suffix == ".npz" else read_npy(path, memory)

    def _append(
        self, values: BinaryIO, places: BinaryIO, rows: Sequence[np.ndarray], own: Sequence[Any]
    ) -> None:
        tokens = np.concatenate(rows)
        if tokens.dtype != np.float32:
            self.spread.add(tokens)
        values.write(np.ascontiguousarray(tokens, dtype="<f4").data)
        places.write(np.concatenate(own).astype("<i8").data)

    # ------------------------------------------------------------ all numbers

    def _numbers(
        self, arrays: dict[str, np.ndarray], training: Bool[np.ndarray, "N"]
    ) -> tuple[str, Moments]:
        """The hash of the data, as of the array, and the moments of the training tokens."""
        digest, moments, total = ArraysDigest(), Moments(), int(arrays["lengths"].sum())
        for name in ("lengths", "places", "split"):
            if name in arrays:
                digest.begin(name, arrays[name].dtype, arrays[name].shape)
                digest.part(arrays[name])
            elif name == "places" and any(shard.places is not None for shard in self.shards):
                digest.begin(name, np.dtype(np.int64), (total,))
                for places in self._places():
                    digest.part(places)
        coordinates = Coordinates.of(self.shards[0].values.place.shape[1], self.reading.categorical)
        digest.begin("values", np.dtype(np.float32), (total, coordinates.token_dim))
        first, files = 0, list(self.source.files)
        for number, shard in enumerate(self.shards):
            path = self.source.base / files[number]
            for start, end, tokens in self._tokens(number):
                lengths = self.lengths[number][start:end]
                self._check(path, start, lengths, tokens)
                if shard.values.in_place and tokens.dtype != np.float32:
                    self.spread.add(tokens)
                name = f"{path} from row {start} on"
                small = tokens.astype(np.float32)
                every = np.array([len(small)])
                values = coordinates.expand(name, small[None], every)[0]
                digest.part(values)
                own = np.repeat(training[first + start : first + end], lengths)
                moments.add(values[own])
            first += shard.rows
        return digest.hexdigest(), moments

    def _check(
        self, path: Path, start: int, lengths: Int64[np.ndarray, "_"], tokens: np.ndarray
    ) -> None:
        try:
            check_row(str(path), tokens)
        except ValueError:
            for row, own in enumerate(np.split(tokens, np.cumsum(lengths)[:-1]), start):
                check_row(f"{path}: row {row}", own)
            raise

    def _tokens(self, number: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Parts of a shard: their first row, the one behind the last, and their tokens."""
        shard, lengths = self.shards[number], self.lengths[number]
        mapped = shard.values.map(self.source, self.folder)
        ends = np.cumsum(lengths)
        start = 0
        while start < len(lengths):
            before = int(ends[start - 1]) if start else 0
            end = max(start + 1, int(np.searchsorted(ends, before + _PART, side="right")))
            own, starts = lengths[start:end], self.starts[number][start:end]
            within = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
            yield start, end, numbers(self.name, mapped[np.repeat(starts, own) + within])
            start = end

    def _places(self) -> Iterator[Int64[np.ndarray, "_"]]:
        for shard, lengths in zip(self.shards, self.lengths, strict=True):
            if shard.places is None:
                yield np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            else:
                yield shard.places.map(self.source, self.folder)


def _kind(labels: np.ndarray) -> bool:
    """True <--> texts."""
    return labels.dtype.kind == "U"


def _concatenated(values: Sequence[Any]) -> Any:
    """Arrays, lists or Nones of the parts of a shard as one."""
    if values[0] is None:
        return None
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values)
    return [item for value in values for item in value]
