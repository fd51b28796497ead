"""Fixed policies: rules that plan whole trees, the rows that a learned policy is held against."""

from __future__ import annotations

from agents.fixed.beam import Beam
from agents.fixed.cosine import cosine_tree
from agents.fixed.exhaustive import all_merge_sequences, exhaustive_merges
from agents.fixed.linkage import average_tree, even_tree, nearest_tree, ward_tree
from agents.fixed.order import given_order, random_order, sorted_order
from agents.fixed.policy import FixedPolicy
from agents.fixed.slot_trees import (
    balanced_sorted_tree,
    balanced_tree,
    chain_tree,
    random_tree,
)
from agents.fixed.spans import spans_tree
from agents.fixed.structure import structure_tree

__all__ = [
    "FIXED_POLICIES",
    "Beam",
    "FixedPolicy",
    "all_merge_sequences",
    "exhaustive_merges",
    "fixed_policy",
]

FIXED_POLICIES: dict[str, FixedPolicy] = {
    policy.name: policy
    for policy in [
        # These draw or choose ordered pairs themselves.
        FixedPolicy("random", random_tree, given_order),
        FixedPolicy("cosine", cosine_tree, given_order),
        FixedPolicy("greedy", Beam(width=1), given_order),
        FixedPolicy("beam", Beam(width=4), given_order),
        # The same tree in another order is another policy.
        FixedPolicy("chain", chain_tree, random_order),
        FixedPolicy("balanced", balanced_tree, random_order),
        FixedPolicy("balanced_sorted", balanced_sorted_tree, given_order),
        FixedPolicy("nearest", nearest_tree, random_order),
        FixedPolicy("even", even_tree, random_order),
        FixedPolicy("average", average_tree, random_order),
        FixedPolicy("ward", ward_tree, random_order),
        FixedPolicy("structure", structure_tree, random_order, needs_hierarchy=True),
        FixedPolicy("nearest_sorted", nearest_tree, sorted_order),
        FixedPolicy("even_sorted", even_tree, sorted_order),
        FixedPolicy("structure_sorted", structure_tree, sorted_order, needs_hierarchy=True),
        FixedPolicy("structure_canonical", structure_tree, given_order, needs_hierarchy=True),
        FixedPolicy("spans", spans_tree, given_order, needs_hierarchy=True),
    ]
}
"""Every fixed policy by its name."""


def fixed_policy(name: str) -> FixedPolicy:
    """The fixed policy of that name; ``ValueError`` with the choices if there is none."""
    if name not in FIXED_POLICIES:
        raise ValueError(f"unknown fixed policy {name!r}; choose from {sorted(FIXED_POLICIES)}")
    return FIXED_POLICIES[name]
