"""The autoencoders of the environments; ``htm pretrain`` remakes the trained ones that ship."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from htm_env import checks
from htm_env.autoencoder import WIDEST, HTMAutoencoder, MergeCosts, TreeEncoder
from htm_env.datasets import named_object
from htm_env.datasets.base import Dataset
from htm_env.datasets.width import suitable_width

FOLDER = Path(__file__).parent

SHIPPED = ("HTM-Trees-v0", "HTM-Crosses-v0", "HTM-Digits-v0", "HTM-Keys-v0")
"""The ids that have trained weights here. Those of Kanji would be made of data whose licence asks
for the same licence (CC BY-SA)."""

EMBEDDING_DIMS = {
    "HTM-Trees-v0": 8,
    "HTM-Crosses-v0": 16,
    "HTM-Digits-v0": 32,
    "HTM-Keys-v0": 16,
    "HTM-Kanji-v0": 8,
}
"""The default bottlenecks: well under the coordinates of a sample at its largest population."""

AUTO = "auto"
"""The embedding dimension that the data chooses."""

UNTRAINED_SEED = 0
"""The weights of ``autoencoder="untrained"`` are the same in every process."""


def automatic_width(env_id: str, embedding_dim: int | str | None) -> bool:
    """True <--> the data chooses the embedding dimension: it is ``"auto"``, or None for an id that
    has no default of its own.

    Raises ``ValueError`` for any other text.
    """
    if isinstance(embedding_dim, str | bytes) and embedding_dim != AUTO:
        raise ValueError(f"embedding_dim is {embedding_dim!r}; expected a whole number or {AUTO!r}")
    return embedding_dim == AUTO or (embedding_dim is None and env_id not in EMBEDDING_DIMS)


def embedding_dim_of(env_id: str, dataset: Dataset, embedding_dim: int | str | None = None) -> int:
    """``D`` as it is asked for: a number, None for the id's default, or ``"auto"``.

    :func:`htm_env.datasets.width.suitable_width` is ``"auto"``, and the default of an id that has
    no other. Raises ``ValueError`` for any other text.
    """
    if automatic_width(env_id, embedding_dim):
        return suitable_width(dataset).dim
    if embedding_dim is None:
        return EMBEDDING_DIMS[env_id]
    return checks.whole_number("embedding_dim", embedding_dim, 1, WIDEST)


def weights_path(env_id: str) -> Path:
    """Path of the shipped weights of an id; ``ValueError`` for an id that has none."""
    if env_id not in SHIPPED:
        raise ValueError(
            f"{env_id} has no pretrained autoencoder; those that have: {sorted(SHIPPED)}"
        )
    return FOLDER / f"{env_id}.safetensors"


def pretrained_autoencoder(env_id: str) -> HTMAutoencoder:
    """The shipped autoencoder of an environment id."""
    return HTMAutoencoder.load(weights_path(env_id))


def usable_device(name: str | torch.device) -> torch.device:
    """The device of that name; ``ValueError`` where torch has none, or one without data."""
    try:
        device = torch.device(name)
        number = torch.zeros(1, device=device)
        if number.is_meta:
            raise ValueError("its tensors hold no numbers")
        number.item()  # which some devices cannot give back
    except Exception as error:  # a kind of its own for every kind of device
        reason = re.split(r"[.!]?\s*\n|[.!] ", str(error))[0]
        message = f"device {str(name)!r} cannot be used here: {reason}"
        raise ValueError(checks.brief(message)) from error
    return device


def make_autoencoder(
    env_id: str,
    dataset: Dataset,
    autoencoder: str | Path | TreeEncoder | None,
    embedding_dim: int | str | None = None,
    merger: Any = None,
    costs: MergeCosts | None = None,
) -> TreeEncoder:
    """``"pretrained"``, ``"untrained"``, a path, or an autoencoder as it is.

    None is the known ``merger``, or the data's own, with its ``costs`` (see
    :class:`htm_env.known.KnownMerger`); without any, ``"pretrained"`` for an id that has shipped
    weights, else ``"untrained"``. ``embedding_dim`` is that of untrained ones (see
    :func:`embedding_dim_of`). Raises ``ValueError`` where token dimension or categories are not the
    data's, where a number contradicts weights that already have one, and where both a merger and an
    autoencoder are given.
    """
    made: TreeEncoder
    if merger is not None and autoencoder is not None:
        raise ValueError("both a merger and an autoencoder are given; expected one of them")
    if autoencoder is None and (merger is not None or dataset.default_merger is not None):
        return _known_merger(dataset, embedding_dim, merger, costs)
    automatic = automatic_width(env_id, embedding_dim)
    if autoencoder is None:
        autoencoder = "pretrained" if env_id in SHIPPED else "untrained"
    if isinstance(autoencoder, TreeEncoder):
        made = autoencoder
    elif autoencoder == "untrained":
        generator = torch.Generator().manual_seed(UNTRAINED_SEED)
        dim = embedding_dim_of(env_id, dataset, embedding_dim)
        made = HTMAutoencoder(
            dataset.token_dim, dim, categories=dataset.categories, generator=generator
        )
        made.set_statistics(dataset.mean, dataset.std)
    elif autoencoder == "pretrained":
        made = pretrained_autoencoder(env_id)
    else:
        made = HTMAutoencoder.load(autoencoder)
    if made.token_dim != dataset.token_dim:
        raise ValueError(
            f"the autoencoder takes tokens of {made.token_dim} coordinates, but those of "
            f"{dataset.name} have {dataset.token_dim}"
        )
    if made.categories != dataset.categories:
        raise ValueError(
            f"the autoencoder takes categories of {made.categories or 'no'} values, but those of "
            f"{dataset.name} have {dataset.categories or 'none'}"
        )
    if not automatic and embedding_dim is not None and made.embedding_dim != embedding_dim:
        raise ValueError(
            f"embedding_dim is {embedding_dim}, but the autoencoder's is {made.embedding_dim}; "
            'only autoencoder="untrained" can be given another'
        )
    return made


def _known_merger(
    dataset: Dataset, embedding_dim: int | str | None, merger: Any, costs: MergeCosts | None
) -> TreeEncoder:
    """The merger that is given, or that of the data."""
    from htm_env.known import KnownMerger  # most runs need none

    if merger is None:
        merger = named_object(str(dataset.default_merger))(dataset)
    if isinstance(merger, str):
        raise ValueError(
            f"the merger is the name {merger!r}; expected the object itself, since only the "
            "command line and the configuration of a run take the form module:name"
        )
    known = KnownMerger(dataset.token_dim, merger, costs)
    known.set_statistics(dataset.mean, dataset.std)
    if embedding_dim not in (None, AUTO, known.embedding_dim):
        raise ValueError(
            f"embedding_dim is {embedding_dim}, but the known merger's is {known.embedding_dim}"
        )
    return known
