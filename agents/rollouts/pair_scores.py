"""The scores of ordered pairs while episodes are merged, and the positions of the active nodes.

The active nodes of a sample are at its first positions: a parent takes the lower position of its
pair, the last active node the higher one. Inside, the samples are sorted by how many merges they
make, so that those that are still running are the first rows. What is computed at a step is then a
corner ``[:rows, :width, :width]`` of a table of pairs, and shrinks with the populations.

A pair scorer's scores are kept from step to step (:class:`KeptPairScores`), those of a policy with
a context encoder are made anew at each (:class:`FreshScores`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from agents.encoders.base import ContextEncoder
from htm_env.autoencoder import TreeEncoder
from htm_env.forest import legal_pairs
from htm_env.membership import Membership, observed_extras
from htm_env.types import NONE, SampleRows, TokenBatch

ILLEGAL = -1e9
"""The score of an illegal pair: its probability is exactly 0, and nothing becomes NaN."""


def bounded(scores: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Scores that leave every legal pair above every illegal one, and 0 where they are NaN.

    An autoencoder that diverges then gives bad merges, but legal ones; the updates on them are
    skipped and counted where the losses are checked.
    """
    return scores.nan_to_num(0.0).clamp(ILLEGAL / 10, -ILLEGAL / 10)


def bounded_array(scores: np.ndarray) -> np.ndarray:
    """The same of an array."""
    if np.abs(scores).max(initial=0.0) <= -ILLEGAL / 10:  # False where one is NaN
        return scores
    return np.nan_to_num(scores, nan=0.0).clip(ILLEGAL / 10, -ILLEGAL / 10)


# ---------------------------------------------------------------- what policy networks offer


@dataclass(frozen=True)
class Features:
    """Features of tokens for a pair scorer, each by itself."""

    first: Float[Tensor, "*batch H"]
    """Features of a token that comes first in a pair, for scores."""
    second: Float[Tensor, "*batch H"]
    """... and of one that comes second."""
    hidden: Float[Tensor, "*batch V"] | None = None
    """Features for values; None for both of these."""

    @property
    def pooled(self) -> Float[Tensor, "*batch V"]:
        """Features that are averaged over the tokens of a state for its value."""
        if self.hidden is None:
            return torch.cat([self.first, self.second], dim=-1)
        return self.hidden


class PointerWeights(NamedTuple):
    """The weights of a pointer policy; those of the layers that read a token and its count have a
    row for each number of the embedding, and one for the count."""

    body: np.ndarray
    body_bias: np.ndarray
    residual: np.ndarray
    residual_bias: np.ndarray
    head: np.ndarray
    head_bias: np.ndarray
    skip: np.ndarray


@runtime_checkable
class ArrayScorer(Protocol):
    """A pair scorer on numpy arrays."""

    symmetric: bool
    """True <--> the order within a pair changes no score."""

    def features(
        self, embeddings: np.ndarray, leaf_counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features of tokens, ``(R, D)`` with ``(R,)`` leaves, as first and as second of a pair:
        ``(R, H)`` each."""

    def scores(self, first: np.ndarray, second: np.ndarray, needed: np.ndarray) -> np.ndarray:
        """Scores of ``(R, I, H)`` with ``(R, J, H)``, as ``(R, I, J)``; anything finite where they
        are not ``needed``, bool of the same shape."""

    def paired_scores(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Scores of ``(N, H)`` each with the one in its place, as ``(N,)``."""

    def weights(self) -> PointerWeights | None:
        """The weights of a pointer policy, which a compiled rollout takes; None of any other."""


class ThroughTorch:
    """Any pair scorer on arrays, by its own functions of tensors."""

    def __init__(self, policy: PairScorer) -> None:
        self.policy, self.symmetric = policy, policy.symmetric

    def features(
        self, embeddings: np.ndarray, leaf_counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        found = self.policy.features(torch.from_numpy(embeddings), torch.from_numpy(leaf_counts))
        return found.first.numpy(), found.second.numpy()

    def scores(self, first: np.ndarray, second: np.ndarray, needed: np.ndarray) -> np.ndarray:
        tensors = torch.from_numpy(first), torch.from_numpy(second)
        found = self.policy.node_scores(*tensors, lambda: torch.from_numpy(needed))
        scores: np.ndarray = found.numpy()
        return scores

    def paired_scores(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        found = self.policy.paired_scores(torch.from_numpy(first), torch.from_numpy(second))
        scores: np.ndarray = found.numpy()
        return scores

    def weights(self) -> None:
        return None


class PairArrays(NamedTuple):
    """Features and scores of all pairs of positions before the first merge, on arrays."""

    scorer: ArrayScorer
    first: np.ndarray
    """(B, P, H) features of the token at each position as first of a pair."""
    second: np.ndarray
    """(B, P, H) the same as second."""
    scores: np.ndarray
    """(B, P, P) illegal ones at ``ILLEGAL``."""


@runtime_checkable
class PairScorer(Protocol):
    """A network that gives a token the same features in every population."""

    symmetric: bool
    """True <--> the order within a pair changes no score."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def features(
        self, embeddings: Float[Tensor, "*batch D"], leaf_counts: Int[Tensor, "*batch"]
    ) -> Features:
        """Features of each token for scores and values."""

    def scores(
        self, first: Float[Tensor, "B I H"], second: Float[Tensor, "B J H"]
    ) -> Float[Tensor, "B I J"]:
        """The score of merging each of ``first`` with each of ``second``, in this order."""

    def paired_scores(
        self, first: Float[Tensor, "*pairs H"], second: Float[Tensor, "*pairs H"]
    ) -> Float[Tensor, "*pairs"]:
        """The score of merging each of ``first`` with the one of ``second`` in its place."""

    def node_scores(
        self,
        first: Float[Tensor, "B I H"],
        second: Float[Tensor, "B J H"],
        needed: Callable[[], Tensor],
    ) -> Float[Tensor, "B I J"]: ...

    def on_arrays(self) -> ArrayScorer:
        """The same scorer on numpy arrays, with its weights as they are now."""

    def values(
        self, pooled: Float[Tensor, "B N V"], members: Float[Tensor, "B S N"]
    ) -> Float[Tensor, "B S"]: ...

    def values_along(
        self,
        pooled: Float[Tensor, "B N V"],
        merges: Int64[Tensor, "B M 2"],
        num_leaves: Int64[Tensor, "B"],
    ) -> Float[Tensor, "B M"]: ...


@runtime_checkable
class StateScorer(Protocol):
    """Any policy network (:class:`agents.networks.base.MergePolicy`): scores of one observation."""

    observes: tuple[str, ...]

    def state_scores(
        self, observation: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "B P C"], Float[Tensor, "B"]]: ...


class ContextOutput(NamedTuple):
    """Scores and values of ``B`` populations."""

    scores: Float[Tensor, "B P C"]
    """Scores of ordered pairs of slots, legal or not: all of them, or the candidates."""
    values: Float[Tensor, "B"]
    losses: dict[str, Float[Tensor, ""]]
    """Losses of the encoder, already weighted."""
    state: Tensor | None
    """``(B, P, ...)`` what the next evaluation continues from, of an encoder that carries one."""


@runtime_checkable
class ContextScorer(Protocol):
    """A network that scores the pairs of a population in its context
    (:class:`agents.networks.context.ContextPolicy`)."""

    observes: tuple[str, ...]
    encoder: ContextEncoder

    def contextual_scores(
        self,
        observation: dict[str, Tensor],
        state: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ContextOutput: ...


# ---------------------------------------------------------------- positions of nodes


@dataclass
class Step:
    """One merge of every sample that is still running."""

    time: int
    rows: Int64[Tensor, "R"]


@dataclass
class PositionStep(Step):
    """One merge of every sample, by the positions of its nodes."""

    width: int
    """The largest population among the rows."""
    low: Tensor
    """The lower position of the pair, then the parent's (set by :meth:`Positions.merge`)."""
    high: Tensor
    """The higher position of the pair, then that of the node that stood last."""
    last: Int64[Tensor, "R"]
    """The last position that is occupied before the merge."""


def running_rows(to_make: Int64[Tensor, "B"], steps: int) -> list[int]:
    """Numbers of episodes that make a merge at each step, as long as there is one."""
    time = torch.arange(steps, device=to_make.device)
    return [rows for rows in (to_make[:, None] > time).sum(0).tolist() if rows]


class Positions:
    """Follows the positions of nodes through the merges of a batch.

    Not the slots of :class:`htm_env.forest.Forest`: there a population keeps its holes, and the
    tables of pairs their size, whereas here both shrink with every merge.

    Args:
        present: True <--> a token is here.
        to_make: how many merges each sample makes; must fall from row to row.
    """

    def __init__(self, present: Bool[Tensor, "B P"], to_make: Int64[Tensor, "B"]) -> None:
        size, slots = present.shape
        device = present.device
        position = torch.arange(slots, device=device)
        self.num_leaves = present.sum(1)
        self.here = position.expand(size, slots).masked_fill(~present, NONE)
        """The node at each position; -1 where there is none."""
        self.merges = self.here.new_full((size, slots - 1, 2), NONE)
        self.active = self.here.new_full((size, slots - 1, slots), NONE)
        """The active nodes before each merge, by position; -1 pads."""
        self.running = running_rows(to_make, slots - 1)
        """Numbers of episodes that make a merge at each step."""
        self.most = int(self.num_leaves.max())
        """Tokens of the largest sample."""
        self._rows = torch.arange(size, device=device)

    def steps(self) -> Iterator[PositionStep]:
        """The merges to make; each has to be made with :meth:`merge` before the next."""
        for time, running in enumerate(self.running):
            rows, last = self._rows[:running], self.num_leaves[:running] - time - 1
            self.active[:running, time] = self.here[:running]
            yield PositionStep(time, rows, self.most - time, rows, rows, last)

    def merge(
        self, step: PositionStep, first: Int64[Tensor, "R"], second: Int64[Tensor, "R"]
    ) -> tuple[Int64[Tensor, "R 2"], Int64[Tensor, "R"]]:
        """Merge the nodes at two positions of every row; returns the children and the parent."""
        here = self.here[: len(step.rows)]
        step.low, step.high = torch.minimum(first, second), torch.maximum(first, second)
        children = here.gather(1, torch.stack([first, second], dim=1))
        parent = self.num_leaves[: len(here)] + step.time
        self.merges[: len(here), step.time] = children
        here.scatter_(1, step.high[:, None], here.gather(1, step.last[:, None]))
        here.scatter_(1, step.last[:, None], NONE)
        here.scatter_(1, step.low[:, None], parent[:, None])
        return children, parent

    def history(self) -> tuple[Int64[Tensor, "B M P"], None]:
        """The active nodes before each merge, and no candidates."""
        return self.active, None

    @classmethod
    def of(cls, present: Bool[Tensor, "B P"], merges: Int64[Tensor, "B M 2"]) -> Positions:
        """Follow merges that are given; rows may be in any order, and stay there."""
        to_make = (merges[..., 0] >= 0).sum(1)
        order = to_make.argsort(descending=True, stable=True)
        sorted_merges = merges[order]
        positions = cls(present[order], to_make[order])
        for step in positions.steps():
            first, second = positions.find(step, sorted_merges)
            positions.merge(step, first, second)
        back = order.argsort()
        positions.active, positions.here = positions.active[back], positions.here[back]
        positions.merges, positions.num_leaves = merges, positions.num_leaves[back]
        return positions

    def find(self, step: PositionStep, merges: Int64[Tensor, "B M 2"]) -> tuple[Tensor, Tensor]:
        """The positions of the two nodes that ``merges`` merge now."""
        here = self.here[: len(step.rows), : step.width, None]
        found = (here == merges[: len(step.rows), step.time, None]).int().argmax(1)  # (R, 2)
        return found[:, 0], found[:, 1]


class PairTable:
    """A value for every ordered pair of positions, kept in step with :class:`Positions`."""

    def __init__(
        self, values: Float[Tensor, "B P P"], present: Bool[Tensor, "B P"], nothing: float
    ) -> None:
        """``nothing`` is the value of a position paired with itself or with an empty one."""
        self.values, self.nothing = values, nothing
        self.values.masked_fill_(~(present[:, :, None] & present[:, None, :]), nothing)
        self.values.diagonal(dim1=1, dim2=2).fill_(nothing)
        self._position = torch.arange(values.shape[1], device=values.device)

    def view(self, step: PositionStep) -> Float[Tensor, "R W W"]:
        """The values of the rows that are running, at the positions that are occupied."""
        return self.values[: len(step.rows), : step.width, : step.width]

    def others(self, step: PositionStep) -> Bool[Tensor, "R W"]:
        """True <--> a node is at the position after the merge, and is not the parent."""
        here = self._position[: step.width]
        return (here < step.last[:, None]) & (here != step.low[:, None])

    def replace(
        self, step: PositionStep, as_first: Float[Tensor, "R W"], as_second: Float[Tensor, "R W"]
    ) -> None:
        """After a merge: the last node moves up, and the parent's row and column are given."""
        values, rows, width = self.values[: len(step.rows)], step.rows, step.width
        values[rows, step.high] = values[rows, step.last]
        columns = (len(rows), values.shape[1], 1)
        high, last = (at[:, None, None].expand(columns) for at in (step.high, step.last))
        values.scatter_(2, high, values.gather(2, last))
        none = ~self.others(step)
        values[rows, step.low, :width] = as_first.masked_fill(none, self.nothing)
        values[rows, :width, step.low] = as_second.masked_fill(none, self.nothing)
        values[rows, step.last] = self.nothing
        values.scatter_(2, last, self.nothing)


# ---------------------------------------------------------------- scores


@dataclass(frozen=True)
class NodeTables:
    """The nodes of the episodes of a batch; parents are written to them as they are made."""

    batch: TokenBatch
    standardised: Float[Tensor, "B P T"]
    """The samples' tokens."""
    embeddings: Float[Tensor, "B N D"]
    leaf_counts: Int64[Tensor, "B N"]
    """Tokens under every node; 0 for nodes that are not made yet."""

    @classmethod
    def of_leaves(cls, autoencoder: TreeEncoder, batch: TokenBatch) -> NodeTables:
        """Before the first merge, each sample's leaves lifted once."""
        (size, slots), rows = batch.present.shape, SampleRows.of(batch)
        standardised = autoencoder.standardise(batch.tokens)
        lifted = autoencoder.lifter(standardised[rows.first_rows])
        lifted = rows.spread(lifted) * batch.present[..., None]
        embeddings = lifted.new_zeros(size, 2 * slots - 1, lifted.shape[2])
        embeddings[:, :slots] = lifted
        counts = batch.num_tokens.new_zeros(size, 2 * slots - 1)
        counts[:, :slots] = batch.present.long()
        return cls(batch, standardised, embeddings, counts)


class PairScores(ABC):
    """Scores of ordered pairs before each merge; the tables of nodes fill up meanwhile."""

    @abstractmethod
    def at(self, step: Any) -> Float[Tensor, "R W C"]:
        """The scores before the merge, of every node with all others (C = W) or with its candidates
        (C = k); illegal pairs far below all others."""

    @abstractmethod
    def after(self, step: Any, children: Int64[Tensor, "R 2"], parent: Int64[Tensor, "R"]) -> None:
        """Follow the merge; embedding and leaf count of ``parent`` are known."""

    def on_arrays(self) -> PairArrays | None:
        """What a rollout on arrays goes on from; None where it has to be on tensors."""
        return None


class KeptPairScores(PairScores):
    """Scores of a pair scorer, kept from step to step.

    Only the row and the column of the new token are scored after a merge.
    """

    def __init__(self, policy: PairScorer, tables: NodeTables) -> None:
        nodes, counts, present = tables.embeddings, tables.leaf_counts, tables.batch.present
        slots, rows = present.shape[1], SampleRows.of(tables.batch)
        self.policy, self.nodes, self.counts = policy, nodes, counts
        leaves = policy.features(nodes[rows.first_rows, :slots], counts[rows.first_rows, :slots])
        self.halves = rows.spread(torch.cat([leaves.first, leaves.second], dim=2))
        """(B, P, 2 H) what a score needs of the token at each position: as first, as second."""
        legal = legal_pairs(present[rows.first_rows])
        scores = rows.spread(self._scores(leaves.first, leaves.second, legal))
        self.table = PairTable(scores, present, ILLEGAL)

    def at(self, step: PositionStep) -> Float[Tensor, "R W W"]:
        return self.table.view(step)

    def after(
        self, step: PositionStep, children: Int64[Tensor, "R 2"], parent: Int64[Tensor, "R"]
    ) -> None:
        row = step.rows
        new = self.policy.features(self.nodes[row, parent], self.counts[row, parent])
        self.halves[row, step.high] = self.halves[row, step.last]
        self.halves[row, step.low] = torch.cat([new.first, new.second], dim=1)
        first, second = self.halves[: len(row), : step.width].chunk(2, dim=2)
        others = self.table.others(step)
        as_first = self._scores(new.first[:, None], second, others[:, None])[:, 0]
        as_second = as_first
        if not self.policy.symmetric:
            as_second = self._scores(first, new.second[:, None], others[:, :, None])[..., 0]
        self.table.replace(step, as_first, as_second)

    def on_arrays(self) -> PairArrays | None:
        if self.halves.device.type != "cpu":
            return None
        first, second = (half.contiguous().numpy() for half in self.halves.chunk(2, dim=2))
        return PairArrays(self.policy.on_arrays(), first, second, self.table.values.numpy())

    def _scores(self, first: Tensor, second: Tensor, needed: Tensor) -> Tensor:
        return bounded(self.policy.node_scores(first, second, lambda: needed))


class FreshScores(PairScores):
    """Scores of a policy with a context encoder; what to score is up to :meth:`at`."""

    def __init__(self, policy: ContextScorer, tables: NodeTables) -> None:
        self.policy, self.tables = policy, tables
        present = tables.batch.present
        self.sets: Tensor | None = None
        """(B, N, P) the tokens under every node, for policies that ask."""
        if policy.observes:
            slots = present.shape[1]
            self.sets = present.new_zeros(len(present), 2 * slots - 1, slots)
            self.sets[:, :slots] = torch.diag_embed(present)
        self.states: Tensor | None = None
        """(B, N, ...) what every node's part of the state is, once there is one."""

    def scores_of(
        self, here: Int64[Tensor, "R W"], candidates: Int64[Tensor, "R W k"] | None = None
    ) -> Float[Tensor, "R W C"]:
        """The scores, legal or not, of the first ``R`` episodes, whose nodes are ``here``: of all
        pairs, or of the candidates."""
        size = len(here)
        observation = population_observation(
            self.policy.observes,
            here,
            self.tables.embeddings[:size],
            self.tables.leaf_counts[:size],
            None if self.sets is None else self.sets[:size],
            self.tables.standardised[:size],
            self.tables.batch.present[:size],
        )
        if candidates is not None:
            observation["candidates"] = candidates
        state = None if self.states is None else node_states(self.states, here)
        output = self.policy.contextual_scores(observation, state)
        if output.state is not None:
            if self.states is None:
                self.states = output.state.new_zeros(
                    *self.tables.leaf_counts.shape, *output.state.shape[2:]
                )
            row, position = (here >= 0).nonzero(as_tuple=True)
            self.states[row, here[row, position]] = output.state[row, position]
        return output.scores

    def after(self, step: Any, children: Int64[Tensor, "R 2"], parent: Int64[Tensor, "R"]) -> None:
        row, (first, second) = step.rows, children.unbind(1)
        if self.sets is not None:
            self.sets[row, parent] = self.sets[row, first] | self.sets[row, second]
        if self.states is not None:
            merged = self.policy.encoder.merged_state
            self.states[row, parent] = merged(self.states[row, first], self.states[row, second])


class FreshPairScores(FreshScores):
    """Contextual scores of all pairs of a population."""

    def __init__(self, policy: ContextScorer, tables: NodeTables, positions: Positions) -> None:
        super().__init__(policy, tables)
        self.positions = positions

    def at(self, step: PositionStep) -> Float[Tensor, "R W W"]:
        here = self.positions.here[: len(step.rows), : step.width]
        return self.scores_of(here).masked_fill(~legal_pairs(here >= 0), ILLEGAL)


def node_states(states: Tensor, here: Int64[Tensor, "B W"]) -> Tensor:
    """``(B, W, ...)`` the parts of the nodes that ``here`` names; zeros for none."""
    rows = torch.arange(len(here), device=here.device)[:, None]
    empty = (here < 0).view(*here.shape, *(1 for _ in states.shape[2:]))
    return states[rows, here.clamp(min=0)].masked_fill(empty, 0.0)


def population_observation(
    observes: tuple[str, ...],
    here: Int64[Tensor, "B W"],
    nodes: Float[Tensor, "B N D"],
    counts: Int64[Tensor, "B N"],
    sets: Bool[Tensor, "B N P"] | None,
    leaves: Float[Tensor, "B P T"],
    present: Bool[Tensor, "B P"],
) -> dict[str, Tensor]:
    """Observations of populations as the environment's; ``here`` names their nodes, -1 for none."""
    active, node = here >= 0, here.clamp(min=0)
    rows = torch.arange(len(here), device=here.device)[:, None]
    observation = {
        "tokens": nodes[rows, node],
        "active": active,
        "leaf_counts": counts[rows, node] * active,
    }
    if sets is not None:
        members = sets[rows, node] & active[..., None]
        observation |= observed_extras(Membership(leaves, present, members), observes)
    return observation
