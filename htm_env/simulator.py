"""One world for the single and the batched environment: data, autoencoder, reward, observation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.actions import (
    action_masks,
    action_slots,
    legal_actions,
    num_actions,
    remapped_actions,
    why_illegal,
)
from htm_env.autoencoder import TreeEncoder
from htm_env.candidates import advice_on_pairs, check_candidates
from htm_env.checks import check_choice, did_you_mean, number, whole_number
from htm_env.datasets import Dataset, dataset_class, environment_id, make_dataset
from htm_env.forest import Forest
from htm_env.membership import check_extras
from htm_env.observation import observation_space, observe_population
from htm_env.population import Population, encode_population, merge_pairs, start_population
from htm_env.rewards import Transition, check_rewards, known_costs
from htm_env.types import NONE, TokenBatch
from htm_env.weights import make_autoencoder, usable_device

INVALID_ACTIONS = ("penalize", "raise", "remap")
RENDER_MODES = ("rgb_array", "ansi", "human")


@dataclass(frozen=True)
class EnvConfig:
    """The arguments of an environment; the single and the batched one share them.

    Raises ``ValueError``, with the choices for a name, where a value is out of range.
    """

    env_id: str
    """A registered id, with or without ``htm_env:``."""
    autoencoder: str | Path | TreeEncoder | None = None
    """See :func:`htm_env.weights.make_autoencoder`; None: pretrained where weights ship, untrained
    where none do; data whose merger is known needs none."""
    embedding_dim: int | str | None = None
    """``D`` of an untrained autoencoder; ``"auto"``: as the data suggests; None: by id, and
    ``"auto"`` for ``HTM-v0``."""
    merger: Any = field(default=None, kw_only=True)
    """A known merger, in the place of an autoencoder: see :class:`htm_env.known.KnownMerger`; None:
    the data's own, if it has one."""
    reward: Any = None
    """See :func:`htm_env.rewards.reward_on`; None: the data's own."""
    split: str = "train"
    """``"train"``, ``"validation"`` or ``"test"``."""
    invalid_action: str = "penalize"
    """Effect of an illegal action: ``"penalize"``; ``"remap"``: a legal one is made in its place
    (see :func:`htm_env.actions.remapped_actions`); ``"raise"`` ``ValueError``, for debugging."""
    invalid_penalty: float = -1.0
    """Under ``"penalize"``, the rewards of the illegal actions that truncate an episode, summed:
    each one earns ``invalid_penalty / max_invalid_actions``."""
    max_invalid_actions: int = 100
    """Illegal actions in one episode until it is truncated; under ``"remap"`` none is."""
    mask_in_info: bool = True
    """Put the mask of legal actions into ``info``."""
    observe: Sequence[str] = ()
    """Extra observation keys (see ``membership.py``)."""
    candidates: str = "all"
    """The pairs that may be merged: ``"all"``, or ``"knn"``: a slot and one of its nearest."""
    k: int = 8
    """Candidates of a slot under ``"knn"``."""
    neighbours: str = "embeddings"
    """Near by ``"embeddings"``, or by ``"centroids"`` of standardised tokens."""
    render_mode: str | None = None
    """``"rgb_array"``, ``"ansi"`` or ``"human"``."""
    device: str = "cpu"
    """Device of the autoencoder."""
    dataset_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of :func:`htm_env.make_dataset`."""

    def __post_init__(self) -> None:
        check_choice("invalid_action", self.invalid_action, sorted(INVALID_ACTIONS))
        whole_number("max_invalid_actions", self.max_invalid_actions, 1, 2**31)
        number("invalid_penalty", self.invalid_penalty, -math.inf)
        if not isinstance(self.mask_in_info, bool):
            raise ValueError(f"mask_in_info is {self.mask_in_info!r}; expected True or False")
        if self.render_mode is not None:
            check_choice("render_mode", self.render_mode, RENDER_MODES)
        object.__setattr__(self, "observe", check_extras(self.observe))
        check_candidates(self.candidates, self.k, self.neighbours)

    @classmethod
    def of(
        cls, env_id: str | EnvConfig, arguments: Mapping[str, Any], environment: type
    ) -> EnvConfig:
        """From keyword arguments as ``gym.make`` takes them: those of no field are the dataset's.

        A configuration in the place of the id is taken as it is, but for the fields that
        ``arguments`` name, and the dataset's arguments that they name too. Raises ``TypeError``
        for an argument that ``environment`` does not have, as Python would, with the choices.
        """
        given = env_id if isinstance(env_id, EnvConfig) else cls(env_id)
        names = {own.name for own in fields(cls)}
        known = {*names, *dataset_class(environment_id(given.env_id)).keywords()}
        if unknown := [name for name in arguments if name not in known]:
            raise TypeError(
                f"{environment.__name__}.__init__() got an unexpected keyword argument "
                f"{unknown[0]!r}; expected {', '.join(sorted(known - {'env_id'}))}"
                f"{did_you_mean(unknown[0], known)}"
            )
        own = {name: value for name, value in arguments.items() if name in names}
        rest = {name: value for name, value in arguments.items() if name not in names}
        own["dataset_kwargs"] = {**own.get("dataset_kwargs", given.dataset_kwargs), **rest}
        return replace(given, **own)


class Step(NamedTuple):
    """One step of ``B`` episodes."""

    population: Population
    """The episodes after it."""
    reward: Float[Tensor, "B"]
    invalid: Bool[Tensor, "B"]
    """True <--> the chosen action was illegal."""
    executed: Int64[Tensor, "B"]
    """The action that was made; -1 where none was."""


class Simulator:
    """Starts and steps populations; keeps no episode itself."""

    def __init__(self, config: EnvConfig) -> None:
        self.config = config
        self.device = usable_device(config.device)
        env_id, split = environment_id(config.env_id), config.split
        self.dataset: Dataset = make_dataset(env_id, split=split, **config.dataset_kwargs)
        self.reward, costs = known_costs(
            self.dataset, config.reward, config.merger, config.autoencoder
        )
        self.autoencoder = make_autoencoder(
            env_id, self.dataset, config.autoencoder, config.embedding_dim, config.merger, costs
        )
        self.autoencoder.to(self.device)
        observe = tuple(dict.fromkeys((*config.observe, *self.autoencoder.observes)))
        self.config = config = replace(config, observe=observe)
        self.std = self.dataset.std.to(self.device)
        self.penalty = config.invalid_penalty / config.max_invalid_actions
        self.nearest = check_candidates(config.candidates, config.k, config.neighbours)
        self.num_slots = self.dataset.max_tokens
        advice = advice_on_pairs(self.num_slots, self.nearest)
        if advice is not None:
            warnings.warn(advice, stacklevel=4)
        places = None if self.nearest is None else self.nearest.k
        self.observation_space = observation_space(
            self.num_slots,
            self.autoencoder.embedding_dim,
            self.dataset.token_dim,
            tuple(config.observe),
            places,
        )
        self.action_space = spaces.Discrete(num_actions(self.num_slots, places))

    def start(self, keys: np.ndarray) -> Population:
        """The episodes of the given 62-bit keys, before their first merge."""
        batch = self.dataset.episodes(keys).to(self.device)
        return start_population(self.autoencoder, batch, self.std, self.nearest)

    def encode(self, batch: TokenBatch, forest: Forest) -> Population:
        """The episodes of these forests under the autoencoder as it is now."""
        return encode_population(self.autoencoder, batch, forest, self.std, self.nearest)

    def step(
        self, population: Population, actions: Int64[Tensor, "B"], where: Bool[Tensor, "B"]
    ) -> Step:
        """Merge in the samples of ``where``.

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
        if self.config.invalid_action == "raise" and invalid.any():
            row = int(invalid.nonzero()[0])
            own = None if candidates is None else candidates[row]
            reason = why_illegal(int(actions[row]), active[row], own)
            raise ValueError(f"action {int(actions[row])} {reason}")
        if self.config.invalid_action == "remap" and invalid.any():
            rows = invalid.nonzero()[:, 0]
            mask = legal_actions(active, candidates)[rows]
            actions = actions.index_copy(0, rows, remapped_actions(actions[rows], mask))
            first, second, legal = action_slots(actions, active, candidates)
        made = where & legal
        after = merge_pairs(self.autoencoder, population, first, second, self.std, made)
        with torch.no_grad():
            reward = self.reward.step(
                Transition(self.autoencoder, population, after, first, second)
            )
        reward = (
            check_rewards(reward, made & after.error.isfinite())
            .masked_fill(~where, 0.0)
            .masked_fill(where & ~legal, self.penalty)
        )
        return Step(after, reward, invalid, actions.masked_fill(~made, NONE))

    def observation(self, population: Population) -> dict[str, np.ndarray]:
        """Fresh arrays ``(B, ...)``: nothing that the caller writes reaches the population."""
        seen = observe_population(self.autoencoder, population, tuple(self.config.observe))
        return {key: np.array(value.cpu().numpy()) for key, value in seen.items()}

    def action_masks(self, population: Population) -> np.ndarray:
        """True <--> legal, ``(B, A)``; all True where an episode has ended."""
        return action_masks(population.forest.active, population.candidates).cpu().numpy()
