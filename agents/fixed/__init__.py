"""Fixed policies: rules that plan whole trees, the rows that a learned policy is held against."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from agents.fixed.linkage import (
    average_tree,
    closest_single_tree,
    closest_tree,
    cosine_tree,
    even_tree,
    nearest_tree,
    recurrent_tree,
    ward_tree,
)
from agents.fixed.order import given_order, hilbert_order, random_order, sorted_order
from agents.fixed.policy import FixedPolicy, FixedRule, MeasuredRule, Need, Shape
from agents.fixed.search import Beam, all_merge_sequences
from agents.fixed.slot_trees import (
    balanced_hilbert_tree,
    balanced_sorted_tree,
    balanced_tree,
    chain_tree,
    random_tree,
    spans_tree,
    structure_tree,
)
from htm_env.autoencoder import TreeEncoder
from htm_env.datasets import Dataset, named_object
from htm_env.types import TokenBatch

__all__ = [
    "FIXED_POLICIES",
    "Beam",
    "FixedPolicy",
    "FixedRule",
    "all_merge_sequences",
    "fixed_policy",
    "fixed_rule",
]


def _later(name: str) -> Shape:
    """The shape that ``module:name`` names, imported when it is first used: learners import this
    room, and should load few files."""

    def shape(batch: TokenBatch, model: TreeEncoder, generator: torch.Generator) -> Tensor:
        merges: Tensor = named_object(name)(batch, model, generator)
        return merges

    return shape


_COSTS = Need(
    lambda model: (
        not model.decodes and model.costs_known and model.associative and model.commutative
    ),
    "a known merger that is associative and commutative, with a known reward",
)
_COMPARED = Need(
    lambda model: model.costs_known,
    "an autoencoder, or a known merger with a reward that has of_merges",
)
_PARTICLES = Need(
    lambda model: model.momenta is not None,
    "a known merger of four-momenta, as that of HTM-Jets-v0",
)

FIXED_POLICIES: dict[str, FixedRule] = {
    rule.name: rule
    for rule in [
        # These draw or choose ordered pairs themselves.
        FixedRule("random", random_tree, given_order),
        FixedRule("cosine", cosine_tree, given_order),
        FixedRule("greedy", Beam(width=1), given_order, need=_COMPARED),
        FixedRule("beam", Beam(width=4), given_order, need=_COMPARED),
        # The same tree in another order is another policy.
        FixedRule("chain", chain_tree, random_order),
        FixedRule("balanced", balanced_tree, random_order),
        FixedRule("balanced_sorted", balanced_sorted_tree, given_order),
        FixedRule("balanced_hilbert", balanced_hilbert_tree, given_order),
        FixedRule("nearest", nearest_tree, random_order),
        FixedRule("even", even_tree, random_order),
        FixedRule("average", average_tree, random_order),
        FixedRule("ward", ward_tree, random_order),
        MeasuredRule("closest", closest_tree, random_order),
        MeasuredRule("closest_single", closest_single_tree, random_order),
        MeasuredRule("recurrent", recurrent_tree, random_order),
        FixedRule("structure", structure_tree, random_order, needs_hierarchy=True),
        FixedRule("nearest_sorted", nearest_tree, sorted_order),
        FixedRule("even_sorted", even_tree, sorted_order),
        MeasuredRule("closest_sorted", closest_tree, sorted_order),
        MeasuredRule("closest_single_sorted", closest_single_tree, sorted_order),
        MeasuredRule("recurrent_sorted", recurrent_tree, sorted_order),
        FixedRule("structure_sorted", structure_tree, sorted_order, needs_hierarchy=True),
        FixedRule("nearest_hilbert", nearest_tree, hilbert_order),
        FixedRule("even_hilbert", even_tree, hilbert_order),
        MeasuredRule("closest_hilbert", closest_tree, hilbert_order),
        MeasuredRule("recurrent_hilbert", recurrent_tree, hilbert_order),
        FixedRule("structure_hilbert", structure_tree, hilbert_order, needs_hierarchy=True),
        FixedRule("structure_canonical", structure_tree, given_order, needs_hierarchy=True),
        FixedRule("spans", spans_tree, given_order, needs_hierarchy=True),
        FixedRule("exact", _later(f"{__name__}.exact:exact_tree"), given_order, need=_COSTS),
        FixedRule("kt", _later(f"{__name__}.recombination:kt_tree"), given_order, need=_PARTICLES),
        FixedRule(
            "cambridge_aachen",
            _later(f"{__name__}.recombination:cambridge_aachen_tree"),
            given_order,
            need=_PARTICLES,
        ),
    ]
}
"""The rule of every fixed policy, by its name."""


def fixed_policy(
    name: str, autoencoder: TreeEncoder, dataset: Dataset | None = None
) -> FixedPolicy:
    """The fixed policy of that name for samples of ``dataset``, which only those that measure
    it have to know: distances between things (``closest``), or what recurs (``recurrent``).

    Raises ``ValueError`` with the choices if there is none of that name.
    """
    rule = fixed_rule(name)
    return FixedPolicy(rule if dataset is None else rule.on(dataset), autoencoder)


def fixed_rule(name: str) -> FixedRule:
    """The rule of that name, of ``beam_N``, a beam of any width ``N``, or of ``convention_N``, the
    convention drawn with seed ``N``; ``ValueError`` with the choices if there is none."""
    if name in FIXED_POLICIES:
        return FIXED_POLICIES[name]
    width = re.fullmatch(r"beam_([1-9][0-9]*)", name)
    if width is not None:
        return FixedRule(name, Beam(int(width[1])), given_order, need=_COMPARED)
    seed = re.fullmatch(r"convention_([0-9]{1,18})", name)
    if seed is not None:
        from agents.fixed.convention import Convention  # few learners draw any

        convention = Convention(int(seed[1]))
        return FixedRule(name, convention, convention.order)
    raise ValueError(
        f"unknown fixed policy {name!r}; choose from {sorted(FIXED_POLICIES)}, beam_N with a width "
        "N of at least 1, or convention_N with a seed N"
    )
