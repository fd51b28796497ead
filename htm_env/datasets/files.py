"""Files of token sets: ``.npz`` archives and MNIST-style IDX images."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from htm_env.datasets.spans import cut_spans

IDX_IMAGES = b"\x00\x00\x08\x03"
"""Magic number of an IDX file of unsigned bytes in three dimensions (N, rows, columns)."""
_GZIP = b"\x1f\x8b"


def check_file(path: Path) -> None:
    """Raises ``FileNotFoundError`` or ``ValueError`` unless ``path`` is a file with content."""
    if not path.exists():
        raise FileNotFoundError(f"no file {str(path)!r}: expected an .npz or IDX file")
    if not path.is_file():
        raise ValueError(f"{path} is not a file: expected an .npz or IDX file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: expected an .npz or IDX file")


class Archive(NamedTuple):
    """What an ``.npz`` of token sets holds."""

    tokens: np.ndarray | list[np.ndarray]
    """Its array ``tokens`` (N, P, T), or its ``values`` cut up by its ``lengths``."""
    spans: list[list[Int64[np.ndarray, "_ 2"]]] | None
    """Its ``spans`` cut up by its ``span_counts``: the levels of every row; None without them."""


def read_npz(path: Path) -> Archive:
    """The token sets of an archive.

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
        return Archive(arrays["tokens"], _spans(path, arrays))
    if not {"values", "lengths"} <= arrays.keys():
        found = ", ".join(arrays) or "nothing"
        raise ValueError(f"{path} has {found}: expected 'tokens', or 'values' and 'lengths'")
    return Archive(_cut(path, arrays["values"], arrays["lengths"]), _spans(path, arrays))


def _spans(
    path: Path, arrays: dict[str, np.ndarray]
) -> list[list[Int64[np.ndarray, "_ 2"]]] | None:
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
