"""Observation of a population, and its spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from htm_env.actions import action_masks, num_actions
from htm_env.autoencoder import TreeEncoder
from htm_env.membership import ACTION_MASK, BOUND, EXTRAS, Membership, observed_extras
from htm_env.population import Population


def observation_space(
    num_slots: int,
    embedding_dim: int,
    token_dim: int,
    observe: tuple[str, ...],
    k: int | None = None,
) -> spaces.Dict:
    """The space of one environment's observations; ``k`` candidates a slot, or None."""
    extra: dict[str, spaces.Space[Any]] = {
        "centroids": spaces.Box(-BOUND, BOUND, (num_slots, token_dim), np.float32),
        "order": spaces.Box(-1, num_slots - 1, (num_slots,), np.int32),
        "leaf_order": spaces.Box(-1, num_slots - 1, (num_slots,), np.int32),
        "leaves": spaces.Box(-BOUND, BOUND, (num_slots, token_dim), np.float32),
        "owners": spaces.Box(-1, num_slots - 1, (num_slots,), np.int32),
        ACTION_MASK: spaces.Box(0, 1, (num_actions(num_slots, k),), np.int8),
    }
    space: dict[str, spaces.Space[Any]] = {
        "tokens": spaces.Box(-BOUND, BOUND, (num_slots, embedding_dim), np.float32),
        "active": spaces.Box(0, 1, (num_slots,), np.int8),
        "leaf_counts": spaces.Box(0, num_slots, (num_slots,), np.int32),
    }
    if k is not None:
        space["candidates"] = spaces.Box(-1, num_slots - 1, (num_slots, k), np.int32)
    return spaces.Dict(space | {key: extra[key] for key in observe})


def observe_population(
    autoencoder: TreeEncoder, population: Population, observe: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """The observations: ``tokens`` (B, P, D), ``active`` (B, P), ``leaf_counts`` (B, P), extras,
    and ``candidates`` (B, P, k) where the population has them."""
    observation = {
        "tokens": population.embeddings.clamp(-BOUND, BOUND),
        "active": population.forest.active.to(torch.int8),
        "leaf_counts": population.leaf_counts.to(torch.int32),
    }
    if population.candidates is not None:
        observation["candidates"] = population.candidates.to(torch.int32)
    if ACTION_MASK in observe:
        mask = action_masks(population.forest.active, population.candidates)
        observation[ACTION_MASK] = mask.to(torch.int8)
    return observation | observe_extras(autoencoder, population, observe)


def observe_extras(
    autoencoder: TreeEncoder, population: Population, observe: tuple[str, ...]
) -> dict[str, Tensor]:
    """Those of the extra keys that are about membership."""
    if not any(key in EXTRAS for key in observe):
        return {}
    batch = population.batch
    standardised = autoencoder.standardise(batch.tokens)
    membership = Membership.of(standardised, batch.present, population.forest)
    return observed_extras(membership, observe)


def check_keys(observation: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Raise ``ValueError`` naming the first key that is missing, and the extra ones to ask for."""
    for key in keys:
        if key not in observation:
            extras = tuple(name for name in keys if name in EXTRAS)
            raise ValueError(
                f"the observation has no {key!r}; make the environment with observe={extras}"
            )


def check_width(observation: Mapping[str, Any], embedding_dim: int) -> None:
    """Raise ``ValueError`` for embeddings of another dimension."""
    width = observation["tokens"].shape[-1]
    if width != embedding_dim:
        raise ValueError(
            f"the observation has embeddings of {width} numbers; this agent expects {embedding_dim}"
        )


def check_observation(observation: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` naming the first key whose numbers are not finite."""
    for key, values in observation.items():
        tensor = torch.as_tensor(values)
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"the observation has numbers in {key!r} that are not finite: expected those of an "
                "environment"
            )
