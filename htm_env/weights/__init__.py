"""The pretrained autoencoders that ship with the package; ``htm pretrain`` remakes them."""

from __future__ import annotations

from pathlib import Path

from htm_env.autoencoder import HTMAutoencoder

FOLDER = Path(__file__).parent

EMBEDDING_DIMS = {"HTM-Trees-v0": 8, "HTM-Crosses-v0": 16, "HTM-Digits-v0": 32, "HTM-Keys-v0": 16}
"""The default bottlenecks: well under the coordinates of a sample at its largest population."""

DEFAULT_EMBEDDING_DIM = 32
"""For the user's own data, where nobody knows yet what compresses it."""


def embedding_dim_of(env_id: str) -> int:
    """The default embedding dimension of an environment id."""
    return EMBEDDING_DIMS.get(env_id, DEFAULT_EMBEDDING_DIM)


def weights_path(env_id: str) -> Path:
    """Where the shipped weights of an id are; ``ValueError`` for an id that has none."""
    if env_id not in EMBEDDING_DIMS:
        raise ValueError(
            f"{env_id} has no pretrained autoencoder; those that have: {sorted(EMBEDDING_DIMS)}"
        )
    return FOLDER / f"{env_id}.safetensors"


def pretrained_autoencoder(env_id: str) -> HTMAutoencoder:
    """The shipped autoencoder of an environment id."""
    return HTMAutoencoder.load(weights_path(env_id))
