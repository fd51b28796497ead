"""What the agent sees of a population, and the spaces that say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int64
from torch import Tensor

from htm_env.autoencoder import HTMAutoencoder
from htm_env.forest import leaf_sets
from htm_env.population import Population

BOUND = 1e4
"""Observed values are clipped to this: an autoencoder in training keeps no promise on its scale."""


def centroids(autoencoder: HTMAutoencoder, population: Population) -> Float[Tensor, "B P T"]:
    """Mean standardised coordinates of the tokens under each slot; zeros in empty slots."""
    forest = population.forest
    sets = leaf_sets(forest.merges, forest.num_leaves)  # (B, N, P)
    rows = torch.arange(len(sets), device=sets.device)[:, None]
    members = sets[rows, forest.slots.clamp(min=0)].float() * forest.active[..., None]
    tokens = autoencoder.standardise(population.batch.tokens) * population.batch.present[..., None]
    return members @ tokens / population.leaf_counts.clamp(min=1)[..., None]


def curve_order(autoencoder: HTMAutoencoder, population: Population) -> Int64[Tensor, "B P"]:
    """The rank of each slot along a space-filling curve through the centroids; -1 in empty slots.

    A Z-order (Morton 1966) curve over the first two standardised coordinates, ten bits each.
    """
    plane = centroids(autoencoder, population)[..., :2]
    cells = ((plane.clamp(-4, 4) + 4) / 8 * 1023).long()  # (B, P, 1 or 2)
    code = torch.zeros_like(population.forest.slots)
    for bit in range(10):
        for axis in range(cells.shape[-1]):
            code |= ((cells[..., axis] >> bit) & 1) << (bit * cells.shape[-1] + axis)
    active = population.forest.active
    rank = code.masked_fill(~active, 2**30).argsort(dim=1, stable=True).argsort(dim=1)
    return rank.masked_fill(~active, -1)


EXTRAS: dict[str, Callable[[HTMAutoencoder, Population], Tensor]] = {
    "centroids": centroids,
    "order": curve_order,
}


def check_extras(observe: Sequence[str]) -> tuple[str, ...]:
    """``observe`` as a tuple; ``ValueError`` with the choices unless it holds known keys."""
    if isinstance(observe, str):
        raise ValueError(f"observe is {observe!r}; expected a tuple of keys from {sorted(EXTRAS)}")
    unknown = sorted(set(observe) - set(EXTRAS))
    if unknown:
        raise ValueError(f"unknown observation key {unknown[0]!r}; choose from {sorted(EXTRAS)}")
    return tuple(observe)


def observation_space(
    num_slots: int, embedding_dim: int, token_dim: int, observe: tuple[str, ...]
) -> spaces.Dict:
    """The space of one environment's observations."""
    extra: dict[str, spaces.Space[Any]] = {
        "centroids": spaces.Box(-BOUND, BOUND, (num_slots, token_dim), np.float32),
        "order": spaces.Box(-1, num_slots - 1, (num_slots,), np.int32),
    }
    return spaces.Dict(
        {
            "tokens": spaces.Box(-BOUND, BOUND, (num_slots, embedding_dim), np.float32),
            "active": spaces.Box(0, 1, (num_slots,), np.int8),
            "leaf_counts": spaces.Box(0, num_slots, (num_slots,), np.int32),
            **{key: extra[key] for key in observe},
        }
    )


def observe_population(
    autoencoder: HTMAutoencoder, population: Population, observe: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """The observations: ``tokens`` (B, P, D), ``active`` (B, P), ``leaf_counts`` (B, P), extras."""
    return {
        "tokens": population.embeddings.clamp(-BOUND, BOUND),
        "active": population.forest.active.to(torch.int8),
        "leaf_counts": population.leaf_counts.to(torch.int32),
        **{key: _in_bounds(EXTRAS[key](autoencoder, population)) for key in observe},
    }


def _in_bounds(values: Tensor) -> Tensor:
    if values.is_floating_point():
        return values.clamp(-BOUND, BOUND)
    return values.to(torch.int32)
