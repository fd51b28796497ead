"""Which pairs of nodes were candidates in an episode, and from which merge to which."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from agents.intervals import Intervals
from htm_env.candidates import Candidates, merged_candidates, nearest_candidates
from htm_env.types import NONE


@dataclass(frozen=True)
class CandidatePairs:
    """The ordered pairs of ``B`` episodes, one behind the other.

    An episode of 64 tokens has about 7 k a token and one of 256 tokens 9 k (measured, k = 4): lists
    that are made anew count anew.

    Neighbours in embedding space move as the autoencoder learns, so that these are kept with the
    episodes: probabilities are exact within them.
    """

    size: int
    """``B``."""
    steps: int
    """``M``."""
    row: Int64[Tensor, "E"]
    """The episode, in rising order."""
    nodes: Int64[Tensor, "E 2"]
    """The nodes of the pair; the first comes first in the merge."""
    times: Int64[Tensor, "E 2"]
    """The first and the last merge of the episode at which it could be made."""

    @cached_property
    def intervals(self) -> Intervals:
        return Intervals(self.row, self.times, self.size, self.steps)

    @cached_property
    def starts(self) -> Int64[Tensor, "bounds"]:
        """Where the pairs of each episode begin."""
        bounds = torch.arange(self.size + 1, device=self.row.device)
        return torch.searchsorted(self.row, bounds)

    def rows(self, index: Tensor | slice) -> CandidatePairs:
        """Those of the episodes that ``index`` (of integers, or True) selects, in this order."""
        chosen = torch.arange(self.size, device=self.row.device)[index]
        row, pair = self._of(chosen)
        return CandidatePairs(len(chosen), self.steps, row, self.nodes[pair], self.times[pair])

    def at(
        self, episode: Int64[Tensor, "S"], time: Int64[Tensor, "S"]
    ) -> tuple[Int64[Tensor, "C"], Int64[Tensor, "C"]]:
        """The candidates before some merges: an index into ``episode``, and one into the pairs."""
        state, pair = self._of(episode)
        first, last = self.times[pair].unbind(1)
        there = (first <= time[state]) & (time[state] <= last)
        return state[there], pair[there]

    def chosen(self, merges: Int64[Tensor, "B M 2"]) -> Bool[Tensor, "B M"]:
        """True <--> the merge was one of the candidates before it."""
        last = self.times[:, 1]
        right = (self.nodes == merges[self.row, last]).all(1)
        made = self.row.new_zeros(self.size, self.steps, dtype=torch.bool)
        made[self.row[right], last[right]] = True
        return made

    def _of(self, episode: Int64[Tensor, "S"]) -> tuple[Int64[Tensor, "C"], Int64[Tensor, "C"]]:
        """All pairs of some episodes: an index into ``episode``, and one into the pairs."""
        start = self.starts[episode]
        count = self.starts[episode + 1] - start
        which = torch.arange(len(episode), device=start.device).repeat_interleave(count)
        before = count.cumsum(0) - count
        return which, torch.arange(len(which), device=start.device) + (start - before)[which]


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
        row, slot, place = over.nonzero(as_tuple=True)
        since = self._since[row, slot, place]
        partner = self.lists.partners[row, slot, place]
        nodes = torch.stack([self.nodes[row, slot], self.nodes[row, partner]], dim=1)
        times = torch.stack([since, torch.full_like(since, time)], dim=1)
        self._ended.append((row, nodes, times))
