"""Files of token sets as named arrays: ``.npz``, ``.npy``, and images in IDX.

Each reader gives what :func:`htm_env.datasets.sets.token_sets` takes. None of them executes code of
a file. What a header claims is compared with the size of its file and with a limit before anything
of that size is made, and no more of a file is read than is used.
"""

from __future__ import annotations

import gzip
import io
import math
import mmap
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from numpy.lib import format as npy

from htm_env import checks
from htm_env.datasets.sets import are_letters
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
MEMORY_LIMIT = 4 * 2**30
"""Bytes of memory that reading a file may take, where nothing else is said."""
COPIES = 3
"""Arrays of 64-bit numbers for one that is read, and for that with padding, that are in memory at
the same time at most."""
OF_ROW, OF_TEXT = 512, 64
"""Bytes of memory beside the content: of a row with its views, and of a text."""
_CHUNK = 2**20
_ARCHIVE, _ARRAY = ".npz archive of plain arrays", ".npy file of numbers"
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_READ_HEADER: dict[tuple[int, int], Callable[[io.BufferedIOBase], tuple[Any, bool, Any]]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}

Arrays = dict[str, Any]
"""Arrays, or lists of them, by their name in ``KNOWN_ARRAYS``; spans as the levels of every row."""


class MemoryLimitError(ValueError):
    """Reading a file would take more memory than it may."""


class Memory:
    """The memory that reading may still take.

    Args:
        name: what errors call the data.
        limit: in bytes.
        further: what else a person can do beyond it, for the error.

    Raises ``ValueError`` for a limit that is no whole number above 0.
    """

    def __init__(self, name: str, limit: int = MEMORY_LIMIT, further: str | None = None) -> None:
        self.name, self.further = name, "" if further is None else f", {further}"
        self.limit = checks.whole_number("memory_limit", limit, 1, 2**62)
        self.taken = 0

    def take(self, size: int) -> None:
        """Count ``size`` bytes that are about to be used; ``MemoryLimitError`` beyond the limit."""
        self.taken += size
        if self.taken > self.limit:
            raise MemoryLimitError(
                f"{self.name} takes {_bytes(self.taken)} of memory or more: expected at most "
                f"{_bytes(self.limit)}, unless memory_limit= allows more{self.further}"
            )

    def take_array(self, shape: Sequence[int], itemsize: int = 8, of_item: int = 0) -> None:
        """Count an array and what is made of it; a dimension of 0 counts as 1, since its rows are
        there all the same."""
        items = math.prod(max(size, 1) for size in shape)
        rows = shape[0] if len(shape) else 1
        self.take(COPIES * items * (max(itemsize, 8) + of_item) + OF_ROW * rows)


def _bytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


@contextmanager
def parsing(path: Path, what: str) -> Iterator[None]:
    """Raise ``ValueError`` naming the file for whatever a library raises in this block.

    Libraries say of no format what they raise for a file that was damaged on purpose.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MemoryLimitError:
        raise
    except Exception as error:
        told = checks.brief(str(error) or type(error).__name__)
        raise ValueError(f"{path} is not a readable {what} ({told})") from error


def check_file(path: Path) -> None:
    """Raises ``FileNotFoundError`` or ``ValueError`` unless ``path`` is a file with content."""
    if not path.exists():
        raise FileNotFoundError(f"no file {str(path)!r}: expected {KNOWN_FILES}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file: expected {KNOWN_FILES}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: expected {KNOWN_FILES}")


def read_npz(path: Path, memory: Memory) -> Arrays:
    """The arrays of an archive, its ``spans`` cut up by its ``span_counts``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or no archive, holds pickled objects or an array that is
            not known, needs more memory than there may be, or the counts do not add up to the
            spans.
    """
    arrays: Arrays = read_arrays(path, KNOWN_ARRAYS, memory)
    pair = ("spans", "span_counts")
    for name, other in (pair, pair[::-1]):
        if name in arrays and other not in arrays:
            raise ValueError(f"{path} has {name!r}, but no {other!r} beside it")
    if "spans" in arrays:
        spans, counts = arrays["spans"], arrays.pop("span_counts")
        memory.take(OF_ROW * counts.size)
        arrays["spans"] = cut_spans(str(path), spans, counts)
    return arrays


def read_arrays(
    path: Path, known: Sequence[str], memory: Memory, left_out: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` archive by name, without those to be left out; errors are those of
    :func:`read_npz`."""
    arrays: dict[str, np.ndarray] = {}
    with _archive(path) as archive:
        for member, name in _members(path, archive, known):
            if name in left_out:
                continue
            with parsing(path, _ARCHIVE):
                file: Any = archive.open(member)
            with file:
                arrays[name] = _array(path, _ARCHIVE, file, member.file_size, memory)
    return arrays


def _archive(path: Path) -> zipfile.ZipFile:
    check_file(path)
    with parsing(path, _ARCHIVE):
        whole = zipfile.is_zipfile(path)
    if not whole:
        raise ValueError(f"{path} is truncated or is not an .npz archive")
    with parsing(path, _ARCHIVE):
        return zipfile.ZipFile(path)


def _members(
    path: Path, archive: zipfile.ZipFile, known: Sequence[str]
) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    """The arrays of an archive with their names; ``ValueError`` for one that is not known, is there
    twice, or is packed by a method that is none of numpy's."""
    found: set[str] = set()
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name not in known or name in found:
            problem = "twice the" if name in found else "the unknown"
            raise ValueError(
                f"{path} has {problem} array {checks.brief(repr(name))}: expected only "
                f"{', '.join(known)}"
            )
        if member.compress_type not in _PACKINGS:
            raise ValueError(
                f"{path} has the array {name!r} packed by method {member.compress_type}: "
                "expected one of numpy's, stored or deflated"
            )
        found.add(name)
        yield member, name


class ArrayPlace(NamedTuple):
    """An array that lies in a file as it is in memory, row by row."""

    offset: int
    """Bytes of the file before its first number."""
    dtype: str
    shape: tuple[int, ...]

    def map(self, path: str | Path) -> np.ndarray:
        """The array, read-only; only the parts that are used are read. ``OSError``, ``ValueError``
        or ``TypeError`` where the file is not there or too short."""
        with open(path, "rb") as file:  # numpy.memmap does more, and takes longer
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.ndarray(self.shape, self.dtype, mapped, self.offset)


def places_of_arrays(path: Path, known: Sequence[str]) -> dict[str, ArrayPlace | None]:
    """Where the arrays of an ``.npz`` or ``.npy`` lie, by name; None for one that is packed or in
    the order of columns. Errors are those of :func:`read_npz`; nothing but headers is read."""
    if path.suffix == ".npy":
        check_file(path)
        with open(path, "rb") as file:
            return {"tokens": _place(path, _ARRAY, file, os.fstat(file.fileno()).st_size)}
    found: dict[str, ArrayPlace | None] = {}
    with _archive(path) as archive, open(path, "rb") as file:
        for member, name in _members(path, archive, known):
            found[name] = None
            if member.compress_type == zipfile.ZIP_STORED:
                # 26 bytes into the local header are the lengths of two fields that end it.
                file.seek(member.header_offset + 26)
                fields = file.read(4)
                before = 30 + sum(int.from_bytes(fields[at : at + 2], "little") for at in (0, 2))
                file.seek(member.header_offset + before)
                found[name] = _place(path, _ARCHIVE, file, member.file_size)
    return found


def _place(path: Path, what: str, file: io.BufferedIOBase, size: int) -> ArrayPlace | None:
    start = file.tell()
    shape, in_columns, dtype = _header(path, what, file, size)
    offset = file.tell()
    if offset - start + math.prod(shape) * dtype.itemsize > file.seek(0, os.SEEK_END) - start:
        raise ValueError(f"{path} is truncated: expected a whole {what}")
    return None if in_columns else ArrayPlace(offset, dtype.str, tuple(shape))


def read_npy(path: Path, memory: Memory) -> Arrays:
    """The ``tokens`` of a file that holds one array.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or is no array, holds pickled objects, or needs more
            memory than there may be.
    """
    check_file(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        return {"tokens": _array(path, _ARRAY, file, size, memory)}


def _header(
    path: Path, what: str, file: io.BufferedIOBase, size: int
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order (True <--> by columns) and type of the array of an ``.npy`` stream of ``size``
    bytes, which is left at its first number; ``ValueError`` for objects and for another size."""
    begin = file.tell()
    with parsing(path, what):
        version = npy.read_magic(file)
        if version not in _READ_HEADER:
            raise ValueError(f"format version {version}")
        shape, in_columns, dtype = _READ_HEADER[version](file)
        count, start = math.prod(shape), file.tell() - begin
    problem = None
    if dtype.hasobject:
        problem = "it holds pickled objects, and none is unpickled"
    elif dtype.itemsize == 0 or min(shape, default=0) < 0:
        problem = f"it holds {dtype} of shape {shape}"
    elif start + count * dtype.itemsize != size:
        problem = (
            f"its header says {dtype} of shape {shape}, {count * dtype.itemsize} bytes, but "
            f"{size - start} follow it"
        )
    if problem is not None:
        raise ValueError(f"{path} is not a readable {what} ({checks.brief(problem)})")
    return shape, in_columns, dtype


def _array(path: Path, what: str, file: io.BufferedIOBase, size: int, memory: Memory) -> np.ndarray:
    """The array of an ``.npy`` stream of ``size`` bytes; nothing is unpickled."""
    shape, in_columns, dtype = _header(path, what, file, size)
    count = math.prod(shape)
    memory.take_array(shape, dtype.itemsize, OF_TEXT if dtype.kind in "SU" else 0)
    with parsing(path, what):
        content = _read(file, count * dtype.itemsize)
        if file.read(1):  # at the end of a member its checksum is compared
            raise ValueError("it goes on after its last number")
        array = np.ndarray(shape, dtype, content, order="F" if in_columns else "C")
        if dtype.kind == "U" and not are_letters(array).all():
            raise ValueError("it holds texts of numbers that are no letters")
        return array


def _read(file: io.BufferedIOBase, count: int) -> bytearray:
    """``count`` bytes, or as many as there are; memory grows with what is read."""
    content = bytearray()
    while len(content) < count and (part := file.read(min(count - len(content), _CHUNK))):
        content += part
    return content


def read_idx(path: Path, threshold: int, memory: Memory) -> Arrays:
    """Of every image of an IDX file, gzipped or not, the pixels over the threshold as ``tokens``.

    Images are read one after another.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or damaged, or is not IDX images of unsigned bytes; or an
            image has fewer than two such pixels; or it needs more memory than there may be.
    """
    check_file(path)
    with open(path, "rb") as file:
        if file.read(2) != _GZIP:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            return {"tokens": _sets(path, file, size, threshold, memory)}
    with gzip.open(path) as unpacked:
        return {"tokens": _sets(path, unpacked, None, threshold, memory)}


def _sets(
    path: Path, file: io.BufferedIOBase, size: int | None, threshold: int, memory: Memory
) -> list[Float32[np.ndarray, "_ 2"]]:
    """The sets of a stream of images; ``size`` is that of the stream where it is known."""
    header = _images(path, file, 16)
    if header[:4] != IDX_IMAGES:
        raise ValueError(
            f"{path} has magic number 0x{header[:4].hex()}: expected 0x{IDX_IMAGES.hex()} "
            "(IDX, unsigned bytes, three dimensions), or a file name ending in .npz, .npy, .csv "
            "or .parquet"
        )
    if len(header) < 16:
        raise ValueError(f"{path} is truncated: {len(header)} bytes, expected a header of 16")
    images, rows, columns = (int.from_bytes(header[at : at + 4], "big") for at in (4, 8, 12))
    pixels = rows * columns
    expected = 16 + images * pixels
    of_images = f"expected {expected} for {images} images of {rows}x{columns}"
    if size is not None and size != expected:
        problem = "is truncated" if size < expected else "goes on after its last image"
        raise ValueError(f"{path} {problem}: {size} bytes, {of_images}")
    memory.take(pixels)
    sets = []
    for row in range(images):
        content = _images(path, file, pixels)
        if len(content) < pixels:
            found = 16 + row * pixels + len(content)
            raise ValueError(f"{path} is truncated: {found} bytes, {of_images}")
        y, x = np.nonzero(np.frombuffer(content, np.uint8).reshape(rows, columns) > threshold)
        if len(x) < 2:
            raise ValueError(
                f"{path}: row {row} has {len(x)} pixels over {threshold}: expected at least two"
            )
        memory.take(OF_ROW + COPIES * 2 * 8 * len(x))
        sets.append(np.stack([x, y], axis=1).astype(np.float32))
    if _images(path, file, 1):
        raise ValueError(f"{path} goes on after its last image: {of_images}")
    return sets


def _images(path: Path, file: io.BufferedIOBase, count: int) -> bytearray:
    """Bytes of a stream that may be packed by gzip; ``ValueError`` where that is damaged."""
    try:
        return _read(file, count)
    except (OSError, EOFError, zlib.error) as error:  # all that gzip says that it raises
        told = checks.brief(error)
        raise ValueError(f"{path} is a truncated or damaged gzip file ({told})") from error
