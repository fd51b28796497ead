"""Meaning of an action: an ordered pair of slots out of all, or a slot and one of its candidates.

Every function takes the candidates of the populations, or None where all pairs are actions; nothing
of the size ``P x P`` is made where there are candidates.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from htm_env.candidates import candidate_mask, candidate_pair
from htm_env.forest import action_mask, action_to_pair


def num_actions(num_slots: int, k: int | None = None) -> int:
    """``P (P - 1)`` ordered pairs, or ``P k`` with ``k`` candidates a slot."""
    return num_slots * (num_slots - 1 if k is None else k)


def legal_actions(
    active: Bool[Tensor, "B P"], candidates: Int[Tensor, "B P k"] | None
) -> Bool[Tensor, "B A"]:
    """True <--> the action is legal."""
    return action_mask(active) if candidates is None else candidate_mask(candidates)


def action_masks(
    active: Bool[Tensor, "B P"], candidates: Int[Tensor, "B P k"] | None
) -> Bool[Tensor, "B A"]:
    """True <--> the action is legal; all True where an episode has ended, since clients draw from
    what is True even where the choice does not count."""
    legal = legal_actions(active, candidates)
    legal[active.sum(1) <= 1] = True  # in place, and these rows alone: masks are the largest arrays
    return legal


def remapped_actions(actions: Int64[Tensor, "B"], legal: Bool[Tensor, "B A"]) -> Int64[Tensor, "B"]:
    """The legal action that is executed for each illegal one.

    The ``r``-th illegal action, in the order of their numbers and counted from 0, is the legal
    action of number ``r mod L`` among the ``L`` legal ones: each of these has as many preimages as
    any other, up to one. Every ``actions`` must be illegal, and every row of ``legal`` have a True.
    """
    counts = legal.cumsum(1)  # (B, A) legal actions up to each one
    rank = actions - counts.gather(1, actions[:, None])[:, 0]
    legal_rank = rank % counts[:, -1]
    return torch.searchsorted(counts, legal_rank[:, None] + 1)[:, 0]


def action_slots(
    actions: Int64[Tensor, "B"],
    active: Bool[Tensor, "B P"],
    candidates: Int[Tensor, "B P k"] | None,
) -> tuple[Int64[Tensor, "B"], Int64[Tensor, "B"], Bool[Tensor, "B"]]:
    """The slots that every action merges, in this order, and whether it is legal.

    Where it is not, the slots are some that exist.
    """
    slots = active.shape[1]
    inside = (actions >= 0) & (actions < num_actions(slots, _list_length(candidates)))
    actions = actions.masked_fill(~inside, 0)
    if candidates is None:
        first, second = action_to_pair(actions, slots)
        rows = torch.arange(len(actions), device=actions.device)
        return first, second, inside & active[rows, first] & active[rows, second]
    first, second = candidate_pair(actions, candidates)
    return first, second.long().clamp(min=0), inside & (second >= 0)


def why_illegal(
    action: int, active: Bool[Tensor, "P"], candidates: Int[Tensor, "P k"] | None
) -> str:
    """Reason why an action is illegal, to follow its name in a sentence."""
    count = num_actions(len(active), _list_length(candidates))
    if not 0 <= action < count:
        return f"is not in Discrete({count})"
    if candidates is None:
        first, second = action_to_pair(action, len(active))
        return (
            f"merges slots ({first}, {second}), but the active slots are "
            f"{active.nonzero().flatten().tolist()}"
        )
    slot, entry = divmod(action, candidates.shape[1])
    return (
        f"merges slot {slot} with its candidate {entry}, but the candidates of slot {slot} are "
        f"{candidates[slot].tolist()} (-1: none)"
    )


def _list_length(candidates: Tensor | None) -> int | None:
    return None if candidates is None else candidates.shape[-1]
