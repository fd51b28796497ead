"""Files of token sets as named arrays: ``.npz``, ``.npy``, and images in IDX.

Each reader gives what :func:`htm_env.datasets.sets.token_sets` takes. None of them executes code of
a file.
"""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from htm_env.datasets.spans import cut_spans

KNOWN_FILES = "an .npz, .npy, .csv, .parquet or IDX file"
KNOWN_ARRAYS = (
    *("tokens", "values", "lengths", "present", "labels", "names", "split", "token_names"),
    *("spans", "span_counts"),
)
"""What an ``.npz`` may hold."""
IDX_IMAGES = b"\x00\x00\x08\x03"
"""Magic number of an IDX file of unsigned bytes in three dimensions (N, rows, columns)."""
_GZIP = b"\x1f\x8b"

Arrays = dict[str, Any]
"""Arrays, or lists of them, by their name in ``KNOWN_ARRAYS``; spans as the levels of every row."""


def check_file(path: Path) -> None:
    """Raises ``FileNotFoundError`` or ``ValueError`` unless ``path`` is a file with content."""
    if not path.exists():
        raise FileNotFoundError(f"no file {str(path)!r}: expected {KNOWN_FILES}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file: expected {KNOWN_FILES}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: expected {KNOWN_FILES}")


def read_npz(path: Path) -> Arrays:
    """The arrays of an archive, its ``spans`` cut up by its ``span_counts``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or no archive, holds pickled objects or an array that is
            not known, or the counts do not add up to the spans.
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
    unknown = [name for name in arrays if name not in KNOWN_ARRAYS]
    if unknown:
        raise ValueError(
            f"{path} has the unknown array {unknown[0]!r}: expected only {', '.join(KNOWN_ARRAYS)}"
        )
    pair = ("spans", "span_counts")
    for name, other in (pair, pair[::-1]):
        if name in arrays and other not in arrays:
            raise ValueError(f"{path} has {name!r}, but no {other!r} beside it")
    if "spans" in arrays:
        arrays["spans"] = cut_spans(str(path), arrays["spans"], arrays.pop("span_counts"))
    return arrays


def read_npy(path: Path) -> Arrays:
    """The ``tokens`` of a file that holds one array.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or is no array, or holds pickled objects.
    """
    check_file(path)
    try:
        return {"tokens": np.load(path, allow_pickle=False)}
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is not a readable .npy file of numbers ({error})") from error


def read_idx(path: Path, threshold: int) -> Arrays:
    """Of every image of an IDX file, gzipped or not, the pixels over the threshold as ``tokens``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or damaged, or is not IDX images of unsigned bytes; or an
            image has fewer than two such pixels.
    """
    sets = []
    for row, image in enumerate(_images(path)):
        y, x = np.nonzero(image > threshold)
        if len(x) < 2:
            raise ValueError(
                f"{path}: row {row} has {len(x)} pixels over {threshold}: expected at least two"
            )
        sets.append(np.stack([x, y], axis=1).astype(np.float32))
    return {"tokens": sets}


def _images(path: Path) -> UInt8[np.ndarray, "N rows columns"]:
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
            "(IDX, unsigned bytes, three dimensions), or a file name ending in .npz, .npy, .csv "
            "or .parquet"
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
