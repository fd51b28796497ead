"""The scores of all pairs during a rollout, kept from step to step or made anew at each."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from agents.networks.base import ILLEGAL, MergePolicy, NodePolicy, bounded
from agents.networks.context import ContextPolicy
from agents.rollouts.positions import PairTable, Positions, Step
from htm_env.autoencoder import HTMAutoencoder
from htm_env.forest import legal_pairs
from htm_env.membership import Membership, observed_extras
from htm_env.types import SampleRows, TokenBatch


@runtime_checkable
class PairScores(Protocol):
    """What a rollout asks at every step; the tables of nodes fill up meanwhile."""

    def at(self, step: Step, positions: Positions) -> Float[Tensor, "R W W"]:
        """The scores before the merge; illegal pairs far below all others."""

    def after(self, step: Step, children: Int64[Tensor, "R 2"], parent: Int64[Tensor, "R"]) -> None:
        """The merge was made: embedding and leaf count of ``parent`` are known."""


class KeptScores:
    """Of a policy to which a token looks the same whatever stands beside it.

    Only the row and the column of the new token are scored after a merge.
    """

    def __init__(
        self,
        policy: NodePolicy,
        batch: TokenBatch,
        nodes: Float[Tensor, "B N D"],
        counts: Int64[Tensor, "B N"],
    ) -> None:
        slots, rows = batch.present.shape[1], SampleRows.of(batch)
        self.policy, self.nodes, self.counts = policy, nodes, counts
        leaves = policy.features(nodes[rows.first_rows, :slots], counts[rows.first_rows, :slots])
        self.halves = rows.spread(torch.cat([leaves.first, leaves.second], dim=2))
        """(B, P, 2 H) what a score needs of the token at each position: as first, as second."""
        scores = rows.spread(bounded(policy.scores(leaves.first, leaves.second)))
        self.table = PairTable(scores, batch.present, ILLEGAL)

    def at(self, step: Step, positions: Positions) -> Float[Tensor, "R W W"]:
        return self.table.view(step)

    def after(self, step: Step, children: Int64[Tensor, "R 2"], parent: Int64[Tensor, "R"]) -> None:
        row = step.rows
        new = self.policy.features(self.nodes[row, parent], self.counts[row, parent])
        self.halves[row, step.high] = self.halves[row, step.last]
        self.halves[row, step.low] = torch.cat([new.first, new.second], dim=1)
        first, second = self.halves[: len(row), : step.width].chunk(2, dim=2)
        self.table.replace(
            step,
            bounded(self.policy.scores(new.first[:, None], second)[:, 0]),
            bounded(self.policy.scores(first, new.second[:, None])[..., 0]),
        )


class FreshScores:
    """Of a policy to which a token looks different in another population."""

    def __init__(
        self,
        policy: ContextPolicy,
        leaves: Float[Tensor, "B P T"],
        present: Bool[Tensor, "B P"],
        nodes: Float[Tensor, "B N D"],
        counts: Int64[Tensor, "B N"],
    ) -> None:
        slots = present.shape[1]
        self.policy, self.nodes, self.counts = policy, nodes, counts
        self.leaves, self.present = leaves, present
        self.sets: Tensor | None = None
        """(B, N, P) the tokens under every node, for policies that ask."""
        if policy.observes:
            self.sets = present.new_zeros(len(nodes), 2 * slots - 1, slots)
            self.sets[:, :slots] = torch.diag_embed(present)
        self.states: Tensor | None = None
        """(B, N, ...) what every node's part of the state is, once there is one."""

    def at(self, step: Step, positions: Positions) -> Float[Tensor, "R W W"]:
        here = positions.here[: len(step.rows), : step.width]
        return self.look(here).masked_fill(~legal_pairs(here >= 0), ILLEGAL)

    def after(self, step: Step, children: Int64[Tensor, "R 2"], parent: Int64[Tensor, "R"]) -> None:
        self.merged(children, parent)

    def look(
        self, here: Int64[Tensor, "R W"], candidates: Int64[Tensor, "R W k"] | None = None
    ) -> Float[Tensor, "R W C"]:
        """The scores, legal or not, of the first ``R`` episodes, whose nodes are ``here``: of all
        pairs, or of the candidates."""
        size = len(here)
        observation = population_observation(
            self.policy,
            here,
            self.nodes[:size],
            self.counts[:size],
            None if self.sets is None else self.sets[:size],
            self.leaves[:size],
            self.present[:size],
        )
        if candidates is not None:
            observation["candidates"] = candidates
        state = None if self.states is None else node_states(self.states, here)
        look = self.policy.look(observation, state)
        if look.state is not None:
            if self.states is None:
                self.states = look.state.new_zeros(*self.counts.shape, *look.state.shape[2:])
            row, position = (here >= 0).nonzero(as_tuple=True)
            self.states[row, here[row, position]] = look.state[row, position]
        return look.scores

    def merged(self, children: Int64[Tensor, "R 2"], parent: Int64[Tensor, "R"]) -> None:
        """What stands under the new nodes of the first ``R`` episodes, and their states."""
        row = torch.arange(len(children), device=children.device)
        first, second = children.unbind(1)
        if self.sets is not None:
            self.sets[row, parent] = self.sets[row, first] | self.sets[row, second]
        if self.states is not None:
            merged = self.policy.encoder.merged_state
            self.states[row, parent] = merged(self.states[row, first], self.states[row, second])


def pair_scores(
    policy: MergePolicy,
    autoencoder: HTMAutoencoder,
    batch: TokenBatch,
    nodes: Float[Tensor, "B N D"],
    counts: Int64[Tensor, "B N"],
) -> PairScores:
    """The scores of a rollout, of either kind; its nodes hold the leaves, and will hold the rest.

    Raises ``TypeError`` for a policy network that is neither.
    """
    if isinstance(policy, NodePolicy):
        return KeptScores(policy, batch, nodes, counts)
    if isinstance(policy, ContextPolicy):
        leaves = autoencoder.standardise(batch.tokens)
        return FreshScores(policy, leaves, batch.present, nodes, counts)
    raise TypeError(f"{type(policy).__name__} is neither a NodePolicy nor a ContextPolicy")


def node_states(states: Tensor, here: Int64[Tensor, "B W"]) -> Tensor:
    """``(B, W, ...)`` the parts of the nodes that ``here`` names; zeros for none."""
    rows = torch.arange(len(here), device=here.device)[:, None]
    empty = (here < 0).view(*here.shape, *(1 for _ in states.shape[2:]))
    return states[rows, here.clamp(min=0)].masked_fill(empty, 0.0)


def population_observation(
    policy: ContextPolicy,
    here: Int64[Tensor, "B W"],
    nodes: Float[Tensor, "B N D"],
    counts: Int64[Tensor, "B N"],
    sets: Bool[Tensor, "B N P"] | None,
    leaves: Float[Tensor, "B P T"],
    present: Bool[Tensor, "B P"],
) -> dict[str, Tensor]:
    """What the environment would show of populations; ``here`` names their nodes, -1 for none."""
    active, node = here >= 0, here.clamp(min=0)
    rows = torch.arange(len(here), device=here.device)[:, None]
    observation = {
        "tokens": nodes[rows, node],
        "active": active,
        "leaf_counts": counts[rows, node] * active,
    }
    if sets is not None:
        members = sets[rows, node] & active[..., None]
        observation |= observed_extras(Membership(leaves, present, members), policy.observes)
    return observation
