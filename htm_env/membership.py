"""Membership of tokens in the nodes of a forest, and the extra observations made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.forest import Forest, leaf_sets
from htm_env.types import NONE

BOUND = 1e4
"""Observed values are clipped to this: the scale of an autoencoder in training has no bound."""


class Membership(NamedTuple):
    """The tokens under every slot of a population: all that the extra keys are made of."""

    tokens: Float[Tensor, "B K T"]
    """Standardised coordinates of the tokens that the episode started with."""
    present: Bool[Tensor, "B K"]
    """True <--> a token is here."""
    members: Bool[Tensor, "B P K"]
    """True <--> the token is under the node in the slot; all False in empty slots."""

    @classmethod
    def of(
        cls, standardised: Float[Tensor, "B P T"], present: Bool[Tensor, "B P"], forest: Forest
    ) -> Membership:
        """The membership of the tokens of a forest."""
        sets = leaf_sets(forest.merges, forest.num_leaves)  # (B, N, P)
        rows = torch.arange(len(sets), device=sets.device)[:, None]
        members = sets[rows, forest.slots.clamp(min=0)] & forest.active[..., None]
        return cls(standardised, present, members)


def leaves(membership: Membership) -> Float[Tensor, "B K T"]:
    """Standardised coordinates of the tokens; zeros where there is none."""
    return membership.tokens.masked_fill(~membership.present[..., None], 0.0)


def owners(membership: Membership) -> Int64[Tensor, "B K"]:
    """The slot that each token is under; -1 where there is no token."""
    return membership.members.int().argmax(dim=1).masked_fill(~membership.present, NONE)


def centroids(membership: Membership) -> Float[Tensor, "B P T"]:
    """Mean standardised coordinates of the tokens under each slot; zeros in empty slots."""
    members = membership.members.to(membership.tokens.dtype)
    return members @ leaves(membership) / members.sum(2, keepdim=True).clamp(min=1)


def curve_order(membership: Membership) -> Int64[Tensor, "B P"]:
    """The rank of each slot along a space-filling curve through the centroids; -1 in empty slots.

    A Z-order (Morton 1966) curve over the first two standardised coordinates, ten bits each; where
    these tie, the slot whose first token comes first.
    """
    plane = centroids(membership)[..., :2]
    cells = ((plane.clamp(-4, 4) + 4) / 8 * 1023).long()  # (B, P, 1 or 2)
    code = torch.zeros_like(cells[..., 0])
    for bit in range(10):
        for axis in range(cells.shape[-1]):
            code |= ((cells[..., axis] >> bit) & 1) << (bit * cells.shape[-1] + axis)
    active = membership.members.any(2)
    code = code * membership.members.shape[2] + membership.members.int().argmax(dim=2)
    rank = code.masked_fill(~active, 2**62).argsort(dim=1, stable=True).argsort(dim=1)
    return rank.masked_fill(~active, NONE)


def leaf_order(membership: Membership) -> Int64[Tensor, "B P"]:
    """The rank of each slot by its leftmost leaf, as a drawing of the forest would have it: the
    trees are in the order of their first tokens. -1 in empty slots."""
    slots = membership.members.shape[2]
    active = membership.members.any(2)
    first = membership.members.int().argmax(dim=2).masked_fill(~active, slots)
    return first.argsort(dim=1, stable=True).argsort(dim=1).masked_fill(~active, NONE)


EXTRAS: dict[str, Callable[[Membership], Tensor]] = {
    "centroids": centroids,
    "order": curve_order,
    "leaf_order": leaf_order,
    "leaves": leaves,
    "owners": owners,
}
ACTION_MASK = "action_mask"
"""The extra key that says nothing about membership (see :func:`htm_env.actions.action_masks`)."""


def check_extras(observe: Sequence[str]) -> tuple[str, ...]:
    """``observe`` as a tuple; ``ValueError`` with the choices unless it holds known keys."""
    choices = sorted({*EXTRAS, ACTION_MASK})
    if isinstance(observe, str) or not all(isinstance(key, str) for key in observe):
        raise ValueError(f"observe is {observe!r}; expected a tuple of keys from {choices}")
    unknown = sorted(set(observe) - set(choices))
    if unknown:
        raise ValueError(f"unknown observation key {unknown[0]!r}; choose from {choices}")
    return tuple(observe)


def observed_extras(membership: Membership, observe: Sequence[str]) -> dict[str, Tensor]:
    """The extra keys about membership as an observation has them."""
    return {key: _in_bounds(EXTRAS[key](membership)) for key in observe if key in EXTRAS}


def _in_bounds(values: Tensor) -> Tensor:
    if values.is_floating_point():
        return values.clamp(-BOUND, BOUND)
    return values.to(torch.int32)
