"""Merging with any policy: what an autoencoder needs of one to encode a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.actions import action_slots, why_illegal
from htm_env.candidates import Nearest, Neighbourhood
from htm_env.forest import Forest
from htm_env.membership import Membership, check_extras, observed_extras

Policy = Callable[[dict[str, Tensor], torch.Generator | None], Int64[Tensor, "B"]]
"""``policy(observation batch, generator) -> actions``: the observation keys of the environment."""


@torch.no_grad()
def merge_with(
    policy: Policy,
    standardised: Float[Tensor, "B P T"],
    present: Bool[Tensor, "B P"],
    lifter: Callable[[Tensor], Tensor],
    merger: Callable[[Tensor], Tensor],
    generator: torch.Generator | None = None,
    observe: Sequence[str] = (),
    nearest: Nearest | None = None,
) -> Forest:
    """The forest that a policy makes of standardised tokens: the merges only, until one root is
    left.

    ``lifter`` and ``merger`` make the embeddings; ``observe`` names what the policy observes beside
    tokens, mask and leaf counts, ``nearest`` says who are candidates (None <--> all pairs).

    Raises ``ValueError`` for an unknown key, and for an action that is not legal where a sample has
    merges to make.
    """
    keys = check_extras(observe)
    forest = Forest.start(present)
    population, counts = lifter(standardised) * present[..., None], present.long()
    near, candidates = None, None
    if nearest is not None:
        near = Neighbourhood.of(nearest, standardised, population, present)
    rows = torch.arange(len(present), device=present.device)
    while (running := forest.num_active > 1).any():
        observation = {"tokens": population, "active": forest.active, "leaf_counts": counts}
        if near is not None:
            candidates = near.candidates.partners
            observation["candidates"] = candidates.to(torch.int32)
        if keys:
            membership = Membership.of(standardised, present, forest)
            observation |= observed_extras(membership, keys)
        actions = policy(observation, generator).long()
        first, second, legal = action_slots(actions, forest.active, candidates)
        if not (legal | ~running).all():
            wrong = int((running & ~legal).nonzero()[0])
            action, own = int(actions[wrong]), None if candidates is None else candidates[wrong]
            raise ValueError(
                f"policy action {action} is not a merge of sample {wrong}: it "
                f"{why_illegal(action, forest.active[wrong], own)}"
            )
        forest = forest.merge(first, second, where=running)
        row, first, second = rows[running], first[running], second[running]
        pair = torch.cat([population[row, first], population[row, second]], dim=-1)
        population, counts = population.clone(), counts.clone()  # the policy may keep the old ones
        population[row, first], population[row, second] = merger(pair), 0.0
        counts[row, first] += counts[row, second]
        counts[row, second] = 0
        if near is not None:
            near = near.merged(row, first, second, population, counts)
    return forest
