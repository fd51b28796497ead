"""Files that are written all or nothing, with a digest of what they hold, and where caches lie.

A digest tells damage: a bit that flipped, a field that was edited. It is no signature, since
whoever changes a file on purpose can change its digest too. Files of earlier releases have none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from htm_env.checks import brief

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

DIGEST = "digest"
"""The field of JSON that holds its digest."""
DEEPEST, LONGEST_JSON, LONGEST_HEADER, LONGEST_TABLE = 100, 2**24, 2**24, 2**28
"""Levels of JSON within each other, bytes of a file of it, bytes of the header of a file of
tensors, and bytes of a table of results, at most."""
DAMAGED = "it was changed after it was written: its digest is another"


def cache_folder() -> Path:
    """``$HTM_CACHE``, or ``htm-rl`` in the user's folder of caches."""
    if "HTM_CACHE" in os.environ:
        return Path(os.environ["HTM_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "htm-rl"


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file, all or nothing."""
    atomic_write_bytes(path, text.encode())


def atomic_write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file, all or nothing, and have it on the disk when this returns.

    What a killed process left of an earlier write is removed. An ``OSError`` names the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    with naming(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


@contextmanager
def atomic_folder(path: str | Path, before: str | Path | None = None) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of the folder ``path`` when the block ends.

    The old folder is removed, or takes the place of ``before``. At every moment one of the two is
    whole where ``before`` is given; without it there is a moment without either. Where the block
    raises, both stay as they were.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    with naming(path):
        try:
            temporary.mkdir()
            yield temporary
            _sync_folder(temporary)
            doomed = _temporary(path)
            for old, new in ((before, doomed), (path, before or doomed)):
                if old is not None and os.path.exists(old) and path.exists():
                    os.replace(old, new)
            os.replace(temporary, path)
            remove(doomed)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_folder(path.parent)


def _temporary(path: Path) -> Path:
    """A new name beside a file that is written; those of processes that ended are removed."""
    stem = "." + os.fsdecode(os.fsencode(path.name)[:180])  # a name has at most 255 bytes
    for leftover in path.parent.glob(f"{_literally(stem)}.*-*.tmp"):
        process = leftover.name.removeprefix(f"{stem}.").partition("-")[0]
        if process.isdecimal() and not _runs(int(process)):
            remove(leftover)
    return path.with_name(f"{stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _literally(name: str) -> str:
    """A pattern that only this name fits."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Name the file in an ``OSError`` that names none, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def check_name(path: str | Path) -> None:
    """Raise ``ValueError`` for a name that is no text, which other libraries cannot write to."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise ValueError(f"the name {shown!r} is not UTF-8; choose another name") from None


def check_writable(folder: str | Path) -> None:
    """Make a folder and write a file to it, which is removed; what takes long asks this first.

    Raises ``OSError`` naming what cannot be written, ``ValueError`` for a name that is no text.
    """
    check_name(folder)
    attempt = Path(folder) / "writable"
    attempt.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(attempt)
    with naming(folder):
        try:
            temporary.write_bytes(b"0")
        finally:
            temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------- JSON


def write_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write an object as JSON with its digest; ``TypeError`` for what JSON cannot hold."""
    plain = json.loads(json.dumps(values))
    plain |= {DIGEST: _json_digest(plain)}
    atomic_write_text(path, json.dumps(plain, indent=2) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """The object of :func:`write_json` without its digest.

    Raises ``ValueError`` for what is no object, and for one that does not have the digest that it
    names.
    """
    values = parse_json(read_text(path))
    if not isinstance(values, dict):
        raise ValueError("expected an object")
    digest = values.pop(DIGEST, None)
    if digest is not None and digest != _json_digest(values):
        raise ValueError(DAMAGED)
    return values


def read_text(path: str | Path, longest: int = LONGEST_JSON) -> str:
    """The text of a UTF-8 file; raises ``ValueError`` for what is no file, such as a device that
    never ends, for a file of more than ``longest`` bytes, and for one that is not UTF-8."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError("it is not a file")
    with open(path, "rb") as file:
        content = file.read(longest + 1)
    if len(content) > longest:
        raise ValueError(f"it is longer than {longest:,} bytes")
    return content.decode()


def parse_json(text: str) -> Any:
    """The value of a text; ``ValueError`` for what is no JSON or more than 100 levels deep."""
    with suppress(RecursionError):
        level = [value := json.loads(text)]
        for _ in range(DEEPEST + 1):
            holders = [item for item in level if isinstance(item, dict | list)]
            if not holders:
                return value
            within = (item.values() if isinstance(item, dict) else item for item in holders)
            level = [item for items in within for item in items]
    raise ValueError(f"its objects are nested more than {DEEPEST} deep")


def _json_digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- tensors


def write_tensors(path: str | Path, key: str, tensors: Mapping[str, Tensor], about: Any) -> None:
    """Write a safetensors file with a digest and a JSON description under ``key`` in its metadata.

    They are one entry, since the library writes several in an order of its own.
    """
    from safetensors.torch import save  # loads torch, which many users of this module do not need

    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(about)
    atomic_write_bytes(path, save(stored, {key: f"{_tensor_digest(stored, text)} {text}"}))


def read_tensors(path: str | Path, key: str) -> tuple[dict[str, Tensor], Any]:
    """The tensors and the description of :func:`write_tensors`; nothing in the file is executed.

    Raises ``ValueError`` where their digest is not that in the file. Call it within
    :func:`reading`, which names the file in the errors.
    """
    from safetensors import safe_open

    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > min(LONGEST_HEADER, os.path.getsize(path)):
        raise ValueError(f"its header is said to have {header:,} bytes")
    with safe_open(path, framework="pt", device="cpu") as file:
        metadata = dict(file.metadata() or {})
        # Clones own their memory: the file may be replaced while they live.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    text = metadata.pop(key)
    digest, space, described = text.partition(" ")
    if space and re.fullmatch("[0-9a-f]{64}", digest):
        if metadata or digest != _tensor_digest(tensors, described):
            raise ValueError(DAMAGED)
        text = described
    return tensors, parse_json(text)


def _tensor_digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of the description, and of every tensor's name, type, shape and bytes."""
    import torch

    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Let a module take weights; raises what :func:`check_weights` raises."""
    check_weights(module, weights)
    module.load_state_dict(weights)


def check_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` naming the first weight that has not exactly the name, shape and type of
    the module's, or that is not finite; the module may be on torch's device ``meta``."""
    own = module.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        if name not in own or name not in weights:
            raise ValueError(f"the weights {name!r} are {'missing' if name in own else 'unknown'}")
        mine, given = own[name], weights[name]
        if (mine.shape, mine.dtype) != (given.shape, given.dtype):
            raise ValueError(
                f"the weights {name!r} are {given.dtype} {tuple(given.shape)}; expected "
                f"{mine.dtype} {tuple(mine.shape)}"
            )
        if not given.isfinite().all():
            raise ValueError(f"the weights {name!r} are not finite")


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[torch.dtype, int]]
) -> None:
    """Raise ``ValueError`` where these are not exactly the expected names, each of its type and its
    number of dimensions, none of them 0, and where a number is not finite."""
    if tensors.keys() != expected.keys():
        raise ValueError(f"it has the tensors {sorted(tensors)}; expected {sorted(expected)}")
    for name, (dtype, dimensions) in expected.items():
        given = tensors[name]
        if (given.dtype, given.ndim) != (dtype, dimensions) or not given.numel():
            raise ValueError(
                f"{name} is {given.dtype} {tuple(given.shape)}; expected {dtype} of {dimensions} "
                "dimensions above 0"
            )
        if not given.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Raise ``FileNotFoundError`` where there is no file, and ``ValueError`` naming the file for
    whatever is wrong with its contents in this block. ``what`` is what it should hold."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no {what} at {path}")
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # libraries do not say what a damaged file may make them raise
        told = str(error) or type(error).__name__
        raise ValueError(
            brief(f"{path} does not hold a {what} that can be read: {told}")
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
