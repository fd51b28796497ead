"""One world for the single and the batched environment: data, autoencoder, reward, observation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.actions import action_slots, legal_actions, num_actions, why_illegal
from htm_env.autoencoder import HTMAutoencoder
from htm_env.candidates.neighbours import check_candidates
from htm_env.datasets import Dataset, make_dataset
from htm_env.membership import check_extras
from htm_env.observation import observation_space, observe_population
from htm_env.population import Population, merge_pairs, start_population
from htm_env.rewards import reward_on
from htm_env.weights import embedding_dim_of, pretrained_autoencoder

INVALID_ACTIONS = ("penalize", "raise")
UNTRAINED_SEED = 0
"""The weights of ``autoencoder="untrained"`` are the same in every process."""


class Simulator:
    """Starts and steps populations; keeps no episode itself.

    The arguments are those of the environments (see :class:`htm_env.env.HTMEnv`).
    """

    def __init__(
        self,
        env_id: str,
        *,
        autoencoder: str | Path | HTMAutoencoder,
        embedding_dim: int | None,
        reward: Any,
        split: str,
        invalid_action: str,
        invalid_penalty: float,
        max_invalid_actions: int,
        observe: Sequence[str],
        candidates: str,
        k: int,
        neighbours: str,
        device: str,
        dataset_kwargs: dict,
    ) -> None:
        if invalid_action not in INVALID_ACTIONS:
            raise ValueError(
                f"unknown invalid_action {invalid_action!r}; choose from {sorted(INVALID_ACTIONS)}"
            )
        if max_invalid_actions < 1:
            raise ValueError(f"max_invalid_actions is {max_invalid_actions}; expected at least 1")
        if not math.isfinite(invalid_penalty):
            raise ValueError(f"invalid_penalty is {invalid_penalty}; expected a finite number")
        self.device = usable_device(device)
        self.dataset: Dataset = make_dataset(env_id, split=split, **dataset_kwargs)
        self.autoencoder = make_autoencoder(env_id, self.dataset, autoencoder, embedding_dim)
        self.autoencoder.to(self.device)
        self.std = self.dataset.std.to(self.device)
        self.reward = reward_on(self.dataset, reward)
        self.observe = check_extras(observe)
        self.nearest = check_candidates(candidates, k, neighbours)
        self.invalid_action = invalid_action
        self.invalid_penalty = float(invalid_penalty)
        self.max_invalid_actions = max_invalid_actions
        self.num_slots = self.dataset.max_tokens
        places = None if self.nearest is None else self.nearest.k
        self.observation_space = observation_space(
            self.num_slots,
            self.autoencoder.embedding_dim,
            self.dataset.token_dim,
            self.observe,
            places,
        )
        self.action_space = spaces.Discrete(num_actions(self.num_slots, places))

    def start(self, keys: np.ndarray) -> Population:
        """The episodes of the given 62-bit keys, before their first merge."""
        batch = self.dataset.episodes(keys).to(self.device)
        return start_population(self.autoencoder, batch, self.std, self.nearest)

    def step(
        self, population: Population, actions: Int64[Tensor, "B"], where: Bool[Tensor, "B"]
    ) -> tuple[Population, Float[Tensor, "B"], Bool[Tensor, "B"]]:
        """Merge in the samples of ``where``; returns population, rewards and who acted illegally.

        Raises ``ValueError`` for an action outside the space, or for any illegal one when
        ``invalid_action`` is ``"raise"``.
        """
        outside = (actions < 0) | (actions >= int(self.action_space.n))
        if (outside & where).any():
            wrong = int(actions[outside & where][0])
            raise ValueError(f"action {wrong} is not in Discrete({self.action_space.n})")
        active, candidates = population.forest.active, population.candidates
        first, second, legal = action_slots(actions, active, candidates)
        invalid = where & ~legal
        if self.invalid_action == "raise" and invalid.any():
            row = int(invalid.nonzero()[0])
            own = None if candidates is None else candidates[row]
            reason = why_illegal(int(actions[row]), active[row], own)
            raise ValueError(f"action {int(actions[row])} {reason}")
        after = merge_pairs(self.autoencoder, population, first, second, self.std, where & legal)
        with torch.no_grad():
            reward = self.reward.step(self.autoencoder, population, after, first, second)
        reward = reward.masked_fill(~where, 0.0).masked_fill(invalid, self.invalid_penalty)
        return after, reward, invalid

    def observation(self, population: Population) -> dict[str, np.ndarray]:
        """Fresh arrays ``(B, ...)``: nothing that the caller writes reaches the population."""
        seen = observe_population(self.autoencoder, population, self.observe)
        return {key: np.array(value.cpu().numpy()) for key, value in seen.items()}

    def action_masks(self, population: Population) -> np.ndarray:
        """True <--> legal, ``(B, A)``."""
        return legal_actions(population.forest.active, population.candidates).cpu().numpy()


def usable_device(name: str | torch.device) -> torch.device:
    """The device of that name; ``ValueError`` where torch does not know it or has no access."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {str(name)!r} cannot be used here: {reason}") from error
    return device


def make_autoencoder(
    env_id: str,
    dataset: Dataset,
    autoencoder: str | Path | HTMAutoencoder,
    embedding_dim: int | None = None,
) -> HTMAutoencoder:
    """``"pretrained"``, ``"untrained"``, a path, or an autoencoder as it is.

    Raises ``ValueError`` where its token dimension is not the data's, or where ``embedding_dim``
    contradicts weights that already have one.
    """
    if isinstance(autoencoder, HTMAutoencoder):
        made = autoencoder
    elif autoencoder == "untrained":
        generator = torch.Generator().manual_seed(UNTRAINED_SEED)
        dim = embedding_dim_of(env_id) if embedding_dim is None else embedding_dim
        made = HTMAutoencoder(dataset.token_dim, dim, generator=generator)
        made.set_statistics(dataset.mean, dataset.std)
    elif autoencoder == "pretrained":
        made = pretrained_autoencoder(env_id)
    else:
        made = HTMAutoencoder.load(autoencoder)
    if made.token_dim != dataset.token_dim:
        raise ValueError(
            f"the autoencoder takes tokens of {made.token_dim} coordinates, but those of "
            f"{dataset.name} have {dataset.token_dim}"
        )
    if embedding_dim is not None and made.embedding_dim != embedding_dim:
        raise ValueError(
            f"embedding_dim is {embedding_dim}, but the autoencoder's is {made.embedding_dim}; "
            'only autoencoder="untrained" can be given another'
        )
    return made
