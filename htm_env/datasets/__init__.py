"""Token sets: generated Trees, Crosses and Keys, scikit-learn's Digits, and the user's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from htm_env.datasets import checks
from htm_env.datasets.base import Dataset
from htm_env.datasets.crosses import CrossesDataset, CrossesGeometry
from htm_env.datasets.digits import DigitsDataset
from htm_env.datasets.keys import KeysDataset, KeysGeometry
from htm_env.datasets.random_keys import KEY_LIMIT, SPLITS, check_split
from htm_env.datasets.trees import TreesDataset, TreesGeometry
from htm_env.datasets.user import ArrayDataset

__all__ = [
    "DATASETS",
    "KEY_LIMIT",
    "SPLITS",
    "ArrayDataset",
    "CrossesDataset",
    "CrossesGeometry",
    "Dataset",
    "DatasetEntry",
    "DigitsDataset",
    "KeysDataset",
    "KeysGeometry",
    "TreesDataset",
    "TreesGeometry",
    "environment_id",
    "make_dataset",
]


class DatasetEntry(NamedTuple):
    """How to make the data of one environment id."""

    build: Callable[..., Dataset]
    """Called with ``split=`` and the keywords."""
    keywords: tuple[str, ...]
    """The keywords of ``build`` beside ``split``."""


def _trees(split: str, **geometry: Any) -> TreesDataset:
    return TreesDataset(split, TreesGeometry(**geometry))


def _crosses(split: str, **geometry: Any) -> CrossesDataset:
    return CrossesDataset(split, CrossesGeometry(**geometry))


def _keys(split: str, **geometry: Any) -> KeysDataset:
    return KeysDataset(split, KeysGeometry(**geometry))


def _own(split: str, **kwargs: Any) -> ArrayDataset:
    if "dataset" not in kwargs:
        raise ValueError("HTM-v0 has no data: expected dataset= an array, a list or a path")
    return ArrayDataset(split=split, **kwargs)


DATASETS: dict[str, DatasetEntry] = {
    "HTM-Trees-v0": DatasetEntry(_trees, tuple(field.name for field in fields(TreesGeometry))),
    "HTM-Crosses-v0": DatasetEntry(
        _crosses, tuple(field.name for field in fields(CrossesGeometry))
    ),
    "HTM-Digits-v0": DatasetEntry(DigitsDataset, ()),
    "HTM-Keys-v0": DatasetEntry(_keys, tuple(field.name for field in fields(KeysGeometry))),
    "HTM-v0": DatasetEntry(_own, ("dataset", "split_fractions", "threshold", "spans")),
}
"""The data of every environment id."""

_NAMESPACE = "htm_env:"
_LOOKS_LIKE_AN_ID = re.compile(rf"{_NAMESPACE}.*|HTM-(.+-)?v\d+")


def environment_id(name: str) -> str:
    """An id of ``DATASETS`` without the prefix ``htm_env:``.

    Raises:
        ValueError: there is no such id (the message lists the choices).
    """
    env_id = name.removeprefix(_NAMESPACE)
    if env_id not in DATASETS:
        raise ValueError(f"unknown id {name!r}: expected one of {', '.join(DATASETS)}")
    return env_id


def make_dataset(id_or_data: Any, split: str = "train", **kwargs: Any) -> Dataset:
    """One split of the data of an environment id, or of the user's own data.

    Args:
        id_or_data: an id of ``DATASETS``, with or without the prefix ``htm_env:``; or what
            ``ArrayDataset`` takes (an array, a list of arrays, a path).
        split: ``"train"``, ``"validation"`` or ``"test"``.
        kwargs: the geometry of Trees, Crosses and Keys (``TreesGeometry``, ``CrossesGeometry``,
            ``KeysGeometry``); ``dataset``, ``split_fractions``, ``threshold`` and ``spans`` of
            ``HTM-v0``.

    Raises:
        ValueError: the id, the split or a keyword is unknown (the message lists the choices), a
            value is out of range, or the data cannot be used.
        FileNotFoundError: there is no such file.
    """
    check_split(split)
    if isinstance(id_or_data, str):
        name = id_or_data.removeprefix(_NAMESPACE)
        if name in DATASETS:
            entry = DATASETS[name]
            checks.keywords(name, tuple(kwargs), entry.keywords)
            return entry.build(split=split, **kwargs)
        if _LOOKS_LIKE_AN_ID.fullmatch(id_or_data) and not Path(id_or_data).exists():
            raise ValueError(
                f"unknown id {id_or_data!r}: expected one of {', '.join(DATASETS)}, "
                "an array, a list or a path"
            )
    entry = DATASETS["HTM-v0"]
    allowed = tuple(keyword for keyword in entry.keywords if keyword != "dataset")
    checks.keywords("the user's own data", tuple(kwargs), allowed)
    return entry.build(split=split, dataset=id_or_data, **kwargs)
