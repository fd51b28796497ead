"""An autoencoder's weights and configuration as one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from htm_env.files import atomic_write_bytes

_CONFIG = "htm_autoencoder"


def write_weights(path: str | Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write both, all or nothing."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    atomic_write_bytes(path, save(tensors, {_CONFIG: json.dumps(config)}))


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`write_weights` wrote; nothing in the file is executed.

    Raises ``FileNotFoundError`` where there is no file, ``ValueError`` for any other file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no autoencoder weights at {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            config = json.loads((file.metadata() or {})[_CONFIG])
            return {name: file.get_tensor(name) for name in file.keys()}, config  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise not_weights(path, error) from error


def not_weights(path: str | Path, reason: Exception) -> ValueError:
    """The error of a file that does not hold an autoencoder."""
    return ValueError(
        f"{path} does not hold an HTM autoencoder written by HTMAutoencoder.save: {reason}"
    )


def tensors_hash(state: Mapping[str, Tensor]) -> str:
    """Twelve hexadecimal digits of the names and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
