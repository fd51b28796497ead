"""Greedy episodes that leave the best pair at one merge, to see whether another leads further."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor

from agents.networks.base import ILLEGAL


class Deviation(NamedTuple):
    """One merge of each episode that is not the best one."""

    step: Int64[Tensor, "B"]
    """When."""
    rank: Int64[Tensor, "B"]
    """The pair that is taken: 0 the best, 1 the second best; the last where there are fewer."""

    def rows(self, index: Tensor) -> Deviation:
        """Those of some episodes."""
        return Deviation(self.step[index], self.rank[index])

    def chosen(
        self,
        time: int,
        scores: Float[Tensor, "R A C"],
        first: Int64[Tensor, "R"],
        second: Int64[Tensor, "R"],
    ) -> tuple[Int64[Tensor, "R"], Int64[Tensor, "R"]]:
        """What is chosen at this step of the first ``R`` episodes: row and column of the scores,
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
