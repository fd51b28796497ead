"""Hierarchical Token Merging as a Gymnasium environment; importing this registers the ids."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from htm_env.autoencoder import Encoding, HTMAutoencoder
from htm_env.candidates import candidate_action, candidate_pair
from htm_env.datasets import DATASETS, Dataset, make_dataset
from htm_env.forest import action_to_pair, pair_to_action
from htm_env.registration import register_dataset, register_environments
from htm_env.types import TokenBatch

if TYPE_CHECKING:
    from htm_env.datasets.drawn import DrawnDataset
    from htm_env.generation.generate import Generated, generate, interpolate, refine
    from htm_env.generation.mixture import RootMixture
    from htm_env.generation.validity import check_validity
    from htm_env.known import KnownMerger
    from htm_env.measures.metrics import nmse_per_sample
    from htm_env.rewards import MergeReward, Reward
    from htm_env.simulator import EnvConfig
    from htm_env.trees.merge_tree import MergeTree

__all__ = [
    "Dataset",
    "DrawnDataset",
    "Encoding",
    "EnvConfig",
    "Generated",
    "HTMAutoencoder",
    "KnownMerger",
    "MergeReward",
    "MergeTree",
    "Reward",
    "RootMixture",
    "TokenBatch",
    "__version__",
    "action_to_pair",
    "candidate_action",
    "candidate_pair",
    "check_validity",
    "generate",
    "interpolate",
    "make_dataset",
    "nmse_per_sample",
    "pair_to_action",
    "refine",
    "register",
]
_LATER = {
    **dict.fromkeys(
        ("Generated", "generate", "interpolate", "refine"), "htm_env.generation.generate"
    ),
    "DrawnDataset": "htm_env.datasets.drawn",
    "EnvConfig": "htm_env.simulator",
    "KnownMerger": "htm_env.known",
    "MergeReward": "htm_env.rewards",
    "Reward": "htm_env.rewards",
    "RootMixture": "htm_env.generation.mixture",
    "MergeTree": "htm_env.trees.merge_tree",
    "nmse_per_sample": "htm_env.measures.metrics",
    "check_validity": "htm_env.generation.validity",
}
"""Modules of names that are imported when they are first used."""

register_environments()


def register(env_id: str, dataset: type) -> None:
    """Give data of one's own an environment id, in this process.

    From then on ``gym.make``, ``gym.make_vec``, :func:`make_dataset` and every learner take it;
    ``Name-Flat-v0`` is its flat twin, whose observation is one vector.
    Where a module ``my_module`` registers ``My-Id-v0`` when it is imported, all of these also take
    ``my_module:My-Id-v0``, which imports it first: the command ``htm`` needs that, and runs that
    resume.

    Args:
        env_id: as Gymnasium's: ``Name-v0``.
        dataset: the class, of which :class:`DrawnDataset` is the shortest to write.

    Raises ``ValueError`` for an id of another form or that is taken, or for anything but a class
    of a dataset.
    """
    register_dataset(env_id, dataset, DATASETS)


__version__: str
"""Version of the installed distribution; read when it is asked for."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("htm-rl")
    if name == "wrappers":
        return import_module("htm_env.wrappers")
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
