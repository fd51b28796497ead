"""Small files that claim or unpack to much: refused in one line, in little memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from test_cli import TINY, status
from test_crashes import in_a_child
from test_hostile_files import images, npy

from htm_env.autoencoder import HTMAutoencoder

LIMIT = 2**26
"""The limit that readers are given, in bytes."""
ROOM = LIMIT + 2**26
"""Bytes of address space beyond what the process has before: memory that is freed is not always
given back."""
PART = 2**22
"""Bytes that a stream repeats."""

READ = """
import json, resource, sys
from agents.runs.directory import RunDirectory
from htm_env.autoencoder import HTMAutoencoder
from htm_env.datasets import ArrayDataset
if TABLES:
    import pandas, pyarrow.parquet

def read(path):
    if path.endswith(".safetensors"):
        HTMAutoencoder.load(path)
    elif path.endswith(".json"):
        RunDirectory(path.rpartition("/")[0]).load_config()
    else:
        ArrayDataset(path, memory_limit=LIMIT)

def memory(of):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(of))

read(sys.argv[1])  # loads what is loaded once
for path in sys.argv[2:]:
    open("/proc/self/clear_refs", "w").write("5")  # the most memory counts from here on
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize:") + ROOM, -1))
    told, before = None, memory("VmRSS:")
    try:
        read(path)
    except (ValueError, OSError) as error:
        cause, told = error, str(error)
        while cause is not None and not isinstance(cause, MemoryError):
            cause = cause.__cause__
        told = told if cause is None else "memory ended: " + told
    except BaseException as error:
        told = "escaped: " + repr(error)
    print(json.dumps([path, told, memory("VmHWM:") - before]), flush=True)
"""


def packed(*parts: bytes, times: int = 64) -> bytes:
    """The first part, then the second so many times: gzip streams follow each other."""
    head, tail = (gzip.compress(part, 1, mtime=0) for part in parts)
    return head + tail * times


def archive(**members: tuple[bytes, bytes, int]) -> bytes:
    """An archive of a head and so many parts a member, with right sizes and checksums."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, (head, part, times) in members.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(head)
                for _ in range(times):
                    member.write(part)
    return content.getvalue()


def claimed(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """The header of an array."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def long_row() -> bytes:
    """Many rows of two tokens and one of many, which all would be padded to."""
    lengths = np.full(100_000, 2)
    lengths[0] = 100_000
    return archive(
        values=(npy(np.ones((lengths.sum(), 1), np.float32)), b"", 0),
        lengths=(npy(lengths), b"", 0),
    )


def idx(shape: tuple[int, int, int]) -> bytes:
    return images()[:4] + struct.pack(">3I", *shape)


TOKENS = npy(np.arange(60, dtype=np.float32).reshape(10, 3, 2))
ZEROS, ONES = bytes(PART), b"\xff" * PART
BOMBS: dict[str, Callable[[], bytes]] = {
    "dark.gz": lambda: packed(idx((2**20, 16, 16)), ZEROS),
    "bright.gz": lambda: packed(idx((2**20, 16, 16)), ONES),
    "one_image.gz": lambda: packed(idx((1, 2**16 - 1, 2**16 - 1)), ONES),
    "no_images.gz": lambda: packed(ZEROS, ZEROS),
    "empty_images": lambda: idx((2**32 - 1, 0, 0)),
    "lines.csv.gz": lambda: packed(b"set,x\n", b"a,1\n" * (PART // 4)),
    "names.csv.gz": lambda: packed(
        b"set,x\n", "".join(f"{number:x},1\n" for number in range(PART // 8)).encode()
    ),
    "one_line.csv.gz": lambda: packed(b"set,x\n", b"1," * (PART // 2)),
    "heading.csv.gz": lambda: packed(b"set,x", b",x" * (PART // 2)),
    "claimed.npy": lambda: claimed((2**40, 3, 2)) + bytes(96),
    "claimed.npz": lambda: archive(tokens=(claimed((2**40, 3, 2)), ZEROS, 1)),
    "true.npz": lambda: archive(tokens=(claimed((2**19, 4, 8)), ZEROS, 16)),
    "small_numbers.npz": lambda: archive(tokens=(claimed((2**21, 2, 1), "|i1"), ZEROS, 1)),
    "unused.npz": lambda: archive(other=(claimed((2**24,)), ZEROS, 16), tokens=(TOKENS, b"", 0)),
    "counts.npz": lambda: archive(
        tokens=(TOKENS, b"", 0),
        spans=(claimed((0, 2), "<i8"), b"", 0),
        span_counts=(claimed((2**40, 0), "<i8"), b"", 0),
    ),
    "texts.npz": lambda: archive(
        tokens=(TOKENS, b"", 0), names=(claimed((2**20,), "<U4"), ZEROS, 4)
    ),
    "nothing.npz": lambda: archive(tokens=(claimed((2**40, 3, 2), "|V0"), b"", 0)),
    "long_row.npz": long_row,
    "repeated.parquet": lambda: repeated(),
}


def repeated() -> bytes:
    """Ten million lines of the same numbers, in a few kilobytes."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    part = pyarrow.table({"set": np.zeros(10**6, np.int8), "x": np.zeros(10**6)})
    content = io.BytesIO()
    with parquet.ParquetWriter(content, part.schema) as writer:
        for _ in range(10):
            writer.write_table(part)
    return content.getvalue()


def weights(text: str, **others: torch.Tensor) -> bytes:
    """Those of a small autoencoder with another description."""
    state = HTMAutoencoder(3, 4, 8).state_dict()
    return save(state | others, {"htm_autoencoder": text})


def header(size: int) -> bytes:
    content = weights("{}")
    return struct.pack("<Q", size) + content[8:]


NESTED = "[" * 10**6 + "]" * 10**6
CONFIG = {"token_dim": 3, "embedding_dim": 4, "hidden_dim": 8, "architecture": "residual"}
BOMBS |= {
    "claims.safetensors": lambda: header(2**60),
    "claims_less.safetensors": lambda: header(2**25),
    "wide.safetensors": lambda: weights(json.dumps(CONFIG | {"hidden_dim": 2**26})),
    "deep.safetensors": lambda: weights(NESTED),
    "long.safetensors": lambda: weights("[" + "0," * 2**23 + "0]"),
    "deep/config.json": NESTED.encode,
    "objects/config.json": lambda: b'{"a":' * 10**5 + b"1" + b"}" * 10**5,
    "long/config.json": lambda: b"[" + b"0," * 2**23 + b"0]",
}


def sets(count: int, tokens: int, dtype: str = "<f4") -> bytes:
    """Usable data of so many sets, one number a token."""
    values = np.arange(count * tokens).reshape(count, tokens, 1) % 100
    return archive(tokens=(npy(values.astype(dtype)), b"", 0))


FITTING: dict[str, Callable[[], bytes]] = {
    "long_rows.npz": lambda: sets(10, 120_000),
    "short_rows.npz": lambda: sets(50_000, 2, "|i1"),
    "doubles.npz": lambda: sets(100, 12_000, "<f8"),
    "bright.gz": lambda: packed(idx((8, 256, 256)), b"\xff" * 2**16, times=8),
    "lines.csv.gz": lambda: packed(
        b"set,x\n", "".join(f"{n % 10},{n}\n" for n in range(10**5)).encode(), times=2
    ),
}
"""Data that is read within the limit, and nearly takes it."""


def test_a_command_whose_memory_ends_says_what_to_lower(tmp_path, capfd, in_full):
    def act(algo: str, size: str) -> None:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + 2**30
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        arguments = [*TINY, "--algo", algo, size, 2**20, "--merges", 40]
        os._exit(status("train", *arguments, "--out", tmp_path / "run"))

    sizes = (("reinforce", "--policy-hidden-dim"), ("chain", "--batch-size"))
    for algo, size in sizes if in_full else sizes[:1]:
        capfd.readouterr()
        assert in_a_child(lambda given=(algo, size): act(*given)) == 1
        line = capfd.readouterr().err.splitlines()[-1]
        assert line.startswith("htm: memory is not enough (") and len(line) <= 305
        assert "allocate" in line and "; lower --batch-size, " in line and size in line


@pytest.mark.timeout(280)
def test_bombs_are_refused_in_one_line_and_little_memory(tmp_path):
    tables = find_spec("pyarrow") is not None
    paths = []
    every = BOMBS | {f"fitting/{name}": content for name, content in FITTING.items()}
    for name, content in every.items():
        if tables or not name.endswith((".csv.gz", ".parquet")):
            paths.append(tmp_path / name)
            paths[-1].parent.mkdir(exist_ok=True)
            paths[-1].write_bytes(content())
    first = tmp_path / "images.gz"
    first.write_bytes(gzip.compress(images()))
    program = f"TABLES, LIMIT, ROOM = {tables}, {LIMIT}, {ROOM}\n{READ}"
    command = [sys.executable, "-c", program, str(first), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for path, told, used in found:
        size = os.path.getsize(path)
        print(f"{Path(path).name}: {size:,} bytes, {used / 1e6:.0f} MB more: {told}")
    assert max(used for *_, used in found) <= LIMIT
    for path, told, _ in found:
        if "fitting" in path:
            assert told is None, (path, told)
            continue
        assert told is not None and len(told) <= 300 and told.isprintable(), (path, told)
        assert Path(path).name in told and ": " not in told[:9], (path, told)
    assert [path for path, _, _ in found] == [str(path) for path in paths]
