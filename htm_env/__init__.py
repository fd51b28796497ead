"""Hierarchical Token Merging as a Gymnasium environment; importing this registers the ids."""

from htm_env.autoencoder import Encoding, HTMAutoencoder
from htm_env.datasets import make_dataset
from htm_env.forest import action_to_pair, pair_to_action
from htm_env.merge_tree import MergeTree
from htm_env.registration import register_environments
from htm_env.types import TokenBatch

__all__ = [
    "Encoding",
    "HTMAutoencoder",
    "MergeTree",
    "TokenBatch",
    "action_to_pair",
    "make_dataset",
    "pair_to_action",
]

register_environments()
