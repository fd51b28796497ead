"""Hierarchy reduction: vectors of given spans, level by level, without learning any structure."""

from agents.encoders.reduction.encoder import SpanConfig, SpanEncoder
from agents.encoders.reduction.reduction import HierarchyReduction, ReductionLevel, join_samples

__all__ = [
    "HierarchyReduction",
    "ReductionLevel",
    "SpanConfig",
    "SpanEncoder",
    "join_samples",
]
