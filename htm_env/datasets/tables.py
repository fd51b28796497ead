"""Tables in long form, a token a line: ``.csv`` and ``.parquet``, read by pandas."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from htm_env.datasets.files import (
    COPIES,
    OF_ROW,
    OF_TEXT,
    Arrays,
    Memory,
    check_file,
    parsing,
)

TABLES = (".csv", ".csv.gz", ".parquet")
"""Endings of the names of tables."""
_CELLS, _LINE = 2**18, 2**20
"""Cells of a table that are read at a time, and bytes of a line, at most."""
OF_LETTER = 4
"""Bytes of memory that a letter of a text takes while it is cut into fields."""
_UNNAMED = re.compile(r"Unnamed: \d+(_level_\d+)?|\s*")
"""What pandas calls a column without a heading."""


@dataclass(frozen=True)
class TableColumns:
    """Names of the columns; those that are None are taken where the table has one of that name."""

    set_column: str = "set"
    """The set that a token is in; sets come in the order in which they first appear."""
    coordinates: Sequence[str] | None = None
    """The numbers of a token; None: all columns that are nothing else, in their order."""
    label_column: str | None = None
    """Label of the set; the column ``label``."""
    name_column: str | None = None
    """Name of the set; the column ``name``, else the set column."""
    split_column: str | None = None
    """Split of the set; the column ``split``."""
    token_name_column: str | None = None
    """Name of the token; the column ``token_name``."""

    @property
    def optional(self) -> dict[str, str | None]:
        """The columns that a table may lack, by their usual names."""
        return {
            "label": self.label_column,
            "name": self.name_column,
            "split": self.split_column,
            "token_name": self.token_name_column,
        }

    def __post_init__(self) -> None:
        if isinstance(self.coordinates, str):
            raise ValueError(f"coordinates is {self.coordinates!r}: expected a list of columns")


def read_table(path: Path, columns: TableColumns, memory: Memory) -> Arrays:
    """The sets of a table, their tokens in the order of its lines.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or pandas (for ``.parquet`` also pyarrow) is not
            installed; a column is missing or has no numbers; a value is missing (the message names
            line and column, lines counted from 0 below the heading); or a label, a name or a split
            is not the same in a whole set.
    """
    check_file(path)
    return _arrays(path, _read(path, columns, memory), columns, memory)


def table_parts(path: Path, columns: TableColumns, memory_limit: int) -> Iterator[Arrays]:
    """The sets of a ``.parquet``, one row group after another, so that no more than one of them
    and one set are in memory.

    The lines of a set follow each other. Raises what :func:`read_table` raises, and ``ValueError``
    for a set that goes on in another row group after other sets.
    """
    check_file(path)
    pandas, parquet = _libraries(path, "pandas", "pyarrow.parquet")
    sets, begun, first = columns.set_column, None, 0
    ended: set[Any] = set()
    with parsing(path, "table"):
        file = parquet.ParquetFile(path)
    with file:
        for group in range(file.num_row_groups):
            memory = Memory(str(path), memory_limit)
            about = file.metadata.row_group(group)
            memory.take(COPIES * about.total_byte_size)
            memory.take(OF_TEXT * about.num_rows * about.num_columns)
            with parsing(path, "table"):
                frame = _plain(file.read_row_group(group).to_pandas())
            if begun is not None:
                frame = pandas.concat([begun, frame], ignore_index=True)
            if sets in frame.columns and len(frame) and group < file.num_row_groups - 1:
                last = frame[sets] == frame[sets].iloc[-1]
                begun, frame = frame[last], frame[~last]
            else:
                begun = None
            if len(frame) or group == file.num_row_groups - 1:
                arrays = _arrays(path, frame.reset_index(drop=True), columns, memory, first)
                own = set(frame[sets].tolist())
                for again in own & ended:
                    raise ValueError(
                        f"{path}: the set {again!r} goes on in row group {group} after other sets: "
                        "expected the lines of a set one after another"
                    )
                ended |= own
                yield arrays
                first += len(frame)


def _libraries(path: Path, *names: str) -> list[Any]:
    """These modules of the extra ``[tables]``; ``ValueError`` where one is not installed."""
    try:
        return [import_module(name) for name in names]
    except ImportError as error:
        raise ValueError(
            f"{path} is a table, which needs more packages: pip install 'htm-rl[tables]' ({error})"
        ) from error


def _arrays(
    path: Path, frame: Any, columns: TableColumns, memory: Memory, first: int = 0
) -> Arrays:
    """The sets of a table, or of a part of it from line ``first`` on."""
    known = [str(column) for column in frame.columns]
    wanted: list[str | None] = [columns.set_column, *(columns.coordinates or ())]
    for asked in wanted + list(columns.optional.values()):
        if asked is not None and asked not in known:
            raise ValueError(f"{path} has no column {asked!r}: expected one of {', '.join(known)}")
    sets = columns.set_column
    found = {
        usual: asked or (usual if usual in known else None)
        for usual, asked in columns.optional.items()
    }
    token_names = found["token_name"]
    of_sets = {"labels": found["label"], "names": found["name"] or sets, "split": found["split"]}
    taken: set[str | None] = {sets, *found.values()}
    coordinates = columns.coordinates or [name for name in known if name not in taken]
    for place, name in enumerate(known):
        if name in coordinates and columns.coordinates is None and _UNNAMED.fullmatch(name):
            raise ValueError(
                f"{path}: column {place} has no heading ({name!r}), as pandas writes its row "
                "numbers: expected the file without it (to_csv(..., index=False)), or coordinates= "
                "with the columns to take"
            )
    if not coordinates:
        raise ValueError(f"{path} has no columns of coordinates: expected at least one")
    for name in [*coordinates, *(name for name in known if name in taken)]:
        missing = frame[name].isna().to_numpy()
        if missing.any():
            line = first + int(missing.argmax())
            raise ValueError(f"{path}: line {line} has no value in column {name!r}")
    values = np.stack([_numbers(path, frame, name, first) for name in coordinates], axis=1)

    codes, _ = frame[sets].factorize()
    order = np.argsort(codes, kind="stable")
    lengths = np.bincount(codes)
    memory.take(OF_ROW * len(lengths))
    starts = np.cumsum(lengths) - lengths
    arrays: Arrays = {"values": values[order], "lengths": lengths}
    arrays["column_names"] = list(coordinates)
    for key, column in of_sets.items():
        if column is None:
            continue
        everything = frame[column].to_numpy()
        own = everything[order[starts]]
        other = everything != own[codes]
        if other.any():
            line = int(other.argmax())
            raise ValueError(
                f"{path}: column {column!r} of set {frame[sets].iloc[line]!r} has "
                f"{own[codes[line]]!r} and {everything[line]!r}: expected one value a set"
            )
        arrays[key] = own.astype(str) if key == "names" else own
    if token_names is not None:
        ordered = frame[token_names].to_numpy()[order].astype(str)
        arrays["token_names"] = [names.tolist() for names in np.split(ordered, starts[1:])]
    return arrays


def _read(path: Path, columns: TableColumns, memory: Memory) -> Any:
    """The table, part by part, so that no more is read than there may be memory for."""
    (pandas,) = _libraries(path, "pandas")
    if path.suffix == ".parquet":
        arrow, parquet = _libraries(path, "pyarrow", "pyarrow.parquet")
        with parsing(path, "table"):
            parts, schema = _batches(path, parquet, memory)
            return _plain(arrow.Table.from_batches(parts, schema=schema).to_pandas())
    text = _Text(path, memory)
    try:
        with parsing(path, "table"):
            return _plain(_csv(text, columns, pandas, memory))
    except ValueError:
        if text.problem is not None:
            raise text.problem from None
        raise


def _plain(frame: Any) -> Any:
    """The table with texts for headings; ``ValueError`` where these are not different, or where a
    value is neither a number nor a text, a date or the like."""
    frame.columns = [str(column) for column in frame.columns]
    for twice in frame.columns[frame.columns.duplicated()]:
        raise ValueError(f"it has two columns {twice!r}")
    for name in frame.columns:
        if frame[name].dtype.kind not in "biuf":
            for value in frame[name].to_numpy(dtype=object):  # texts are decoded by now
                if np.ndim(value) or not isinstance(value, Hashable):
                    raise ValueError(f"column {name!r} holds a {type(value).__name__}")
    return frame


def _batches(path: Path, parquet: Any, memory: Memory) -> tuple[list[Any], Any]:
    """The parts of a table that pyarrow reads, and their schema."""
    parts = []
    with parquet.ParquetFile(path) as file:
        rows = max(1, _CELLS // max(1, file.metadata.num_columns))
        for part in file.iter_batches(batch_size=min(rows, _CELLS // 16)):
            memory.take(COPIES * part.nbytes + OF_TEXT * part.num_rows * part.num_columns)
            parts.append(part)
        return parts, file.schema_arrow


def _csv(text: _Text, columns: TableColumns, pandas: Any, memory: Memory) -> Any:
    with text.stream() as stream:
        lines = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline=""))
        heading = next(lines, [])
        first = next((line for line in lines if line), heading)
    if text.problem is None and len(first) > len(heading):  # pandas would make an index of them
        raise ValueError(f"its first row has {len(first)} values under {len(heading)} headings")
    # Names keep their zeros (007), and only an empty field is a missing value.
    texts = {columns.set_column, "name", "split", "token_name", *columns.optional.values()}
    texts -= {"label", columns.label_column, None, *(columns.coordinates or ())}
    parts: list[Any] = []
    with (
        text.stream() as stream,
        pandas.read_csv(
            stream,
            dtype=dict.fromkeys(texts, str),
            keep_default_na=False,
            na_values=[""],
            low_memory=False,
            chunksize=max(1, _CELLS // max(1, len(heading))),
        ) as reader,
    ):
        for part in reader:
            strings = sum(kind.kind not in "biuf" for kind in part.dtypes)
            used = int(part.memory_usage(deep=True).sum())
            memory.take(COPIES * used + OF_TEXT * strings * len(part))
            parts.append(part)
    if text.problem is not None:
        raise text.problem
    return pandas.concat(parts)


class _Text:
    """The text of a table, perhaps packed by gzip, that ends where a line gets too long or where
    there is no memory for more."""

    def __init__(self, path: Path, memory: Memory) -> None:
        self.path, self.memory = path, memory
        self.problem: ValueError | None = None
        """Why it ended early; a parser would hide what is raised while it asks for more."""

    def stream(self) -> io.BufferedReader:
        """The bytes from the start on."""
        packed = self.path.suffix == ".gz"
        file = gzip.GzipFile(self.path) if packed else io.FileIO(self.path)
        return io.BufferedReader(_Counted(file, self))

    def count(self, size: int, line: int) -> bool:
        """True <--> ``size`` more bytes, the last ``line`` of them in one line, may be read."""
        try:
            self.memory.take(OF_LETTER * size)
            if line > _LINE:
                raise ValueError(f"{self.path} has a line of more than {_LINE:,} bytes")
        except ValueError as error:
            self.problem = error
        return self.problem is None


class _Counted(io.RawIOBase):
    """The stream of a :class:`_Text`."""

    def __init__(self, file: io.FileIO | gzip.GzipFile, text: _Text) -> None:
        super().__init__()
        self._file, self._text, self._line = file, text, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._file.read(len(buffer))
        end = part.rfind(b"\n") + 1
        self._line = len(part) - end + (0 if end else self._line)
        if not self._text.count(len(part), self._line):
            return 0
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()


def _numbers(path: Path, frame: Any, column: str, first: int) -> np.ndarray:
    given = frame[column]
    if given.dtype.kind in "biuf":
        numbers: np.ndarray = given.to_numpy(dtype=np.float64)
        return numbers
    for line, value in enumerate(given, first):
        try:
            float(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"{path}: line {line} has {value!r} in column {column!r}: expected numbers, or "
                "coordinates= without this column"
            ) from None
    raise ValueError(f"{path}: column {column!r} is of {given.dtype}: expected numbers")
