"""Hierarchical attention: parallel hierarchies at several compression rates, merged at each layer.

``transformer`` is a causal language model, of use without any merging;
``encoder`` is the same layers, looking both ways, as context encoder of a population.
"""

from agents.encoders.hierarchical.config import (
    HierarchicalConfig,
    HierarchicalTransformerConfig,
    HierarchyConfig,
)
from agents.encoders.hierarchical.encoder import HierarchicalEncoder
from agents.encoders.hierarchical.quantiser import RandomProjectionQuantiser
from agents.encoders.hierarchical.transformer import HierarchicalTransformer

__all__ = [
    "HierarchicalConfig",
    "HierarchicalEncoder",
    "HierarchicalTransformer",
    "HierarchicalTransformerConfig",
    "HierarchyConfig",
    "RandomProjectionQuantiser",
]
