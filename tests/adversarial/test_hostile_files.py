"""Files of data and weights that were changed on purpose: one short line, or usable data."""

from __future__ import annotations

import gzip
import io
import json
import math
import random
import struct
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from htm_env.autoencoder import HTMAutoencoder
from htm_env.best_known import KEY as BEST_KNOWN
from htm_env.best_known import BestKnown
from htm_env.datasets import ArrayDataset
from htm_env.files import read_tensors, write_tensors
from htm_env.generation.mixture import KEY as ROOT_MIXTURE
from htm_env.generation.mixture import RootMixture

AUTOENCODER = "htm_autoencoder"
"""The key of the description in a file of weights."""

LIMIT = 2**26
"""Bytes of memory that reading one of them may take."""
ROWS = 10
LENGTHS = [2, 4, 3, 4, 2, 3, 4, 2, 3, 4]
NUMBERS = (0, 1, 127, 128, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
TEXTS = (
    *("", "0", "-1", "1e400", "nan", "inf", "1_0", "007", "train", "dev", "'", '"', "\\", "\x00"),
    *("\x1b[31mred", "\n", "\ud7ff", "Ω" * 40, "(", "[" * 200, "9" * 5000, "None", "__import__"),
    *("|O", "<U0", "<U999999999", ">f8", "<c16", "V8", "O", "M8[ns]", "True", "{}", "x" * 2000),
)


def arrays() -> dict[str, np.ndarray]:
    """Everything that an archive may hold."""
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.normal(size=(ROWS, 4, 3)).astype(np.float32),
        "lengths": np.array(LENGTHS),
        "labels": np.array(["a", "b"] * 5),
        "names": np.array([f"row {row}" for row in range(ROWS)]),
        "split": np.array(["train"] * 8 + ["validation", "test"]),
        "token_names": np.array(["p", "q", "r", "s"]),
        "spans": np.array([[0, 2]] * ROWS),
        "span_counts": np.ones((ROWS, 1), dtype=np.int64),
    }


def archive(members: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", packing) as file:
        for name, member in members.items():
            file.writestr(name.partition("\x00")[0] or "/", member)
    return content.getvalue()


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def images() -> bytes:
    pixels = np.zeros((ROWS, 3, 4), np.uint8)
    pixels[:, 1:, 1:3] = 200
    return b"\x00\x00\x08\x03" + struct.pack(">3I", *pixels.shape) + pixels.tobytes()


def table() -> str:
    rows = [
        f"s{row},{row % 2},n{row},{split},t{place},{place * 0.5},{row}"
        for row, split in enumerate(["train"] * 8 + ["validation", "test"])
        for place in range(LENGTHS[row])
    ]
    return "\n".join(["set,label,name,split,token_name,x,y", *rows]) + "\n"


# ---------------------------------------------------------------- changes


def any_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bytes that are others, gone, twice, or numbers that a header may trust."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
        at = rng.randrange(max(1, min(len(changed), rng.choice([40, 400, len(changed) or 1]))))
        match rng.randrange(6):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[at : at + rng.choice([1, 4, 100])]
            case 2:
                part = changed[at : at + rng.choice([1, 8, 200])]
                changed[at:at] = part * rng.choice([1, 3])
            case 3:
                form = rng.choice(["<I", ">I", "<Q", ">Q", "<H", "<i"])
                size = struct.calcsize(form)
                number = rng.choice(NUMBERS) % 2 ** (8 * size - (form[1] == "i"))
                changed[at : at + size] = struct.pack(form, number)
            case 4:
                changed[at:at] = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
            case 5:
                del changed[at:]
    return bytes(changed)


def header(content: bytes, rng: random.Random) -> bytes:
    """An array whose header says something else, with the right length of the header."""
    size = struct.unpack("<H", content[8:10])[0]
    text = content[10 : 10 + size].decode().rstrip()
    parts = [
        "'descr'",
        "'fortran_order'",
        "'shape'",
        "False",
        "(",
        ")",
        ",",
        "{",
        "}",
        ":",
        "<",
        "4",
    ]
    for _ in range(rng.choice([1, 1, 2, 4])):
        if rng.random() < 0.5:
            new = rng.choice([*TEXTS, "(2, 3)", f"({2**40}, 0)", f"({2**62}, {2**62})", "-4"])
            text = text.replace(rng.choice(parts), new, 1)
        else:
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(TEXTS) + text[at + rng.choice([0, 1, 3]) :]
    encoded = text.encode("utf-8", "surrogatepass")[:60_000] + b"\n"
    return content[:8] + struct.pack("<H", len(encoded)) + encoded + content[10 + size :]


def other_array(array: np.ndarray, rng: random.Random) -> np.ndarray:
    """Another type, shape or content."""
    match rng.randrange(7):
        case 0:
            kinds = ("f8", "f2", "i1", "u8", "U3", "S3", "?", "c16", "M8[s]", ">f4", "f4", "V5")
            try:
                return array.astype(rng.choice(kinds))
            except (TypeError, ValueError):
                return np.zeros(array.shape, rng.choice(kinds))
        case 1:
            return array[rng.randrange(len(array)) :]
        case 2:
            return array.reshape(rng.choice([(-1,), (1, *array.shape), (*array.shape, 1)]))
        case 3:
            return array[..., None].repeat(rng.choice([0, 2]), -1)
        case 4:
            return np.asfortranarray(np.concatenate([array, array]))
        case 5 if array.dtype.kind in "iuf":
            extremes = np.array([-1, 0, 2**31, 1e300, np.nan, np.inf, 1e17, 3])
            with np.errstate(all="ignore"):
                return np.where(rng.random() < 0.5, array, rng.choice(extremes)).astype(array.dtype)
        case 5 | 6:
            changed = array.copy().reshape(-1)
            if array.dtype.kind == "U":
                changed = changed.astype(f"U{rng.choice([1, 9, 3000])}")
                changed[rng.randrange(len(changed))] = rng.choice(TEXTS)
            elif array.dtype.kind in "iuf":
                with np.errstate(all="ignore"):
                    value = np.array(rng.choice([-1, 2**40, 1e39, np.nan])).astype(array.dtype)
                changed[rng.randrange(len(changed))] = value
            return changed.reshape(array.shape)
    return np.zeros(0, array.dtype)


def changed_npz(rng: random.Random) -> bytes:
    members = {f"{name}.npy": npy(array) for name, array in arrays().items()}
    for absent in rng.sample(sorted(members), rng.choice([0, 0, 1, 3, 5])):
        del members[absent]
    for name in rng.sample(sorted(members), rng.choice([1, 1, 2])):
        match rng.randrange(4):
            case 0:
                members[name] = header(members[name], rng)
            case 1:
                members[name] = npy(other_array(arrays()[name[:-4]], rng))
            case 2:
                members[name] = any_bytes(members[name], rng)
            case 3:
                members[rng.choice([*members, *TEXTS])] = members.pop(name)
    packing = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    content = archive(members, packing if rng.random() < 0.9 else zipfile.ZIP_LZMA)
    return any_bytes(content, rng) if rng.random() < 0.3 else content


def changed_npy(rng: random.Random) -> bytes:
    content = npy(arrays()["tokens"])
    if rng.random() < 0.4:
        return header(content, rng)
    return (
        npy(other_array(arrays()["tokens"], rng)) if rng.random() < 0.5 else any_bytes(content, rng)
    )


def changed_text(rng: random.Random) -> bytes:
    lines = [line.split(",") for line in table().splitlines()]
    for _ in range(rng.choice([1, 1, 2, 6])):
        line = rng.choice(lines if rng.random() < 0.7 else lines[:2])
        match rng.randrange(4):
            case 0 | 1 if line:
                line[rng.randrange(len(line))] = rng.choice(TEXTS)
            case 2:
                line.insert(rng.randrange(len(line) + 1), rng.choice(TEXTS))
            case _:
                del line[rng.randrange(len(line) + 1) :]
    content = "\n".join(map(",".join, lines)).encode("utf-8", "surrogatepass")
    return any_bytes(content, rng) if rng.random() < 0.3 else content


def changed_parquet(rng: random.Random) -> bytes:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(io.StringIO(table()))
    if rng.random() < 0.4:
        column = rng.choice(list(frame.columns))
        kinds = ("str", "category", "float16", "bool", "complex128")
        match rng.randrange(4):
            case 0:
                frame[column] = [rng.choice(TEXTS).encode("utf-8", "replace")] * len(frame)
            case 1:
                frame[column] = [{"a": [1, 2]}] * len(frame)
            case 2:
                frame = frame.rename(
                    columns={column: rng.choice(TEXTS).encode("utf-8", "replace").decode()}
                )
            case 3:
                try:
                    frame[column] = frame[column].astype(rng.choice(kinds))
                except (TypeError, ValueError):
                    frame = frame.set_index(column)
    content = io.BytesIO()
    try:
        frame.to_parquet(content)
    except Exception:  # of a type that pyarrow does not have
        return any_bytes(table().encode(), rng)
    return content.getvalue() if rng.random() < 0.1 else any_bytes(content.getvalue(), rng)


def changed_images(rng: random.Random) -> bytes:
    return any_bytes(images(), rng)


def changed_gzip(rng: random.Random) -> bytes:
    if rng.random() < 0.6:
        return gzip.compress(any_bytes(images(), rng), mtime=0)
    return any_bytes(gzip.compress(images(), mtime=0), rng)


def changed_csv_gz(rng: random.Random) -> bytes:
    content = gzip.compress(changed_text(rng), mtime=0)
    return any_bytes(content, rng) if rng.random() < 0.3 else content


DATA: dict[str, Callable[[random.Random], bytes]] = {
    "own.npz": changed_npz,
    "own.npy": changed_npy,
    "images-idx3-ubyte": changed_images,
    "images-idx3-ubyte.gz": changed_gzip,
    "own.csv": changed_text,
    "own.csv.gz": changed_csv_gz,
    "own.parquet": changed_parquet,
}
SHARES = {"own.npz": 8, "own.npy": 3, "images-idx3-ubyte": 1, "images-idx3-ubyte.gz": 2}
"""How many of the changes each kind of file gets, beside one each."""


def outcome(read: Callable[[], Any], name: str) -> str:
    try:
        read()
    except (ValueError, OSError) as error:
        message = str(error)
        wrong = [
            problem
            for problem, there in {
                f"{len(message)} letters": len(message) > 300,
                "not printable": not message.isprintable(),
                "names no file": name not in message,
            }.items()
            if there
        ]
        return f"refused, but {wrong}: {message!r}"[:500] if wrong else "refused"
    except Exception as error:  # whatever else is what this is about
        return f"{type(error).__name__}: {error}"[:500]
    return "usable"


def usable(path: Path) -> None:
    dataset = ArrayDataset(path, memory_limit=LIMIT)
    batch = dataset.fixed(2)
    assert batch.tokens.isfinite().all()
    assert dataset.mean.isfinite().all() and dataset.std.isfinite().all()
    assert (dataset.std > 0).all()


@pytest.mark.timeout(1200)  # of the long form
@pytest.mark.parametrize("name", DATA)
def test_changed_data_is_refused_in_one_line_or_usable(name, tmp_path, mutations, in_full):
    if not any(ending in name for ending in ("np", "idx")):
        pytest.importorskip("pandas")
    path, outcomes = tmp_path / name, Counter()
    total = sum(SHARES.get(kind, 1) for kind in DATA)
    first: dict[str, int] = {}
    share = (4 if in_full else 1) * SHARES.get(name, 1) / total
    for number in range(int(mutations * share)):
        path.write_bytes(DATA[name](random.Random(f"{name} {number}")))
        found = outcome(lambda: usable(path), name)
        first.setdefault(found, number)
        outcomes[found] += 1
    print(name, dict(outcomes))  # shown by pytest -s
    assert set(outcomes) <= {"refused", "usable"}, first
    assert outcomes["refused"] > 0


# ---------------------------------------------------------------- files of tensors

VALUES = (
    *(None, -1, 0, 1.5, 10**9, 2**62, 10**30, "x", "\x1b", [], {}, True, float("nan")),
    *([None], {"a": [1]}, "Ω" * 500, float("inf"), -1e300),
)
KINDS = (torch.float32, torch.float64, torch.int16, torch.int64, torch.bool, torch.uint8)


def other_tensor(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Another type, shape or content."""
    match rng.randrange(6):
        case 0:
            return tensor.to(rng.choice(KINDS))
        case 1:
            return tensor[rng.randrange(len(tensor)) :]
        case 2:
            return tensor.reshape(rng.choice([(-1,), (1, *tensor.shape), (*tensor.shape, 1)]))
        case 3:
            return tensor.new_zeros(rng.choice([0, (2, 2), (0, 2), tensor.shape]))
        case 4:
            return tensor.flip(0).T.contiguous() if tensor.ndim == 2 else -tensor.double()
    changed = tensor.clone().reshape(-1)
    value = torch.tensor(rng.choice([-1.0, 3e4, 1e39, float("nan"), float("inf")]))
    if not tensor.is_floating_point():
        value = value.nan_to_num(0, 9, -9).clamp(-9, 9)
    changed[rng.randrange(len(changed))] = value
    return changed.reshape(tensor.shape)


def other_json(value: Any, rng: random.Random) -> Any:
    """A description in which one thing is another, gone, or beside what belongs there."""
    if isinstance(value, dict | list | tuple) and value and rng.random() < 0.8:
        copied: Any = dict(value) if isinstance(value, dict) else list(value)
        key = rng.choice(list(copied) if isinstance(copied, dict) else range(len(copied)))
        if rng.random() < 0.2:
            del copied[key]
        elif rng.random() < 0.1 and isinstance(copied, dict):
            copied[rng.choice(["other", "", "\x1b"])] = rng.choice(VALUES)
        else:
            copied[key] = other_json(copied[key], rng)
        return copied
    return json.loads("[" * 900 + "]" * 900) if rng.random() < 0.02 else rng.choice(VALUES)


def change_tensors(path: Path, key: str, rng: random.Random) -> None:
    """Change a file in place: its tensors or description with a right digest, its header with a
    right length, or any of its bytes."""
    if rng.random() < 0.6:
        state, described = read_tensors(path, key)
        name = rng.choice(sorted(state))
        match rng.randrange(4):
            case 0:
                del state[name]
            case 1 | 2:
                state[name] = other_tensor(state[name], rng)
            case 3:
                described = other_json(described, rng)
        if rng.random() < 0.1:
            state[rng.choice(["other", "", "\x1b[31m"])] = torch.ones(2)
        write_tensors(path, key, state, described)
        return
    content = path.read_bytes()
    if rng.random() < 0.7:
        size = struct.unpack("<Q", content[:8])[0]
        described = any_bytes(content[8 : 8 + size], rng)
        path.write_bytes(struct.pack("<Q", len(described)) + described + content[8 + size :])
    else:
        path.write_bytes(any_bytes(content, rng))


def best_trees() -> BestKnown:
    """Trees of four tokens, two of them from a source of their own."""
    merges = torch.tensor([[[0, 1], [4, 2], [5, 3]], [[2, 3], [0, 1], [-1, -1]]])
    errors = torch.tensor([1.0, 2.0], dtype=torch.float64)
    sources = tuple({"command": f"htm {name}", "version": "0"} for name in ("a", "b"))
    proven = torch.tensor([True, False])
    return BestKnown(
        "HTM-Trees-v0", "abc", merges, errors, proven, 2 * errors, torch.arange(2), sources
    )


def mixture() -> RootMixture:
    generator = torch.Generator().manual_seed(0)
    return RootMixture.fit(torch.randn(60, 3, generator=generator), generator, [1, 2])


def read_best_trees(path: Path) -> None:
    known = BestKnown.load(path)
    score = known.score(1.5, len(known.errors))
    assert all(value is None or math.isfinite(value) for value in score)
    assert known.source.max() < len(known.sources)


def read_mixture(path: Path) -> None:
    found = RootMixture.load(path)
    roots = found.sample(5, torch.Generator().manual_seed(0))
    assert found.log_density(roots).isfinite().all()


TENSORS: dict[str, tuple[Callable[[], Any], str, Callable[[Path], Any]]] = {
    "weights": (lambda: HTMAutoencoder(3, 4, 8, generator=None), AUTOENCODER, HTMAutoencoder.load),
    "best_known": (best_trees, BEST_KNOWN, read_best_trees),
    "mixture": (mixture, ROOT_MIXTURE, read_mixture),
}
"""What is saved, the key of its description, and how it is read and used."""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", TENSORS)
def test_changed_tensors_are_refused_in_one_line_or_usable(kind, tmp_path, mutations, in_full):
    make, key, read = TENSORS[kind]
    path, outcomes = tmp_path / "own.safetensors", Counter()
    make().save(path)
    content = path.read_bytes()
    first: dict[str, int] = {}
    for number in range(mutations // (4 if in_full else 8)):
        path.write_bytes(content)
        change_tensors(path, key, random.Random(f"{kind} {number}"))
        found = outcome(lambda: read(path), path.name)
        first.setdefault(found, number)
        outcomes[found] += 1
    print(kind, dict(outcomes))  # shown by pytest -s
    assert set(outcomes) <= {"refused", "usable"}, first
    assert outcomes["refused"] > 0
