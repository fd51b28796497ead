"""The natively batched environment, with what joint training and an exact resume ask of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from agents.rollouts.rollout import follow
from htm_env.autoencoder import HTMAutoencoder
from htm_env.candidates.neighbours import Nearest
from htm_env.forest import Forest, children_table
from htm_env.population import Population, start_population, subtree_errors
from htm_env.types import TokenBatch
from htm_env.vector_env import HTMVectorEnv


@torch.no_grad()
def reencoded(
    autoencoder: HTMAutoencoder,
    population: Population,
    std: Float[Tensor, "T"],
    nearest: Nearest | None = None,
) -> Population:
    """The same forests through the autoencoder as it is now: its weights may have moved.

    The candidates are those that the same merges lead to, ``nearest`` being the environment's.
    """
    batch, forest = population.batch, population.forest
    fresh = start_population(autoencoder, batch, std, nearest)
    if not forest.num_merges.any():
        return fresh
    nodes = follow(autoencoder, batch, forest.merges).nodes  # (B, N, D)
    row, slot = forest.active.nonzero(as_tuple=True)
    node = forest.slots[row, slot]
    embeddings = torch.zeros_like(fresh.embeddings)
    embeddings[row, slot] = nodes[row, node]
    errors = torch.zeros_like(fresh.squared_errors)
    errors[row, slot] = subtree_errors(
        autoencoder,
        nodes[row, node],
        row * nodes.shape[1] + node,
        children_table(forest.merges, forest.num_leaves),
        batch,
        std,
    )
    neighbourhood = fresh.neighbourhood
    if neighbourhood is not None:
        neighbourhood = neighbourhood.followed(nodes, forest.merges, forest.num_leaves)
    return replace(
        fresh,
        forest=forest,
        embeddings=embeddings,
        leaf_counts=population.leaf_counts,
        squared_errors=errors,
        neighbourhood=neighbourhood,
    )


class ResumableVectorEnv(HTMVectorEnv):
    """:class:`htm_env.vector_env.HTMVectorEnv` whose episodes can be refreshed, saved and restored.

    Joint training moves the autoencoder while episodes are in progress. :meth:`refresh` makes what
    is observed and rewarded a function of the sample, its merges and the weights as they are now,
    so that nothing else has to be saved.
    """

    @property
    def population(self) -> Population:
        """The episodes in progress; ``ResetNeeded`` before the first reset."""
        return self._episodes()

    def refresh(self) -> dict[str, np.ndarray]:
        """Encode all episodes anew with the autoencoder as it is now; returns the observation."""
        simulator = self.simulator
        self._population = reencoded(
            simulator.autoencoder, self._episodes(), simulator.std, simulator.nearest
        )
        return simulator.observation(self._population)

    def state(self) -> dict[str, Any]:
        """The episodes in progress and every copy's generator, as a checkpoint takes them.

        Embeddings and candidates are left out: they follow from the weights and the merges (see
        :meth:`refresh`).
        """
        population = self._episodes()
        return {
            "batch": [tensor.clone() for tensor in population.batch[:4]],
            "slots": population.forest.slots.clone(),
            "merges": population.forest.merges.clone(),
            "invalid_actions": torch.from_numpy(self._invalid_actions.copy()),
            "generators": [generator.bit_generator.state for generator in self._generators],
        }

    def restore(self, state: dict[str, Any]) -> dict[str, np.ndarray]:
        """Continue from what :meth:`state` gave, as after a refresh; returns the observation.

        Raises ``ValueError`` for the state of another number of copies.
        """
        if len(state["generators"]) != self.num_envs:
            raise ValueError(
                f"the state has {len(state['generators'])} copies; expected {self.num_envs}"
            )
        device = self.simulator.device
        batch = TokenBatch(*state["batch"]).to(device)
        merges = state["merges"].to(device)
        started = start_population(self.simulator.autoencoder, batch, self.simulator.std)
        slots = state["slots"].to(device)
        forest = Forest(slots, merges, batch.num_tokens, (merges[..., 0] >= 0).sum(1))
        node = slots.clamp(min=0)
        counts = follow(self.simulator.autoencoder, batch, merges).leaf_counts.gather(1, node)
        self._population = replace(started, forest=forest, leaf_counts=counts * forest.active)
        self._invalid_actions = state["invalid_actions"].cpu().numpy().copy()
        self._ended = np.zeros(self.num_envs, bool)
        for generator, saved in zip(self._generators, state["generators"], strict=True):
            generator.bit_generator.state = saved
        return self.refresh()
