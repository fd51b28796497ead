"""Episodes of a policy, many at once: their merges, and what the policy made of each.

What is computed shrinks with the populations (see ``pair_scores.py`` and ``candidates.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from types import ModuleType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from agents.rollouts.candidates import CandidateLists, candidates_along
from agents.rollouts.pair_scores import (
    ILLEGAL,
    ArrayScorer,
    NodeTables,
    PairArrays,
    PairScores,
    PointerWeights,
    Positions,
    bounded_array,
)
from htm_env.autoencoder import PackedWeights, TreeEncoder, packed_function, packed_weights
from htm_env.candidates import CandidatePairs, Nearest
from htm_env.forest import forest_levels, leaf_counts
from htm_env.types import NONE, Batched, TokenBatch

TINY = 1e-30
"""Below every probability that matters; keeps the logarithm of an illegal pair's finite."""


# ---------------------------------------------------------------- episodes


@dataclass(frozen=True)
class Episodes(Batched):
    """``B`` episodes, whoever chose their merges; no gradients."""

    merges: Int64[Tensor, "B M 2"]
    nodes: Float[Tensor, "B N D"]
    """The embedding of every node; zeros for nodes that were not made."""
    leaf_counts: Int64[Tensor, "B N"]
    """Tokens under every node; 0 for nodes that were not made."""
    positions: Int64[Tensor, "B M P"] | None = None
    """A stored copy of :attr:`active`; None: it is computed from the merges."""
    candidates: CandidatePairs | None = None
    """The pairs that could be merged; None for all of them."""

    @property
    def steps(self) -> Bool[Tensor, "B M"]:
        """True <--> a merge was made."""
        return self.merges[..., 0] >= 0

    @property
    def num_active(self) -> Int64[Tensor, "B M"]:
        """Nodes that are active before each merge; 0 in padding."""
        made = torch.arange(self.merges.shape[1], device=self.merges.device)
        return (self.num_leaves[:, None] - made) * self.steps

    @property
    def num_leaves(self) -> Int64[Tensor, "B"]:
        """Tokens of each sample: only they are nodes with one leaf."""
        return (self.leaf_counts == 1).sum(1)

    @cached_property
    def active(self) -> Int64[Tensor, "B M P"]:
        """The active nodes before each merge, at the first positions; -1 pads."""
        if self.positions is not None:
            return self.positions
        present = self.leaf_counts[:, : self.merges.shape[1] + 1] == 1  # P = M + 1
        return Positions.of(present, self.merges).active

    def open_steps(self, ordered: bool) -> Bool[Tensor, "B M"]:
        """True <--> there was more than one choice; two nodes leave only their order to choose,
        which counts as a choice where it is ``ordered``, and among candidates always."""
        return self.num_active > (2 if self.candidates is None and not ordered else 1)

    def most_entropy(self, ordered: bool) -> Float[Tensor, "B M"]:
        """Entropy of choosing uniformly, in nats; 1 where there is only one choice."""
        if self.candidates is None:
            return most_entropy(self.num_active, ordered)
        number = self.candidates.numbers
        return torch.where(number > 1, number.clamp(min=2).log(), 1.0)

    @property
    def members(self) -> Float[Tensor, "B M N"]:
        """1 where the node is active before the merge."""
        return membership(self.active, self.nodes.shape[1]).to(self.nodes.dtype)

    @property
    def coactive(self) -> Bool[Tensor, "B N N"]:
        """True <--> both nodes were active, and could be merged, before the same merge."""
        return (self.members.transpose(1, 2) @ self.members) > 0

    @property
    def exists(self) -> Bool[Tensor, "B N"]:
        return self.leaf_counts > 0


def membership(active: Int64[Tensor, "B M P"], num_nodes: int) -> Bool[Tensor, "B M N"]:
    """True <--> the node is among those that are active before the merge; -1 pads ``active``."""
    batch, steps, _ = active.shape
    padded = active.new_zeros((batch, steps, num_nodes + 1), dtype=torch.bool)
    return padded.scatter_(2, active % (num_nodes + 1), True)[..., :-1]  # -1 lands in the pad


class MergeTerms(NamedTuple):
    """Every merge of some episodes under one policy; numbers without gradients, 0 in padding."""

    log_prob: Float[Tensor, "B M"]
    """Log-probability of the merge among all choices."""
    log_total: Float[Tensor, "B M"]
    """Logarithm of the sum of the exponentials of the scores of all choices."""
    entropy: Float[Tensor, "B M"]
    """Entropy of the choice over that of a uniform one, in [0, 1] (see :func:`choices`); where it
    was not measured, minus the log-probability of what was drawn, of which it is the mean."""

    def rows(self, index: Tensor | slice) -> MergeTerms:
        """Terms of the episodes that ``index`` selects."""
        return MergeTerms(*(values[index] for values in self))


def mean_entropy(episodes: Episodes, terms: MergeTerms, ordered: bool) -> float:
    """The mean normalised entropy of the choices that were more than one."""
    return float(terms.entropy.sum() / episodes.open_steps(ordered).sum().clamp(min=1))


@runtime_checkable
class Network(Protocol):
    """Interface of a policy network in a rollout: its scores, step by step."""

    def pair_scores(self, tables: NodeTables, positions: Positions) -> PairScores: ...

    def candidate_scores(self, tables: NodeTables, lists: CandidateLists) -> PairScores: ...


# ---------------------------------------------------------------- choosing a pair


def choices(
    scores: Float[Tensor, "R W C"], ordered: bool
) -> tuple[Float[Tensor, "R W C"], Float[Tensor, "R"]]:
    """The probability of every ordered pair of each sample, and the entropy in nats, from the
    scores of every token with all others (C = W), or with its candidates (C = k).

    ``ordered`` counts ``(i, j)`` and ``(j, i)`` as two choices. Otherwise they are one, which needs
    all pairs: which tokens to merge is then worth exploring, which of them comes first is not.
    """
    probability = probabilities(scores)
    choice = probability if ordered else probability + probability.transpose(1, 2)
    log_choice = choice.clamp_min(TINY).log_()
    entropy = -torch.linalg.vecdot(probability.flatten(1), log_choice.flatten(1))
    return probability, entropy


def probabilities(scores: Float[Tensor, "R W C"]) -> Float[Tensor, "R W C"]:
    """Softmax over all pairs of a sample; exactly 0 where probabilities are too small to matter.

    Numbers so small that they are no normal ones would make everything that follows slow.
    """
    probability = scores.flatten(1).softmax(1)
    return torch.nn.functional.threshold(probability, TINY, 0.0, inplace=True).view_as(scores)


def choose_pairs(
    probability: Float[Tensor, "R W C"], draws: Float64[Tensor, "2 R"] | None
) -> tuple[Int64[Tensor, "R"], Int64[Tensor, "R"], Float[Tensor, "R"]]:
    """A row and a column a sample, and the logarithm of their probability: drawn by it, from two
    numbers in [0, 1) each, or without ``draws`` the most likely.

    Drawn in two stages, the first position and then the second given the first.
    """
    rows = torch.arange(len(probability), device=probability.device)
    if draws is None:
        pair, width = probability.flatten(1).argmax(1), probability.shape[2]
        first, second = pair // width, pair % width
    else:
        first = _drawn(probability.sum(2), draws[0])
        second = _drawn(probability[rows, first], draws[1])
    return first, second, probability[rows, first, second].log()


def _drawn(weights: Float[Tensor, "R C"], draw: Float64[Tensor, "R"]) -> Int64[Tensor, "R"]:
    """A column a row, by weight: the one that takes the running total beyond this share of the
    whole."""
    summed = weights.cumsum(1, dtype=torch.float64)
    return (summed > draw[:, None] * summed[:, -1:]).int().argmax(1)


def most_entropy(num_active: Int64[Tensor, "*batch"], ordered: bool) -> Float[Tensor, "*batch"]:
    """The entropy of choosing uniformly, in nats; 1 where there is only one choice."""
    pairs = num_active * (num_active - 1) // (1 if ordered else 2)
    return torch.where(pairs > 1, pairs.clamp(min=2).log(), 1.0)


class Deviation(NamedTuple):
    """One merge of each episode that is not the best one."""

    step: Int64[Tensor, "B"]
    """When."""
    rank: Int64[Tensor, "B"]
    """The pair that is taken: 0 the best, 1 the second best; the last where there are fewer."""

    def rows(self, index: Tensor) -> Deviation:
        """Deviations of some episodes."""
        return Deviation(self.step[index], self.rank[index])

    def chosen(
        self,
        time: int,
        scores: Float[Tensor, "R A C"],
        first: Int64[Tensor, "R"],
        second: Int64[Tensor, "R"],
    ) -> tuple[Int64[Tensor, "R"], Int64[Tensor, "R"]]:
        """Choices at this step of the first ``R`` episodes: row and column of the scores,
        those given for all who do not deviate now.

        Illegal choices have scores far below all others, and are never taken.
        """
        now = (self.step[: len(first)] == time).nonzero()[:, 0]
        if not len(now):
            return first, second
        flat, width = scores[now].flatten(1), scores.shape[2]
        rank = self.rank[now].minimum((flat > ILLEGAL / 2).sum(1) - 1)
        other = flat.topk(int(rank.max()) + 1, dim=1).indices.gather(1, rank[:, None])[:, 0]
        return first.index_copy(0, now, other // width), second.index_copy(0, now, other % width)


# ---------------------------------------------------------------- making episodes


class Choices(NamedTuple):
    """What was chosen in the episodes of a rollout; 0 in padding."""

    log_prob: Float[Tensor, "B M"]
    """Log-probability of the merge among all choices."""
    log_total: Float[Tensor, "B M"]
    """Logarithm of the sum of the exponentials of the scores of all choices."""
    turned: Float[Tensor, "B M"]
    """Log-probability of the merge with its children exchanged, where entropies need it."""
    nats: Float[Tensor, "B M"]
    """Entropy of the choice, where it is measured."""


@torch.no_grad()
def rollout(
    autoencoder: TreeEncoder,
    network: Network,
    batch: TokenBatch,
    generator: torch.Generator,
    *,
    greedy: bool = False,
    num_merges: Int64[Tensor, "B"] | None = None,
    ordered_entropy: bool = True,
    measure_entropy: bool = True,
    nearest: Nearest | None = None,
    deviation: Deviation | None = None,
) -> tuple[Episodes, MergeTerms]:
    """Let ``network`` merge every sample of ``batch``; its terms are the behaviour policy's.

    ``greedy`` takes the best pair instead of sampling; ``num_merges`` stops earlier than at one
    root; ``ordered_entropy`` says whether the order within a pair counts as a choice;
    without ``measure_entropy``, which costs time at every step, entropies are estimated.
    ``nearest`` lets it choose among candidates only, whose order always counts as a choice. A
    ``deviation`` takes another pair at one step, where log-probability and total say nothing.
    """
    to_make = batch.num_tokens - 1
    if num_merges is not None:
        to_make = to_make.minimum(num_merges)
    order = to_make.argsort(descending=True, stable=True)
    batch, to_make, back = batch.rows(order), to_make[order], order.argsort()
    draws = None
    if not greedy:
        shape = 2, batch.present.shape[1] - 1, len(batch.present)
        draws = torch.rand(shape, generator=generator, dtype=torch.float64, device=order.device)
    tables = NodeTables.of_leaves(autoencoder, batch)
    board: Positions | CandidateLists
    arrays = None
    if nearest is None:
        board = positions = Positions(batch.present, to_make)
        scores = network.pair_scores(tables, positions)
        arrays = scores.on_arrays() if deviation is None else None
    else:
        place = tables.standardised, tables.embeddings
        board = CandidateLists(nearest, *place, batch.present, to_make)
        scores = network.candidate_scores(tables, board)
    ordered = ordered_entropy or nearest is not None
    if arrays is not None:
        rolled = ArrayRollout(autoencoder.merger, arrays, tables, positions)
        chosen = rolled.run(draws, measure_entropy, ordered)
    else:
        deviation = None if deviation is None else deviation.rows(order)
        chosen = _merge(
            autoencoder,
            tables,
            board,
            scores,
            draws,
            measure_entropy,
            ordered,
            deviation,
        )
    log_prob, log_total, turned, nats = chosen
    if not measure_entropy:
        nats = -log_prob
        if not ordered:
            nats = (nats - (turned - log_prob).exp().log1p()).clamp(min=0.0)
    made = Episodes(board.merges, tables.embeddings, tables.leaf_counts, *board.history())
    terms = MergeTerms(log_prob, log_total, nats / made.most_entropy(ordered_entropy))
    return made.rows(back), terms.rows(back)


def _merge(
    autoencoder: TreeEncoder,
    tables: NodeTables,
    board: Positions | CandidateLists,
    scores: PairScores,
    draws: Float64[Tensor, "2 M B"] | None,
    measure_entropy: bool,
    ordered: bool,
    deviation: Deviation | None,
) -> Choices:
    """Make all merges of the board, on tensors."""
    nodes, counts = tables.embeddings, tables.leaf_counts  # written in place; the scores read them
    log_prob, score, turned, nats = nodes.new_zeros(4, *board.merges.shape[:2]).unbind()
    for step in board.steps():
        now, row, running = scores.at(step), step.rows, len(step.rows)
        if measure_entropy:
            probability, nats[:running, step.time] = choices(now, ordered)
        else:  # it follows from the scores of what was drawn, after the last step
            probability = probabilities(now)
        drawn = None if draws is None else draws[:, step.time, :running]
        first, second, log_prob[:running, step.time] = choose_pairs(probability, drawn)
        if deviation is not None:
            first, second = deviation.chosen(step.time, now, first, second)
        score[:running, step.time] = now[row, first, second]
        if not (measure_entropy or ordered):
            turned[:running, step.time] = now[row, second, first]
        children, parent = board.merge(step, first, second)  # type: ignore[arg-type]
        nodes[row, parent] = autoencoder.merger(nodes[row[:, None], children].flatten(1))
        counts[row, parent] = counts[:running].gather(1, children).sum(1)
        scores.after(step, children, parent)
    log_total = score - log_prob
    return Choices(log_prob, log_total, turned - log_total, nats)


# ---------------------------------------------------------------- the same on numpy arrays

# A step of a rollout is many small operations, and most of its time goes into calls: one of torch
# takes microseconds before it computes anything, one of numpy a fraction of that. What a step needs
# to know of all pairs are sums over them, so exp(score - shift) of every pair is kept: a merge
# takes the exponentials of one new row and column, where a softmax takes those of all pairs.

FEWEST, MOST = 1e-8, 1e25
"""Bounds of the sum of a sample's weights, of which the best was 1 at first: outside of them the
weights are computed anew."""
RAREST = 1e-35
"""Weights below it are 0: numbers too small to be normal ones make all that follows slow."""


class ArrayRollout:
    """Episodes in progress, on the memory of the tables and positions, which it changes.

    Args:
        merger: the autoencoder's.
        arrays: features and scores before the first merge; changed in place.
        tables: the nodes; parents are written.
        positions: before the first merge; brought to the end.
    """

    def __init__(
        self,
        merger: Callable[[Tensor], Tensor],
        arrays: PairArrays,
        tables: NodeTables,
        positions: Positions,
    ) -> None:
        self.merger, self.tables, self.positions = merger, tables, positions
        self.nodes, self.counts = tables.embeddings.numpy(), tables.leaf_counts.numpy()
        self.here, self.merges = positions.here.numpy(), positions.merges.numpy()
        self.active, self.num_leaves = positions.active.numpy(), positions.num_leaves.numpy()
        self.scorer, self.first, self.second, self.table = arrays

    def run(self, draws: Float64[Tensor, "2 M B"] | None, measured: bool, ordered: bool) -> Choices:
        """Make all merges, the best or those of these ``draws``.

        Entropies are ``measured``, with the order within a pair a choice if ``ordered``.
        """
        found = np.zeros((5, *self.merges.shape[:2]))
        numbers = None if draws is None else draws.numpy()
        # A diverged autoencoder gives infinities, and legal merges all the same.
        with np.errstate(all="ignore"):
            if not self._compiled(numbers, measured, ordered, found):
                self._step_by_step(numbers, measured, ordered, found)
            chosen, turned, total, shift, nats = found
            made = total > 0
            log_prob, turned = (
                np.log(weight / np.where(made, total, 1.0), out=np.zeros_like(total), where=made)
                for weight in (chosen, turned)
            )
            log_total = np.log(total, out=np.zeros_like(total), where=made) + shift
        made_of = torch.from_numpy(np.stack([log_prob, log_total, turned, nats]))
        return Choices(*made_of.to(self.tables.embeddings.dtype))

    def _compiled(
        self, draws: np.ndarray | None, measured: bool, ordered: bool, found: np.ndarray
    ) -> bool:
        """All at once; False where nothing is compiled for these networks."""
        fast = compiled(self.merger, self.scorer, self.nodes, self.first, self.second, self.table)
        if fast is None:
            return False
        fast.functions.merge_all(
            fast.merger,
            fast.scorer,
            greedy=draws is None,
            measured=measured,
            ordered=ordered,
            nodes=self.nodes,
            counts=self.counts,
            here=self.here,
            merges=self.merges,
            active=self.active,
            num_leaves=self.num_leaves,
            running=np.array(self.positions.running, dtype=np.int64),
            first=self.first,
            second=self.second,
            table=self.table,
            draws=np.zeros((2, *found.shape[:0:-1])) if draws is None else draws,
            found=found,
        )
        return True

    def _step_by_step(
        self, draws: np.ndarray | None, measured: bool, ordered: bool, found: np.ndarray
    ) -> None:
        size, slots = self.here.shape
        self._ragged = bool((self.num_leaves < self.positions.most).any())
        self._row, self._position = np.arange(size), np.arange(slots)
        self._ones, self._shift = np.ones(slots, self.table.dtype), np.empty(size, self.table.dtype)
        self._weights, self._merger = np.zeros_like(self.table), packed_function(self.merger)
        self._weigh(self._row, self.table, self.table > ILLEGAL)
        chosen, turned, total, shift, nats = found
        for time, rows in enumerate(self.positions.running):
            width, row = self.positions.most - time, self._row[:rows]
            sums, total[:rows, time] = self._sums(rows, width)
            weights, shift[:rows, time] = self._weights[:rows, :width, :width], self._shift[:rows]
            if draws is None:
                one = weights.max(2).argmax(1)
                other = weights[row, one].argmax(1)
            else:
                one = _drawn_on_arrays(sums, draws[0, time, :rows])
                other = _drawn_on_arrays(weights[row, one], draws[1, time, :rows])
            chosen[:rows, time] = weights[row, one, other]
            turned[:rows, time] = weights[row, other, one]
            if measured:
                nats[:rows, time] = _entropy(weights, total[:rows, time], ordered)
            self._merge(time, row, one, other, width)

    def _merge(
        self, time: int, row: np.ndarray, one: np.ndarray, other: np.ndarray, width: int
    ) -> None:
        rows = len(row)
        here, nodes, counts = self.here[:rows], self.nodes, self.counts
        self.active[:rows, time] = here
        children = self.merges[:rows, time]
        children[:, 0], children[:, 1] = here[row, one], here[row, other]
        low, high = np.minimum(one, other), np.maximum(one, other)
        last, parent = self.num_leaves[:rows] - time - 1, self.num_leaves[:rows] + time
        here[row, high] = here[row, last]
        here[row, last] = NONE
        here[row, low] = parent

        pairs = nodes[row[:, None], children].reshape(rows, -1)
        merged, count = self._merger(pairs), counts[row[:, None], children].sum(1)
        nodes[row, parent], counts[row, parent] = merged, count
        new_first, new_second = self.scorer.features(merged, count)
        first, second, weights = self.first, self.second, self._weights
        for features, new in ((first, new_first), (second, new_second)):
            features[row, high] = features[row, last]
            features[row, low] = new

        # What was last moves, the parent's row and column are new, and the last are empty.
        weights[row, high] = weights[row, last]
        weights[row, :width, high] = weights[row, :width, last]
        left = width - 1
        position = self._position[:left]
        others = (position < last[:, None]) & (position != low[:, None])  # (R, W - 1)
        scores = self.scorer.scores(new_first[:, None], second[:rows, :left], others[:, None])
        as_second = as_first = self._weight(scores[:, 0], row, others)
        if not self.scorer.symmetric:
            new = new_second[:, None]
            scores = self.scorer.scores(first[:rows, :left], new, others[..., None])
            as_second = self._weight(scores[..., 0], row, others)
        weights[row, low, :left] = as_first
        weights[row, :left, low] = as_second
        if self._ragged:  # elsewhere nothing more is read there
            weights[row, last] = 0.0
            weights[row, :width, last] = 0.0

    def _weight(self, scores: np.ndarray, row: np.ndarray, legal: np.ndarray) -> np.ndarray:
        """Weights of the scores of each row of episodes, 0 where they are not legal."""
        shift = self._shift[row].reshape(-1, *[1] * (scores.ndim - 1))
        # Of a score far above all before it is infinite; the sum shows it, and all are renewed.
        with np.errstate(over="ignore"):  # of pairs that are not legal
            weights = np.exp(bounded_array(scores) - shift)
        return np.where(legal & (weights > RAREST), weights, 0.0)

    def _weigh(self, row: np.ndarray, scores: np.ndarray, legal: np.ndarray) -> None:
        """Weights of some episodes, 1 for the best legal pair, from the scores of all pairs."""
        width = scores.shape[1]
        self._shift[row] = scores.max((1, 2), where=legal, initial=ILLEGAL)
        self._weights[row, :width, :width] = self._weight(scores, row, legal)

    def _sums(self, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Sums of weights over the partners of each position ``(R, W)``, and over all pairs."""
        sums = self._weights[:rows, :width, :width] @ self._ones[:width]
        total = sums.sum(1)
        fits = (total > FEWEST) & (total < MOST)
        if fits.all():
            return sums, total
        row = (~fits).nonzero()[0]
        first, second, here = (
            values[row, :width] for values in (self.first, self.second, self.here)
        )
        there = here >= 0
        legal = there[:, :, None] & there[:, None, :] & ~np.eye(width, dtype=bool)
        self._weigh(row, bounded_array(self.scorer.scores(first, second, legal)), legal)
        return self._sums(rows, width)


def _drawn_on_arrays(weights: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """As :func:`_drawn`."""
    summed = weights.cumsum(1, dtype=np.float64)
    position: np.ndarray = (summed > draw[:, None] * summed[:, -1:]).argmax(1)
    return position


def _entropy(weights: np.ndarray, total: np.ndarray, ordered: bool) -> np.ndarray:
    """Entropy in nats of choices ``(R, W, W)`` with these weights; see
    :func:`agents.rollouts.rollout.choices`."""
    choice = weights if ordered else weights + weights.transpose(0, 2, 1)
    logs = np.log(choice, out=np.zeros_like(choice), where=choice > 0)
    spread: np.ndarray = np.log(total) - (weights * logs).sum((1, 2)) / total
    return spread


# ---------------------------------------------------------------- what is compiled


class Compiled(NamedTuple):
    """Compiled functions, and the weights that they are given."""

    functions: Any
    """The module ``agents/rollouts/compiled.py``."""
    merger: PackedWeights
    scorer: PointerWeights


def compiled(
    merger: Callable[[Tensor], Tensor], scorer: ArrayScorer, *arrays: np.ndarray
) -> Compiled | None:
    """None where merges are made step by step: without numba, with other networks than a gated
    residual merger and a pointer, and where ``arrays`` or weights are no float32."""
    functions = _functions()
    if functions is None:
        return None
    weights, own = packed_weights(merger), scorer.weights()
    if weights is None or own is None:
        return None
    if any(values.dtype != np.float32 for values in (*arrays, *weights, *own)):
        return None
    return Compiled(functions, weights, own)


@cache
def _functions() -> ModuleType | None:
    try:  # not at the top: importing numba takes half a second
        from agents.rollouts import compiled as functions
    except (ImportError, OSError):  # no numba, a broken one, or one that does not know this numpy
        return None
    return functions


def compile_ahead(autoencoder: TreeEncoder, network: Network, token_dim: int) -> None:
    """Merge two tokens once on the processor, so that what is compiled is so before time counts."""
    tokens, merges = torch.zeros(1, 2, token_dim), torch.full((1, 1, 2), NONE)
    present = torch.ones(1, 2, dtype=torch.bool)
    two = TokenBatch(tokens, present, present[:, None, :] & False, merges)
    rollout(autoencoder, network, two, torch.Generator(), greedy=True)


# ---------------------------------------------------------------- episodes of given merges


@torch.no_grad()
def follow(
    autoencoder: TreeEncoder,
    batch: TokenBatch,
    merges: Int64[Tensor, "B M 2"],
    nearest: Nearest | None = None,
) -> Episodes:
    """The episodes of given merges, encoded level by level; with ``nearest``, among candidates."""
    num_leaves = batch.num_tokens
    levels = forest_levels(merges, num_leaves)
    size, slots = batch.present.shape
    standardised = autoencoder.standardise(batch.tokens)
    states = autoencoder.encode_levels(standardised, batch.present, levels)
    nodes = batch.tokens.new_zeros(size * (2 * slots - 1), autoencoder.embedding_dim)
    nodes[torch.cat([level.nodes for level in levels])] = torch.cat(states)
    nodes = nodes.view(size, 2 * slots - 1, -1)
    candidates = None
    if nearest is not None:
        candidates = candidates_along(standardised, batch.present, nodes, merges, nearest)
    return Episodes(merges, nodes, leaf_counts(merges, num_leaves), candidates=candidates)


@torch.no_grad()
def pair_probabilities(
    network: Network,
    autoencoder: TreeEncoder,
    batch: TokenBatch,
    merges: Int64[Tensor, "1 M 2"],
    nearest: Nearest | None = None,
) -> list[tuple[Int64[Tensor, "k"], Float[Tensor, "k k"]]]:
    """Before each merge of one sample: the active nodes, in ascending order, and the network's
    probabilities of all their ordered pairs; 0 of those that were no candidates."""
    episode = follow(autoencoder, batch, merges, nearest)
    standardised = autoencoder.standardise(batch.tokens)
    tables = NodeTables(batch, standardised, episode.nodes, episode.leaf_counts)
    positions = Positions(batch.present, episode.steps.sum(1))
    scores = network.pair_scores(tables, positions)
    found = []
    for step in positions.steps():
        table = scores.at(step)[0].double()
        nodes, place = positions.here[0, : step.width].sort()
        own = table[place[:, None], place].fill_diagonal_(-torch.inf)
        if episode.candidates is not None:
            now = torch.tensor([0], device=nodes.device), torch.tensor([step.time]).to(nodes.device)
            _, pair = episode.candidates.at(*now)
            first, second = torch.searchsorted(nodes, episode.candidates.nodes[pair]).unbind(1)
            listed = torch.zeros_like(own, dtype=torch.bool)
            listed[first, second] = True
            own = own.masked_fill(~listed, -torch.inf)
        found.append((nodes, own.flatten().softmax(0).view_as(own)))
        children, parent = positions.merge(step, *positions.find(step, episode.merges))
        scores.after(step, children, parent)
    return found
