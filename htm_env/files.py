"""Files that are written all or nothing, where caches lie, and tensors with a description."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


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

    The temporary file beside it always has the same name, so that what a killed process left is
    overwritten by the next write.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
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
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of the folder ``path`` when the block ends.

    Where the block raises, ``path`` stays as it was. For other programs' formats of many files:
    between removing the old folder and naming the new one there is a moment without either.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def write_tensors(path: str | Path, key: str, tensors: Mapping[str, Tensor], about: Any) -> None:
    """Write a safetensors file with a JSON description under ``key`` in its metadata."""
    from safetensors.torch import save  # loads torch, which many users of this module do not need

    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write_bytes(path, save(stored, {key: json.dumps(about)}))


def read_tensors(path: str | Path, key: str) -> tuple[dict[str, Tensor], Any]:
    """The tensors and the description of :func:`write_tensors`; nothing in the file is executed.

    Call it within :func:`reading`, which names the file in the errors.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt", device="cpu") as file:
        about = json.loads((file.metadata() or {})[key])
        # Clones own their memory: the file may be replaced while they live.
        return {name: file.get_tensor(name).clone() for name in file.keys()}, about  # noqa: SIM118


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Raise ``FileNotFoundError`` where there is no file, and ``ValueError`` naming the file for
    whatever is wrong with its contents in this block. ``what`` is what it should hold."""
    from safetensors import SafetensorError

    if not Path(path).is_file():
        raise FileNotFoundError(f"no {what} at {path}")
    try:
        yield
    except (SafetensorError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold a {what} that can be read: {error}") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
