"""``ArrayDataset``: the user's own sets of tokens."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from htm_env import checks
from htm_env.datasets.base import SPLITS, FiniteDataset, RowFacts, check_split, uniforms
from htm_env.datasets.coordinates import Coordinates
from htm_env.datasets.spans import SpanHierarchy, checked_levels, cut_spans

_SPLIT_SEED = 0
IDX_IMAGES = b"\x00\x00\x08\x03"
"""Magic number of an IDX file of unsigned bytes in three dimensions (N, rows, columns)."""
_GZIP = b"\x1f\x8b"


class ArrayDataset(FiniteDataset):
    """Token sets from an array, a ragged list or a file; a hierarchy where spans come with them."""

    name = "HTM-v0"

    @classmethod
    def keywords(cls) -> tuple[str, ...]:
        return ("dataset", "split_fractions", "threshold", "spans", "categorical", "weights")

    @classmethod
    def make(cls, split: str, **keywords: Any) -> ArrayDataset:
        if "dataset" not in keywords:
            raise ValueError("HTM-v0 has no data: expected dataset= an array, a list or a path")
        return cls(split=split, **keywords)

    def __init__(
        self,
        dataset: Any,
        split: str = "train",
        *,
        spans: Any = None,
        categorical: Any = None,
        weights: Any = None,
        split_fractions: Sequence[float] = (0.8, 0.1, 0.1),
        threshold: int = 130,
    ) -> None:
        """Reads, checks and splits the data.

        Spans give the data a hierarchy: every span is a clade, and the merges join the things of
        each span neighbour to neighbour, level by level (see :class:`SpanHierarchy`).

        Args:
            dataset: an array (N, P, T), of which every token is present; a list of arrays
                (n_i, T); the path of an ``.npz`` with ``tokens`` (N, P, T), or with ``values``
                (sum n_i, T) and ``lengths`` (N,); or the path of an IDX file of images, gzipped or
                not. Beside these an ``.npz`` may hold ``spans`` (all spans, 2) and ``span_counts``
                (N, levels): those of row 0, level by level, then those of row 1, and so on.
            split: the split's name.
            spans: what is known of the structure of data that is no file: of each row its levels,
                of each level its half-open spans ``(start, end)``, in order. Those of the first
                level are over the row's tokens in the order in which they are given, those of every
                other one over the spans of the level before it. What is in no span is joined last.
            categorical: the columns of a token that are categories, each with its number of values
                ``K``: whole numbers ``0 .. K - 1`` in the data (see :class:`Coordinates`).
            weights: one number above 0 for each column: how much it counts in loss and error. They
                are divided by their mean.
            split_fractions: shares of the training, validation and test rows. The rows are put in
                an order that depends on their number alone, then cut.
            threshold: of IDX files, the grey value, 0 to 255, above which a pixel becomes a token
                ``(x, y)``, its column and row.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file or an array cannot be used (the message names the file or the row),
                a span is empty, out of range, unordered or overlaps another (the message names the
                row, the level and the span), a row has fewer than two tokens, a split would be
                empty, or an argument is out of range.
        """
        check_split(split)
        checks.whole_number("threshold", threshold, 0, 255)
        name, values, lengths, spans = _read(dataset, threshold, spans)
        self.coordinates = Coordinates.of(values.shape[2], categorical, weights)
        values = self.coordinates.expand(name, values, lengths)
        self.categories = self.coordinates.values
        hierarchy = _hierarchy(name, lengths, spans, values.shape[1])
        facts = RowFacts(
            name=Path(dataset).name if isinstance(dataset, str | PathLike) else "array",
            others={} if hierarchy is None else hierarchy._asdict(),
        )
        super().__init__(split, values, lengths, split_rows(len(values), split_fractions), facts)
        self.kind = "points" if self.token_dim == 2 else "vectors"
        self.has_hierarchy = hierarchy is not None
        self._hierarchy = None if hierarchy is None else hierarchy.rows(self.rows)

    def hierarchy(
        self, rows: Int64[np.ndarray, "B"], order: Int64[np.ndarray, "B P"]
    ) -> tuple[Bool[np.ndarray, "B C P"], Int64[np.ndarray, "B M 2"]]:
        if self._hierarchy is None:
            return super().hierarchy(rows, order)
        return self._hierarchy.rows(rows).shuffled(order, self._lengths[rows])

    def to_user(self, tokens: Float[Tensor, "*rows T"]) -> Float[Tensor, "*rows C"]:
        return self.coordinates.collapse(tokens)

    def from_user(self, tokens: Float32[np.ndarray, "B P C"]) -> Float32[np.ndarray, "B P T"]:
        return self.coordinates.expand("tokens", tokens, np.full(len(tokens), tokens.shape[1]))

    def units(self, mean: Float[Tensor, "T"], std: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
        return self.coordinates.units(mean, std)


def split_rows(
    count: int, fractions: Sequence[float] = (0.8, 0.1, 0.1)
) -> tuple[Int64[np.ndarray, "_"], ...]:
    """The rows of each split: a fixed permutation of ``count`` rows, cut by the fractions.

    Raises:
        ValueError: there are not three fractions above 0 with sum 1, or a split would be empty.
    """
    if not isinstance(fractions, Sequence) or isinstance(fractions, str) or len(fractions) != 3:
        raise ValueError(f"split_fractions is {fractions!r}: expected three numbers")
    shares = [checks.positive("split_fractions", fraction) for fraction in fractions]
    if not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise ValueError(f"split_fractions is {fractions!r}: expected the sum 1, not {sum(shares)}")
    validation, test = round(count * shares[1]), round(count * shares[2])
    sizes = (count - validation - test, validation, test)
    if min(sizes) < 1:
        found = ", ".join(f"{size} {name}" for size, name in zip(sizes, SPLITS, strict=True))
        raise ValueError(
            f"{count} rows with split_fractions {tuple(shares)} give {found}: "
            "expected at least one row in each"
        )
    order = np.argsort(uniforms(np.array([_SPLIT_SEED], dtype=np.uint64), count)[0], kind="stable")
    return tuple(np.split(order, np.cumsum(sizes[:2])))


def _read(
    dataset: Any, threshold: int, spans: Any
) -> tuple[str, Float32[np.ndarray, "N P T"], Int64[np.ndarray, "N"], Any]:
    """The rows of any supported source: its name in an error, padded values, lengths, and the
    levels of every row, unchecked (None where there are none)."""
    name = "dataset"
    if isinstance(dataset, str | PathLike):
        path = Path(dataset)
        if spans is not None:
            raise ValueError(
                f"spans= goes with an array or a list, not with the file {path}: expected them "
                "inside an .npz, as 'spans' and 'span_counts'"
            )
        name = str(path)
        if path.suffix == ".npz":
            dataset, spans = read_npz(path)
        else:
            dataset = _lit_pixels(path, read_idx(path), threshold)
    if not isinstance(dataset, list | tuple):
        dataset = _numbers(name, dataset)
        if dataset.ndim != 3 or dataset.shape[2] < 1:
            raise ValueError(f"{name} has shape {dataset.shape}: expected (N, P, T)")
    return name, *_pad(name, dataset), spans


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


def _pad(
    source: str, ragged: Sequence[Any] | Float32[np.ndarray, "N P T"]
) -> tuple[Float32[np.ndarray, "N P T"], Int64[np.ndarray, "N"]]:
    if len(ragged) == 0:
        raise ValueError(f"{source} is empty: expected at least one row of tokens")
    rows: list[Float32[np.ndarray, "_ T"]] = []
    for index, given in enumerate(ragged):
        name = f"{source}: row {index}"
        row = _numbers(name, given)
        if row.ndim != 2 or row.shape[1] < 1:
            # An empty list has shape (0,): say what is missing, not what shape it is.
            found = "no tokens" if row.size == 0 else f"shape {row.shape}"
            raise ValueError(f"{name} has {found}: expected (n, T) with at least two tokens")
        if rows and row.shape[1] != rows[0].shape[1]:
            raise ValueError(
                f"{name} has tokens of {row.shape[1]} numbers: expected {rows[0].shape[1]}, as in "
                "row 0"
            )
        _check_row(name, row)
        rows.append(row)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    values = np.zeros((len(rows), lengths.max(), rows[0].shape[1]), dtype=np.float32)
    for index, row in enumerate(rows):
        values[index, : len(row)] = row
    return values, lengths


def _numbers(name: str, given: Any) -> Float32[np.ndarray, "*shape"]:
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is not an array of numbers ({error})") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} has element type {array.dtype}: expected real numbers")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused
        return array.astype(np.float32)


def _check_row(name: str, tokens: Float32[np.ndarray, "n T"]) -> None:
    if len(tokens) < 2:
        count = "one token" if len(tokens) == 1 else "no tokens"
        raise ValueError(f"{name} has {count}: expected at least two")
    finite = np.isfinite(tokens)
    if not finite.all():
        token, coordinate = np.argwhere(~finite)[0]
        raise ValueError(
            f"{name}, token {token} has coordinate {tokens[token, coordinate]}: "
            "expected finite 32-bit numbers"
        )


def _lit_pixels(
    path: Path, images: UInt8[np.ndarray, "N rows columns"], threshold: int
) -> list[Float32[np.ndarray, "n 2"]]:
    sets = []
    for row, image in enumerate(images):
        y, x = np.nonzero(image > threshold)
        if len(x) < 2:
            raise ValueError(
                f"{path}: row {row} has {len(x)} pixels over {threshold}: expected at least two"
            )
        sets.append(np.stack([x, y], axis=1).astype(np.float32))
    return sets


# ---------------------------------------------------------------- files


def check_file(path: Path) -> None:
    """Raises ``FileNotFoundError`` or ``ValueError`` unless ``path`` is a file with content."""
    if not path.exists():
        raise FileNotFoundError(f"no file {str(path)!r}: expected an .npz or IDX file")
    if not path.is_file():
        raise ValueError(f"{path} is not a file: expected an .npz or IDX file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: expected an .npz or IDX file")


Spans = list[list[Int64[np.ndarray, "_ 2"]]]
"""The levels of every row."""


def read_npz(path: Path) -> tuple[np.ndarray | list[np.ndarray], Spans | None]:
    """The token sets of an archive, and their spans, if there are any.

    They are its array ``tokens`` (N, P, T), or its ``values`` cut up by its ``lengths``; and its
    ``spans`` cut up by its ``span_counts``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or no archive, holds pickled objects, lacks those arrays,
            or the lengths do not add up to the values, or the counts to the spans.
    """
    check_file(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is truncated or is not an .npz archive")
    try:
        # Never unpickle: object arrays raise ValueError here.
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is not a readable .npz archive of plain arrays ({error})"
        ) from error
    if "tokens" in arrays:
        return arrays["tokens"], _spans(path, arrays)
    if not {"values", "lengths"} <= arrays.keys():
        found = ", ".join(arrays) or "nothing"
        raise ValueError(f"{path} has {found}: expected 'tokens', or 'values' and 'lengths'")
    return _cut(path, arrays["values"], arrays["lengths"]), _spans(path, arrays)


def _spans(path: Path, arrays: dict[str, np.ndarray]) -> Spans | None:
    pair = ("spans", "span_counts")
    for name, other in (pair, pair[::-1]):
        if name in arrays and other not in arrays:
            raise ValueError(f"{path} has {name!r}, but no {other!r} beside it")
    return cut_spans(str(path), *(arrays[name] for name in pair)) if pair[0] in arrays else None


def _cut(path: Path, values: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    if values.ndim != 2:
        raise ValueError(f"{path}: 'values' has shape {values.shape}, expected (sum of lengths, T)")
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: 'lengths' is {lengths.dtype} {lengths.shape}, expected whole numbers (N,)"
        )
    if (lengths < 0).any():
        row = int(np.argmax(lengths < 0))
        raise ValueError(f"{path}: length {lengths[row]} of row {row}, expected at least two")
    if int(lengths.sum()) != len(values):
        raise ValueError(
            f"{path}: 'lengths' add up to {lengths.sum()}, but 'values' has {len(values)} rows"
        )
    ends = np.cumsum(lengths)
    return [values[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def read_idx(path: Path) -> UInt8[np.ndarray, "N rows columns"]:
    """The images of an IDX file, gzipped or not.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or damaged, or is not IDX images of unsigned bytes.
    """
    check_file(path)
    content = path.read_bytes()
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a truncated or damaged gzip file ({error})") from error
    if content[:4] != IDX_IMAGES:
        raise ValueError(
            f"{path} has magic number 0x{content[:4].hex()}: expected 0x{IDX_IMAGES.hex()} "
            "(IDX, unsigned bytes, three dimensions), or a file name ending in .npz"
        )
    if len(content) < 16:
        raise ValueError(f"{path} is truncated: {len(content)} bytes, expected a header of 16")
    images, rows, columns = (int.from_bytes(content[at : at + 4], "big") for at in (4, 8, 12))
    expected = 16 + images * rows * columns
    if len(content) != expected:
        problem = "is truncated" if len(content) < expected else "goes on after its last image"
        raise ValueError(
            f"{path} {problem}: {len(content)} bytes, expected {expected} for {images} images of "
            f"{rows}x{columns}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=16).reshape(images, rows, columns)
