"""Tensors and a configuration in one safetensors file, written all or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def write_tensors(
    path: str | Path, kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> None:
    """Write both; the file holds what it held before or all of this, never part of it.

    What a killed process left beside it is overwritten by the next write. Raises ``OSError``
    where the disk does.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = save(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, {kind: json.dumps(config)}
    )
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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name lasts through a power failure
    finally:
        os.close(folder)


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`write_tensors` wrote; nothing in the file is executed.

    Raises ``FileNotFoundError`` where there is no file, ``ValueError`` naming any other file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no {kind} at {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            config = json.loads((file.metadata() or {})[kind])
            return {name: file.get_tensor(name) for name in file.keys()}, config  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise not_readable(path, kind, error) from error


def not_readable(path: str | Path, kind: str, reason: Exception) -> ValueError:
    """The error of a file that does not hold what it should."""
    return ValueError(f"{path} does not hold a {kind} that can be read: {reason}")
