"""Configuration files: ``--config`` reads TOML or JSON, ``--save-config`` writes JSON."""

from __future__ import annotations

import json
import os
import shlex
import string
import tomllib
from os import PathLike
from pathlib import Path
from typing import Any

from agents.config.errors import UsageError

RECORDED = ("versions", "data", "ranks", "digest")
"""What ``config.json`` has beside the configuration: the libraries, the data that was read, the
number of processes that learn together, and what tells whether it was changed."""
PLAIN = f"{string.ascii_letters}{string.digits}/._+- "
"""Letters of paths that need no escape."""


def read_file(path: Path) -> dict[str, Any]:
    """The content of a configuration file, but for what a ``config.json`` has :data:`RECORDED`.

    Raises :class:`UsageError` naming a file that cannot be read.
    """
    from htm_env.files import parse_json, read_text  # loads torch

    readers = {".toml": _toml, ".json": parse_json}
    if path.suffix not in readers:
        raise UsageError(f"--config {path} has no suffix .toml or .json")
    try:
        values = readers[path.suffix](read_text(path))
    except FileNotFoundError:
        raise UsageError(f"--config {path}: there is no such file") from None
    except ValueError as error:
        raise UsageError(f"--config {path} is not {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"--config {path} holds no fields; expected an object")
    return {name: value for name, value in values.items() if name not in RECORDED}


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None


def check_run(folder: Path) -> None:
    """Raise ``FileNotFoundError`` where no run was started in a folder."""
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} holds no run: there is no {folder / 'config.json'}")


def quoted(path: str | PathLike[str]) -> str:
    """A path as a shell takes it, in one line, whatever its name has in it."""
    text = os.fspath(path)
    if text.isprintable():
        return shlex.quote(text)
    shown = (chr(byte) if chr(byte) in PLAIN else f"\\x{byte:02x}" for byte in os.fsencode(text))
    return f"$'{''.join(shown)}'"


def write_file(path: Path, values: dict[str, Any]) -> None:
    """Write a configuration file, always as JSON, which unlike TOML has a null."""
    from htm_env.files import atomic_write_text

    if path.suffix != ".json":
        raise UsageError(f"--save-config is {path}; expected a name that ends in .json")
    atomic_write_text(path, json.dumps(values, indent=2, default=str) + "\n")
    print(f"written   {quoted(path)}, for --config")
