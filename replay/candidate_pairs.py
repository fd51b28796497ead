"""The pairs of nodes that were candidates in an episode, each from one merge to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor


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
    def starts(self) -> Int64[Tensor, "bounds"]:
        """The index of the first pair of each episode."""
        bounds = torch.arange(self.size + 1, device=self.row.device)
        return torch.searchsorted(self.row, bounds)

    @cached_property
    def numbers(self) -> Int64[Tensor, "B M"]:
        """The number of pairs that could be merged before each merge; 0 in padding."""
        change = self.row.new_zeros(self.size, self.steps + 1)
        one = torch.ones_like(self.row)
        change.index_put_((self.row, self.times[:, 0]), one, accumulate=True)
        change.index_put_((self.row, self.times[:, 1] + 1), -one, accumulate=True)
        return change.cumsum(1)[:, :-1]

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

    @classmethod
    def listed(cls, pairs: Int[Tensor, "E 4"], counts: Sequence[int], steps: int) -> CandidatePairs:
        """The pairs and their times, one episode behind the other; ``counts`` are the
        numbers of each episode. Raises ``ValueError`` where the counts do not add up."""
        if sum(counts) != len(pairs) or min(counts, default=0) < 0:
            raise ValueError(
                f"there are {len(pairs)} candidates, and the counts of {len(counts)} episodes add "
                f"up to {sum(counts)}"
            )
        row = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
        pairs = pairs.long()
        return cls(len(counts), steps, row.to(pairs.device), pairs[:, :2], pairs[:, 2:])

    def joined(self, other: CandidatePairs) -> CandidatePairs:
        """These episodes and then those of ``other``."""
        return CandidatePairs(
            self.size + other.size,
            self.steps,
            torch.cat([self.row, self.size + other.row]),
            torch.cat([self.nodes, other.nodes]),
            torch.cat([self.times, other.times]),
        )

    def to(self, device: torch.device | str) -> CandidatePairs:
        """The same on another device."""
        moved = (values.to(device) for values in (self.row, self.nodes, self.times))
        return CandidatePairs(self.size, self.steps, *moved)

    def check(
        self,
        merges: Int64[Tensor, "B M 2"],
        num_tokens: Int64[Tensor, "B"],
        name: Callable[[int], str],
    ) -> None:
        """Raise ``ValueError`` naming the first episode whose pairs are not of two nodes that it
        has, at merges that it makes."""
        if (self.size, self.steps) != merges.shape[:2]:
            raise ValueError(
                f"the candidates are of {self.size} episodes of {self.steps} merges; expected "
                f"those of {merges.shape[0]} episodes of {merges.shape[1]}"
            )
        made = (merges[..., 0] >= 0).sum(1)
        first, last = self.times.unbind(1)
        nodes = num_tokens[self.row] + first  # that there are by then
        wrong = (self.nodes < 0).any(1) | (self.nodes >= nodes[:, None]).any(1)
        wrong |= self.nodes[:, 0] == self.nodes[:, 1]
        wrong |= (first < 0) | (first > last) | (last >= made[self.row])
        if wrong.any():
            pair = int(wrong.nonzero()[0])
            raise ValueError(
                f"a candidate of {name(int(self.row[pair]))} is the pair of nodes "
                f"{self.nodes[pair].tolist()} at merges {self.times[pair].tolist()}; expected two "
                "of its nodes, at merges that it makes while both are there"
            )

    def _of(self, episode: Int64[Tensor, "S"]) -> tuple[Int64[Tensor, "C"], Int64[Tensor, "C"]]:
        """All pairs of some episodes: an index into ``episode``, and one into the pairs."""
        start = self.starts[episode]
        count = self.starts[episode + 1] - start
        which = torch.arange(len(episode), device=start.device).repeat_interleave(count)
        before = count.cumsum(0) - count
        return which, torch.arange(len(which), device=start.device) + (start - before)[which]
