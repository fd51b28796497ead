"""One episode at a time, in numpy: a batch of one row costs more to call than to compute.

The episodes are those of :class:`htm_env.simulator.Simulator`, up to rounding (a test compares
them); away from the processor the batch of one row is used.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from htm_env.actions import legal_actions, remapped_actions, why_illegal
from htm_env.autoencoder import HTMAutoencoder, array_function
from htm_env.candidates import Nearest, candidate_pair
from htm_env.forest import Forest, action_to_pair
from htm_env.membership import ACTION_MASK, BOUND
from htm_env.observation import observe_extras
from htm_env.population import Population, unmerged_population
from htm_env.rewards import Transition, check_rewards
from htm_env.simulator import EnvConfig, Simulator
from htm_env.types import NONE, TokenBatch


class SingleSimulator(Simulator):
    """Starts and steps populations of one episode; keeps no episode itself."""

    def __init__(self, config: EnvConfig) -> None:
        super().__init__(config)
        self.in_arrays = self.device.type == "cpu" and self.autoencoder.decodes
        """True <--> numpy can see the memory of the autoencoder's weights, and there are any."""

    def start_one(self, key: int) -> Population:
        """The episode of a 62-bit key, before its first merge."""
        keys = np.array([key])
        if not self.in_arrays:
            return self.start(keys)
        return start_episode(
            self.autoencoder.decoding(), self.dataset.episodes(keys), self.std, self.nearest
        )

    def step_one(self, population: Population, action: int) -> tuple[Population, float, bool, int]:
        """Take one action; returns the population, the reward, whether the action was illegal, and
        the action that was made (-1: none).

        Raises what :meth:`step` raises.
        """
        if not self.in_arrays:
            actions = torch.tensor([action], device=self.device)
            only = torch.ones_like(actions, dtype=torch.bool)
            after, reward, invalid, executed = self.step(population, actions, only)
            return after, float(reward[0]), bool(invalid[0]), int(executed[0])
        if not 0 <= action < self.action_space.n:
            raise ValueError(f"action {action} is not in Discrete({self.action_space.n})")
        first, second, legal = self._slots(population, action)
        made = action
        if not legal:
            if self.config.invalid_action == "penalize":
                return population, self.penalty, True, NONE
            active, candidates = population.forest.active, population.candidates
            if self.config.invalid_action == "raise":
                own = None if candidates is None else candidates[0]
                raise ValueError(f"action {action} {why_illegal(action, active[0], own)}")
            mask = legal_actions(active, candidates)
            made = int(remapped_actions(torch.tensor([action]), mask))
            first, second, _ = self._slots(population, made)
        after = merge_pair(self.autoencoder.decoding(), population, first, second, self.std)
        one, other = (torch.from_numpy(np.array([slot])) for slot in (first, second))
        with torch.no_grad():
            transition = Transition(self.autoencoder, population, after, one, other)
            reward = check_rewards(self.reward.step(transition), after.error.isfinite())
        return after, float(reward), not legal, made

    def observe_one(self, population: Population) -> dict[str, np.ndarray]:
        """Fresh arrays of the only episode: nothing that the caller writes reaches it."""
        if not self.in_arrays:
            return {key: value[0] for key, value in self.observation(population).items()}
        observe = self.config.observe
        observation = {
            "tokens": np.minimum(np.maximum(population.embeddings.numpy()[0], -BOUND), BOUND),
            "active": (population.forest.slots.numpy()[0] >= 0).astype(np.int8),
            "leaf_counts": population.leaf_counts.numpy()[0].astype(np.int32),
        }
        if population.candidates is not None:
            observation["candidates"] = population.candidates.numpy()[0].astype(np.int32)
        if ACTION_MASK in observe:
            observation[ACTION_MASK] = self.mask_one(population).astype(np.int8)
        extras = observe_extras(self.autoencoder, population, tuple(observe)) if observe else {}
        return observation | {key: value.numpy()[0].copy() for key, value in extras.items()}

    def mask_one(self, population: Population) -> np.ndarray:
        """True <--> legal, ``(A,)``; all True where the episode has ended."""
        mask: np.ndarray
        if not self.in_arrays:
            mask = self.action_masks(population)[0]
            return mask
        if population.candidates is None:
            active = population.forest.slots.numpy()[0] >= 0
            pairs = active[:, None] & active  # (P, P), less its diagonal as in drop_diagonal
            mask = pairs.ravel()[1:].reshape(len(active) - 1, -1)[:, :-1].ravel()
        else:
            mask = (population.candidates.numpy()[0] >= 0).ravel()
        if population.forest.num_active.item() == 1:
            mask[:] = True
        return mask

    def _slots(self, population: Population, action: int) -> tuple[int, int, bool]:
        """The slots that an action merges, and whether it is legal."""
        slots = population.forest.slots.numpy()[0]
        if population.candidates is None:
            first, second = action_to_pair(action, len(slots))
            return first, second, bool(slots[first] >= 0 and slots[second] >= 0)
        first, second = candidate_pair(action, population.candidates.numpy()[0])
        return first, int(second), bool(second >= 0)


def start_episode(
    autoencoder: HTMAutoencoder, batch: TokenBatch, std: Tensor, nearest: Nearest | None = None
) -> Population:
    """The only episode of a batch before its first merge (see
    :func:`htm_env.population.start_population`)."""
    standardised, present = autoencoder.standardise(batch.tokens), batch.present.numpy()[0]
    embeddings = array_function(autoencoder.lifter)(standardised.numpy()[0]) * present[:, None]
    apart = _differences(autoencoder, embeddings, batch.tokens.numpy()[0], std)
    errors = np.square(apart, out=apart).sum(1) * present
    return unmerged_population(
        autoencoder,
        batch,
        standardised,
        torch.from_numpy(embeddings[None]),
        torch.from_numpy(errors[None]),
        nearest,
    )


def merge_pair(
    autoencoder: HTMAutoencoder, population: Population, first: int, second: int, std: Tensor
) -> Population:
    """The population of one episode after merging two of its slots (see
    :func:`htm_env.population.merge_pairs`)."""
    forest, batch = population.forest, population.batch
    num_leaves, step = int(forest.num_leaves.item()), int(forest.num_merges.item())
    slots, merges = forest.slots.numpy().copy(), forest.merges.numpy().copy()
    merges[0, step] = slots[0, first], slots[0, second]
    slots[0, first], slots[0, second] = num_leaves + step, NONE
    embeddings = population.embeddings.numpy().copy()
    pair = embeddings[0, [first, second]].reshape(1, -1)
    merged = array_function(autoencoder.merger)(pair)
    embeddings[0, first], embeddings[0, second] = merged[0], 0.0
    counts, errors = population.leaf_counts.numpy().copy(), population.squared_errors.numpy().copy()
    counts[0, first] += counts[0, second]
    counts[0, second] = 0
    leaves, decoded = _unmerged(autoencoder, merged, merges[0].tolist(), num_leaves, step)
    apart = _differences(autoencoder, decoded, batch.tokens.numpy()[0, leaves], std).ravel()
    errors[0, first], errors[0, second] = apart @ apart, 0.0
    after = Population(
        batch,
        Forest(
            torch.from_numpy(slots),
            torch.from_numpy(merges),
            forest.num_leaves,
            torch.from_numpy(np.array([step + 1])),
        ),
        torch.from_numpy(embeddings),
        torch.from_numpy(counts),
        torch.from_numpy(errors),
        population.initial_error,
        population.units,
    )
    if population.neighbourhood is None:
        return after
    rows, one, other = torch.from_numpy(np.array([[0], [first], [second]]))
    neighbourhood = population.neighbourhood.merged(
        rows, one, other, after.embeddings, after.leaf_counts
    )
    return replace(after, neighbourhood=neighbourhood)


def _unmerged(
    autoencoder: HTMAutoencoder,
    state: np.ndarray,
    merges: list[list[int]],
    num_leaves: int,
    step: int,
) -> tuple[list[int], np.ndarray]:
    """The leaves under the node of a merge, and the embeddings that ``state`` ``(1, D)``, its own,
    is decoded to for them."""
    unmerge = array_function(autoencoder.unmerger)
    above, leaves, found = [step], [], []
    while above:
        nodes = [child for merge in above for child in merges[merge]]
        state = unmerge(state).reshape(len(nodes), -1)
        ends = [place for place, node in enumerate(nodes) if node < num_leaves]
        leaves += [nodes[place] for place in ends]
        found.append(state[ends])
        inner = [place for place, node in enumerate(nodes) if node >= num_leaves]
        above, state = [nodes[place] - num_leaves for place in inner], state[inner]
    return leaves, np.concatenate(found)


def _differences(
    autoencoder: HTMAutoencoder, embeddings: np.ndarray, tokens: np.ndarray, std: Tensor
) -> np.ndarray:
    """Unlifted embeddings less the tokens ``(rows, T)``, in units of ``std``."""
    unlifted = array_function(autoencoder.unlifter)(embeddings)
    if autoencoder.categories:
        unlifted = autoencoder.probable(torch.from_numpy(unlifted)).numpy()
    apart: np.ndarray = unlifted * autoencoder.token_std.numpy()
    apart += autoencoder.token_mean.numpy()
    apart -= tokens
    apart /= std.numpy()
    return apart
