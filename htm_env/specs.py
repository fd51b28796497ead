"""Specifications of environments as JSON, also where arrays or an autoencoder were given."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from htm_env.autoencoder import HTMAutoencoder
from htm_env.datasets.base import arrays_hash
from htm_env.datasets.user import BESIDE_ROWS, read_sets
from htm_env.files import atomic_write_bytes, cache_folder

FILES = ("dataset", "autoencoder")
"""Arguments that may be paths as text; those of existing files are written as absolute ones."""


@dataclass
class StoredSpec(EnvSpec):
    """A specification whose JSON names files for what JSON cannot hold.

    ``to_json`` writes the user's own data, and an autoencoder as its weights are then, once each
    into the folder of :func:`cache_folder`, by their hashes; ``gym.make(EnvSpec.from_json(...))``
    reads them there.
    """

    @classmethod
    def of(cls, spec: EnvSpec) -> StoredSpec:
        """The same specification."""
        return cls(**{own.name: getattr(spec, own.name) for own in fields(spec) if own.init})

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredSpec:
        """Wrappers copy the specification of what is in them: data and autoencoder are shared."""
        return replace(self, kwargs=dict(self.kwargs))

    def to_json(self) -> str:
        """Raises ``ValueError`` naming an argument that neither JSON nor a file can hold."""
        return EnvSpec.to_json(replace(self, kwargs=storable(self.kwargs)))


def storable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``gym.make`` with files in the place of data and autoencoder; writes them."""
    kept = dict(arguments)
    if isinstance(kept.get("autoencoder"), HTMAutoencoder):
        kept["autoencoder"] = str(_stored_autoencoder(kept["autoencoder"]))
    if not isinstance(kept.get("dataset", ""), str | os.PathLike):
        beside = {key: kept.pop(key, None) for key in BESIDE_ROWS}
        kept["dataset"] = str(_stored_arrays(read_sets(kept["dataset"], beside).arrays()))
    for name, value in kept.items():
        if isinstance(value, os.PathLike) or (name in FILES and _is_there(value)):
            kept[name] = os.fspath(Path(value).resolve())
        elif isinstance(value, np.ndarray | np.generic):
            kept[name] = value.tolist()
        try:
            json.dumps(kept[name])
        except TypeError:
            if name == "reward":
                raise ValueError(
                    "a reward of your own cannot be stored: leave it out, and give it beside the "
                    "specification, as in gym.make(spec, reward=...)"
                ) from None
            raise ValueError(
                f"{name} is {value!r}; expected a value that JSON can hold, such as a name"
            ) from None
    return kept


def _is_there(value: Any) -> bool:
    """True <--> it is text that names a file or folder, or is a pattern of some."""
    return isinstance(value, str) and (os.path.exists(value) or any(glob.iglob(value)))


def _stored_arrays(arrays: Mapping[str, np.ndarray]) -> Path:
    path = cache_folder() / f"{arrays_hash(arrays)[:16]}.npz"
    if not path.exists():
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
        atomic_write_bytes(path, content.getvalue())
    return path


def _stored_autoencoder(autoencoder: HTMAutoencoder) -> Path:
    described = json.dumps(autoencoder.config, sort_keys=True) + autoencoder.weights_hash()
    name = hashlib.sha256(described.encode()).hexdigest()[:16]
    path = cache_folder() / f"{name}.safetensors"
    if not path.exists():
        autoencoder.save(path)
    return path
