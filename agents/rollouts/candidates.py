"""Candidates while episodes are merged: their lists, what these were, and their scores.

Every token chooses among its nearest only, so that a merge costs O(P k) instead of O(P^2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from agents.rollouts.pair_scores import (
    ILLEGAL,
    ContextScorer,
    FreshScores,
    NodeTables,
    PairScorer,
    PairScores,
    Step,
    bounded,
    running_rows,
)
from htm_env.candidates import CandidatePairs, Candidates, Nearest, Neighbourhood
from htm_env.forest import leftmost_leaves
from htm_env.types import NONE, SampleRows


@dataclass
class CandidateStep(Step):
    """One merge of every sample, by the slots of its nodes."""

    first: Int64[Tensor, "R"]
    """The slot of the first child, then the parent's (set by :meth:`CandidateLists.merge`)."""
    second: Int64[Tensor, "R"]
    """The slot of the second child, which is empty then."""


class CandidateLists:
    """The candidate lists of episodes in progress, and what they were.

    The episodes are in the order of how many merges they make, so that those that are still
    running are the first rows.

    Args:
        nearest: the rule for candidates.
        standardised: the tokens.
        nodes: the embeddings of all nodes: the leaves', and by :meth:`follow` the parents'.
        present: True <--> a token is here.
        to_make: how many merges each sample makes; must fall from row to row.
    """

    def __init__(
        self,
        nearest: Nearest,
        standardised: Float[Tensor, "B P T"],
        nodes: Float[Tensor, "B N D"],
        present: Bool[Tensor, "B P"],
        to_make: Int64[Tensor, "B"],
    ) -> None:
        size, slots = present.shape
        place = torch.arange(slots, device=nodes.device)
        self.here = place.expand(present.shape).masked_fill(~present, NONE)
        """(R, P) the node in each slot of the rows that are running; -1 where there is none."""
        self.merges = self.here.new_full((size, slots - 1, 2), NONE)
        self._nodes, self._num_leaves, self._to_make = nodes, present.sum(1), to_make
        self._embeddings = nodes[:, :slots].clone()
        self._counts = present.long()
        self._near = Neighbourhood.of(nearest, standardised, self._embeddings, present)
        self._since = torch.zeros_like(self.lists.partners)
        self._ended: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def lists(self) -> Candidates:
        """Candidate lists of the running rows."""
        return self._near.candidates

    def steps(self) -> Iterator[CandidateStep]:
        """The merges to make; each has to be made with :meth:`merge`, and followed with
        :meth:`follow`, before the next."""
        for time, running in enumerate(running_rows(self._to_make, self.merges.shape[1])):
            self._run(running, time)
            rows = torch.arange(running, device=self.here.device)
            yield CandidateStep(time, rows, rows, rows)
        self._run(0, int(self._to_make.max()))

    def merge(
        self, step: CandidateStep, first: Int64[Tensor, "R"], place: Int64[Tensor, "R"]
    ) -> tuple[Int64[Tensor, "R 2"], Int64[Tensor, "R"]]:
        """Merge each slot ``first`` with its candidate at ``place``; returns the children and the
        parent."""
        return self.merge_slots(step, first, self.lists.partners[step.rows, first, place])

    def merge_slots(
        self, step: CandidateStep, first: Int64[Tensor, "R"], second: Int64[Tensor, "R"]
    ) -> tuple[Int64[Tensor, "R 2"], Int64[Tensor, "R"]]:
        """Merge these slots, candidates or not."""
        step.first, step.second = first, second
        children = torch.stack([self.here[step.rows, first], self.here[step.rows, second]], dim=1)
        self.merges[step.rows, step.time] = children
        return children, self._num_leaves[: len(first)] + step.time

    def follow(self, step: CandidateStep, parent: Int64[Tensor, "R"]) -> None:
        """Bring the lists in step with the merge; the parent's embedding is known."""
        rows, first, second = step.rows, step.first, step.second
        here, before = self.here.clone(), self.lists.partners
        here[rows, first], here[rows, second] = parent, NONE
        self._embeddings[rows, first] = self._nodes[rows, parent]
        self._counts[rows, first] += self._counts[rows, second]
        self._counts[rows, second] = 0
        near = self._near.merged(rows, first, second, self._embeddings, self._counts)
        after = near.candidates
        self._end((before >= 0) & ((after.partners != before) | after.fresh), step.time)
        self._since = self._since.masked_fill(after.fresh, step.time + 1)
        self.here, self._near = here, near

    def history(self) -> tuple[None, CandidatePairs]:
        """No positions, and the pairs that were candidates."""
        return None, self.pairs()

    def pairs(self, order: Int64[Tensor, "B"] | None = None) -> CandidatePairs:
        """Pairs that have ended by now; row ``r`` is episode ``order[r]``."""
        row, nodes, times = (torch.cat(values) for values in zip(*self._ended, strict=True))
        if order is not None:
            row = order[row]
        by_row = row.argsort(stable=True)
        size, steps, _ = self.merges.shape
        return CandidatePairs(size, steps, row[by_row], nodes[by_row], times[by_row])

    def _run(self, rows: int, time: int) -> None:
        """Only the first ``rows`` make a merge at ``time``; the others have ended."""
        if rows < len(self.here):
            over = self.lists.partners >= 0
            over[:rows] = False
            self._end(over, time - 1)
            self._near = self._near.rows(torch.arange(rows, device=self.here.device))
            self.here, self._since = self.here[:rows], self._since[:rows]
            self._embeddings, self._counts = self._embeddings[:rows], self._counts[:rows]

    def _end(self, over: Bool[Tensor, "R P k"], time: int) -> None:
        """The pairs in these places of the lists were candidates up to ``time``."""
        row, slot, place = (over & (self._since <= time)).nonzero(as_tuple=True)
        since = self._since[row, slot, place]
        partner = self.lists.partners[row, slot, place]
        nodes = torch.stack([self.here[row, slot], self.here[row, partner]], dim=1)
        times = torch.stack([since, torch.full_like(since, time)], dim=1)
        self._ended.append((row, nodes, times))


@torch.no_grad()
def candidates_along(
    standardised: Float[Tensor, "B P T"],
    present: Bool[Tensor, "B P"],
    nodes: Float[Tensor, "B N D"],
    merges: Int64[Tensor, "B M 2"],
    nearest: Nearest,
) -> CandidatePairs:
    """The pairs that are candidates while these merges are made, whoever chose them."""
    order = (merges[..., 0] >= 0).sum(1).argsort(descending=True, stable=True)
    made, there = merges[order], present[order]
    slot = leftmost_leaves(made, there.sum(1))
    to_make = (made[..., 0] >= 0).sum(1)
    lists = CandidateLists(nearest, standardised[order], nodes[order], there, to_make)
    for step in lists.steps():
        first, second = slot[step.rows].gather(1, made[step.rows, step.time]).unbind(1)
        _, parent = lists.merge_slots(step, first, second)
        lists.follow(step, parent)
    return lists.pairs(order)


class KeptListedScores(PairScores):
    """Candidates' scores of a pair scorer: only what is fresh in the lists is scored."""

    def __init__(self, policy: PairScorer, tables: NodeTables, lists: CandidateLists) -> None:
        nodes, counts = tables.embeddings, tables.leaf_counts
        slots, rows = tables.batch.present.shape[1], SampleRows.of(tables.batch)
        self.policy, self.nodes, self.counts, self.lists = policy, nodes, counts, lists
        leaves = policy.features(nodes[rows.first_rows, :slots], counts[rows.first_rows, :slots])
        # Copies: they are written to, and may be one tensor, or the embeddings themselves.
        self.first = rows.spread(leaves.first).clone()
        self.second = rows.spread(leaves.second).clone()
        self.scores = self.first.new_full(lists.lists.partners.shape, ILLEGAL)
        self._score_fresh()

    def at(self, step: CandidateStep) -> Float[Tensor, "R P k"]:
        return self.scores[: len(step.rows)]

    def after(
        self, step: CandidateStep, children: Int64[Tensor, "R 2"], parent: Int64[Tensor, "R"]
    ) -> None:
        self.lists.follow(step, parent)
        row, slot = step.rows, step.first
        new = self.policy.features(self.nodes[row, parent], self.counts[row, parent])
        self.first[row, slot], self.second[row, slot] = new.first, new.second
        self.scores = self.at(step).masked_fill(self.lists.lists.partners < 0, ILLEGAL)
        self._score_fresh()

    def _score_fresh(self) -> None:
        row, slot, place = self.lists.lists.fresh.nonzero(as_tuple=True)
        partner = self.lists.lists.partners[row, slot, place]
        scores = self.policy.paired_scores(self.first[row, slot], self.second[row, partner])
        self.scores[row, slot, place] = bounded(scores)


class FreshListedScores(FreshScores):
    """Contextual scores of the candidates of a population."""

    def __init__(self, policy: ContextScorer, tables: NodeTables, lists: CandidateLists) -> None:
        super().__init__(policy, tables)
        self.lists = lists

    def at(self, step: CandidateStep) -> Float[Tensor, "R P k"]:
        partners = self.lists.lists.partners
        return self.scores_of(self.lists.here, partners).masked_fill(partners < 0, ILLEGAL)

    def after(
        self, step: CandidateStep, children: Int64[Tensor, "R 2"], parent: Int64[Tensor, "R"]
    ) -> None:
        self.lists.follow(step, parent)
        super().after(step, children, parent)
