"""The candidate lists of episodes that go on, and what they were."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.candidates import Candidates, merged_candidates, nearest_candidates
from htm_env.types import NONE
from replay import CandidatePairs


class CandidateRecord:
    """The candidate lists of episodes that go on, and what they were.

    The episodes stand in the order of how many merges they make, so that those that are still
    running are the first rows.

    Args:
        places: where the tokens stand that are near one another or not.
        present: True <--> a token is here.
        k: partners of a token at most.
        steps: ``M`` of the episodes.
    """

    def __init__(
        self,
        places: Float[Tensor, "B P D"],
        present: Bool[Tensor, "B P"],
        k: int,
        steps: int,
    ) -> None:
        self.lists: Candidates = nearest_candidates(places, present, k)
        slots = torch.arange(present.shape[1], device=places.device)
        self.nodes = slots.expand(present.shape).masked_fill(~present, NONE)
        """(R, P) the node in each slot of the rows that are running; -1 where there is none."""
        self._size, self._steps = len(present), steps
        self._since = torch.zeros_like(self.lists.partners)
        self._ended: list[tuple[Tensor, Tensor, Tensor]] = []

    def run(self, rows: int, time: int) -> None:
        """Only the first ``rows`` make a merge at ``time``; the others have ended."""
        if rows < len(self.nodes):
            over = self.lists.partners >= 0
            over[:rows] = False
            self._end(over, time - 1)
            first = torch.arange(rows, device=self.nodes.device)
            self.lists = self.lists.rows(first)
            self.nodes, self._since = self.nodes[:rows], self._since[:rows]

    def merge(
        self,
        time: int,
        first: Int64[Tensor, "R"],
        second: Int64[Tensor, "R"],
        places: Float[Tensor, "R N D"],
        parent: Int64[Tensor, "R"],
    ) -> None:
        """The slots ``first`` and ``second`` of all rows were merged, and ``parent`` stands in the
        first; ``places`` are those of all nodes."""
        rows = torch.arange(len(first), device=first.device)
        nodes = self.nodes.clone()
        nodes[rows, first], nodes[rows, second] = parent, NONE
        active, places = nodes >= 0, places[rows[:, None], nodes.clamp(min=0)]
        after = merged_candidates(self.lists, places, active, first, second)
        before = self.lists.partners
        self._end((before >= 0) & ((after.partners != before) | after.fresh), time)
        self._since = self._since.masked_fill(after.fresh, time + 1)
        self.nodes, self.lists = nodes, after

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
