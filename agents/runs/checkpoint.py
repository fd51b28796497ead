"""Saved states: one safetensors file, written all or nothing, read without unpickling anything.

Tensors are stored by name; the structure around them is JSON in the file's metadata, where a tensor
is ``{"tensor": name}``, a dict ``{"dict": [[key, value], ...]}`` (so that keys may be integers), a
list is a list, and everything else is itself. Python writes floats so that they read back
exactly.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from htm_env.files import read_tensors, reading, write_tensors

_STRUCTURE = "htm_state"


def save_state(path: str | Path, state: Any) -> None:
    """Write a nested state; the file holds the old state or the new one, never part of one.

    ``state`` is made of dicts (keys ``str`` or ``int``), lists, tuples (read back as lists),
    tensors, and ``int``, ``float``, ``str``, ``bool`` and ``None``.

    Raises ``ValueError`` naming the place in the state that holds anything else.
    """
    tensors: dict[str, Tensor] = {}
    structure = _pack(state, "", tensors)
    write_tensors(path, _STRUCTURE, tensors, structure)


def load_state(path: str | Path) -> Any:
    """Read a state that :func:`save_state` wrote; its tensors are on the CPU.

    Raises ``FileNotFoundError`` where there is no file, ``ValueError`` for one that is truncated or
    that something else wrote; both name it.
    """
    with reading(path, "saved state"):
        tensors, structure = read_tensors(path, _STRUCTURE)
        return _unpack(structure, tensors)


def as_bytes(state: Any) -> bytes:
    """What :func:`save_state` would write of a nested state."""
    with TemporaryDirectory() as folder:
        save_state(Path(folder) / "state", state)
        return (Path(folder) / "state").read_bytes()


def from_bytes(content: bytes) -> Any:
    """The state of which :func:`as_bytes` made these bytes; raises what :func:`load_state` does."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "state").write_bytes(content)
        return load_state(Path(folder) / "state")


def _pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        # Slashes in keys can make two places indistinguishable, and names have to be UTF-8.
        name = (place or "/").encode("ascii", "backslashreplace").decode()
        while name in tensors:
            name += "'"
        # Clones, because tensors that share memory cannot be in one file.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, list | tuple):
        return [_pack(item, f"{place}/{index}", tensors) for index, item in enumerate(value)]
    if isinstance(value, dict):
        items = []
        for key, item in value.items():
            if isinstance(key, bool) or not isinstance(key, str | int):
                raise ValueError(
                    f"the state has the key {key!r} at {place or '/'}; expected str or int"
                )
            items.append([key, _pack(item, f"{place}/{key}", tensors)])
        return {"dict": items}
    raise ValueError(
        f"the state has a {type(value).__name__} at {place or '/'}; expected a dict, list, tensor, "
        "number, str, bool or None"
    )


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    return {key: _unpack(item, tensors) for key, item in value["dict"]}
