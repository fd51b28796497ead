"""The candidate lists of episodes that go on, and what they were."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.candidates import Candidates, Nearest, Neighbourhood
from htm_env.types import NONE
from replay import CandidatePairs


class CandidateRecord:
    """The candidate lists of episodes that go on, and what they were.

    The episodes stand in the order of how many merges they make, so that those that are still
    running are the first rows.

    Args:
        nearest: the rule for candidates.
        standardised: the tokens.
        nodes: the embeddings of all nodes, of which the leaves are known by now.
        present: True <--> a token is here.
    """

    def __init__(
        self,
        nearest: Nearest,
        standardised: Float[Tensor, "B P T"],
        nodes: Float[Tensor, "B N D"],
        present: Bool[Tensor, "B P"],
    ) -> None:
        slots = torch.arange(present.shape[1], device=nodes.device)
        self.nodes = slots.expand(present.shape).masked_fill(~present, NONE)
        """(R, P) the node in each slot of the rows that are running; -1 where there is none."""
        self._embeddings = nodes[:, : len(slots)].clone()
        self._counts = present.long()
        self._near = Neighbourhood.of(nearest, standardised, self._embeddings, present)
        self._size, self._steps = len(present), len(slots) - 1
        self._since = torch.zeros_like(self.lists.partners)
        self._ended: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def lists(self) -> Candidates:
        """Of the rows that are running."""
        return self._near.candidates

    def run(self, rows: int, time: int) -> None:
        """Only the first ``rows`` make a merge at ``time``; the others have ended."""
        if rows < len(self.nodes):
            over = self.lists.partners >= 0
            over[:rows] = False
            self._end(over, time - 1)
            self._near = self._near.rows(torch.arange(rows, device=self.nodes.device))
            self.nodes, self._since = self.nodes[:rows], self._since[:rows]
            self._embeddings, self._counts = self._embeddings[:rows], self._counts[:rows]

    def merge(
        self,
        time: int,
        first: Int64[Tensor, "R"],
        second: Int64[Tensor, "R"],
        parent: Int64[Tensor, "R"],
        nodes: Float[Tensor, "B N D"],
    ) -> None:
        """The slots ``first`` and ``second`` of all rows were merged, and ``parent`` stands in the
        first; ``nodes`` are the embeddings of all nodes, of which it is known by now."""
        rows = torch.arange(len(first), device=first.device)
        here, before = self.nodes.clone(), self.lists.partners
        here[rows, first], here[rows, second] = parent, NONE
        self._embeddings[rows, first] = nodes[rows, parent]
        self._counts[rows, first] += self._counts[rows, second]
        self._counts[rows, second] = 0
        near = self._near.merged(rows, first, second, self._embeddings, self._counts)
        after = near.candidates
        self._end((before >= 0) & ((after.partners != before) | after.fresh), time)
        self._since = self._since.masked_fill(after.fresh, time + 1)
        self.nodes, self._near = here, near

    def pairs(self, order: Int64[Tensor, "B"] | None = None) -> CandidatePairs:
        """What has ended by now; row ``r`` is episode ``order[r]``."""
        row, nodes, times = (torch.cat(values) for values in zip(*self._ended, strict=True))
        if order is not None:
            row = order[row]
        by_row = row.argsort(stable=True)
        return CandidatePairs(self._size, self._steps, row[by_row], nodes[by_row], times[by_row])

    def _end(self, over: Bool[Tensor, "R P k"], time: int) -> None:
        """The pairs in these places of the lists were candidates up to ``time``."""
        row, slot, place = (over & (self._since <= time)).nonzero(as_tuple=True)
        since = self._since[row, slot, place]
        partner = self.lists.partners[row, slot, place]
        nodes = torch.stack([self.nodes[row, slot], self.nodes[row, partner]], dim=1)
        times = torch.stack([since, torch.full_like(since, time)], dim=1)
        self._ended.append((row, nodes, times))
