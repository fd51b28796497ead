"""Token sets: generated Trees, Crosses and Keys, scikit-learn's Digits, KanjiVG's characters, and
the user's own."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from htm_env import checks
from htm_env.datasets.base import KEY_LIMIT, SPLITS, Dataset, check_split

if TYPE_CHECKING:
    from htm_env.datasets.crosses import CrossesDataset, CrossesGeometry
    from htm_env.datasets.digits import DigitsDataset
    from htm_env.datasets.drawn import DrawnDataset
    from htm_env.datasets.kanji import KanjiDataset
    from htm_env.datasets.keys import KeysDataset, KeysGeometry
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
    "DigitsDataset",
    "DrawnDataset",
    "KanjiDataset",
    "KeysDataset",
    "KeysGeometry",
    "TreesDataset",
    "TreesGeometry",
    "environment_id",
    "make_dataset",
]

DATASETS: dict[str, type[Dataset] | str] = {
    "HTM-Trees-v0": "htm_env.datasets.trees:TreesDataset",
    "HTM-Crosses-v0": "htm_env.datasets.crosses:CrossesDataset",
    "HTM-Digits-v0": "htm_env.datasets.digits:DigitsDataset",
    "HTM-Keys-v0": "htm_env.datasets.keys:KeysDataset",
    "HTM-Jets-v0": "htm_env.datasets.jets:JetsDataset",
    "HTM-Kanji-v0": "htm_env.datasets.kanji:KanjiDataset",
    "HTM-v0": "htm_env.datasets.user:ArrayDataset",
}
"""The class of the data of every environment id, or ``module:name`` of it, loaded when it is first
used; :func:`htm_env.register` adds to them."""

_NAMESPACE = "htm_env:"
_LOOKS_LIKE_AN_ID = re.compile(rf"{_NAMESPACE}.*|HTM-(.+-)?v\d+|[\w.]+:[\w/-]+-v\d+")


def environment_id(name: str) -> str:
    """An id of ``DATASETS`` without the prefix ``htm_env:``.

    The prefix of another module, which registers the id, is kept, and the module is imported:
    ``my_module:My-Id-v0``, as ``gym.make`` spells it. Raises ``ValueError`` where there is no such
    module or id (the message lists the choices).
    """
    env_id = name.removeprefix(_NAMESPACE)
    if _class_of(env_id) is None:
        like = checks.did_you_mean(env_id, DATASETS)
        raise ValueError(f"unknown id {name!r}: expected one of {', '.join(DATASETS)}{like}")
    return env_id


def _class_of(env_id: str) -> type[Dataset] | str | None:
    """What ``DATASETS`` has for an id, after the import of the module in front of it, if any."""
    module, colon, plain = env_id.rpartition(":")
    if colon:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            raise ValueError(f"the module of the id {env_id!r} is not found: {error}") from None
    return DATASETS.get(plain)


def dataset_class(env_id: str) -> type[Dataset]:
    """The class of the data of an id that :func:`environment_id` gave, loaded where it was not."""
    data = DATASETS[env_id.rpartition(":")[2]]
    if isinstance(data, str):
        found: type[Dataset] = named_object(data)
        return found
    return data


def named_object(name: str) -> Any:
    """The object that ``module:name`` of this package names, imported when it is first used."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def make_dataset(id_or_data: Any, split: Any = "train", **kwargs: Any) -> Dataset:
    """One split of the data of an environment id, or of the user's own data.

    Args:
        id_or_data: an id of ``DATASETS``, with or without the prefix ``htm_env:``; or what
            ``ArrayDataset`` takes (an array, a list of arrays, a path).
        split: ``"train"``, ``"validation"`` or ``"test"``.
        kwargs: the geometry of Trees, Crosses and Keys (``TreesGeometry``, ``CrossesGeometry``,
            ``KeysGeometry``); the arguments of ``KanjiDataset``; those of ``ArrayDataset`` for
            ``HTM-v0``.

    Raises:
        ValueError: the id, the split or a keyword is unknown (the message lists the choices), a
            value is out of range, or the data cannot be used.
        FileNotFoundError: there is no such file.
    """
    check_split(split)
    name, owner = "HTM-v0", "the user's own data"
    if isinstance(id_or_data, str):
        plain, like_an_id = id_or_data.removeprefix(_NAMESPACE), _LOOKS_LIKE_AN_ID
        if plain in DATASETS:
            name = owner = plain
        elif like_an_id.fullmatch(id_or_data) and not Path(id_or_data).exists():
            if _class_of(plain) is None:
                raise ValueError(
                    f"unknown id {id_or_data!r}: expected one of {', '.join(DATASETS)}, an array, "
                    f"a list or a path{checks.did_you_mean(plain, DATASETS)}"
                )
            name = owner = plain.rpartition(":")[2]
    data = dataset_class(name)
    known = data.keywords()
    if owner != name:
        known = tuple(keyword for keyword in known if keyword != "dataset")
    checks.keywords(owner, tuple(kwargs), known)
    if owner != name:
        kwargs["dataset"] = id_or_data
    return data.make(split, **kwargs)


def __getattr__(name: str) -> Any:
    places = [place for place in DATASETS.values() if isinstance(place, str)]
    for module in (place.partition(":")[0] for place in [*places, "htm_env.datasets.drawn"]):
        if name in __all__ and hasattr(import_module(module), name):
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
