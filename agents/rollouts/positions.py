"""Where the active nodes of many episodes stand while they are merged.

The active nodes of a sample stand at its first positions: a parent takes the lower position of its
pair, the last active node the higher one. Inside, the samples are sorted by how many merges they
make, so that those that are still running are the first rows. What is computed at a step is then a
corner ``[:rows, :width, :width]`` of a table of pairs, and shrinks with the populations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.types import NONE


@dataclass
class Step:
    """One merge of every sample that is still running."""

    time: int
    rows: Int64[Tensor, "R"]
    width: int
    """The largest population among the rows."""
    num_active: Int64[Tensor, "R"]
    low: Tensor
    """The lower position of the pair, then the parent's (set by :meth:`Positions.merge`)."""
    high: Tensor
    """The higher position of the pair, then that of the node that stood last."""
    last: Int64[Tensor, "R"]
    """The last position that is occupied before the merge."""


class Positions:
    """Follows the positions of nodes through the merges of a batch.

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
        self._rows = torch.arange(size, device=device)
        self._running = (to_make[:, None] > position[:-1]).sum(0).tolist()
        self._most = int(self.num_leaves.max())

    def steps(self) -> Iterator[Step]:
        """The merges to make; each has to be made with :meth:`merge` before the next."""
        for time, running in enumerate(self._running):
            if running == 0:
                return
            num_active = self.num_leaves[:running] - time
            rows = self._rows[:running]
            self.active[:running, time] = self.here[:running]
            width = self._most - time
            yield Step(time, rows, width, num_active, rows, rows, num_active - 1)

    def merge(
        self, step: Step, first: Int64[Tensor, "R"], second: Int64[Tensor, "R"]
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

    @classmethod
    def of(cls, present: Bool[Tensor, "B P"], merges: Int64[Tensor, "B M 2"]) -> Positions:
        """Follow merges that are given; rows may stand in any order, and stay there."""
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

    def find(self, step: Step, merges: Int64[Tensor, "B M 2"]) -> tuple[Tensor, Tensor]:
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

    def view(self, step: Step) -> Float[Tensor, "R W W"]:
        """The values of the rows that are running, at the positions that are occupied."""
        return self.values[: len(step.rows), : step.width, : step.width]

    def replace(
        self, step: Step, as_first: Float[Tensor, "R W"], as_second: Float[Tensor, "R W"]
    ) -> None:
        """After a merge: the last node moves up, and the parent's row and column are given."""
        values, rows, width = self.values[: len(step.rows)], step.rows, step.width
        values[rows, step.high] = values[rows, step.last]
        columns = (len(rows), values.shape[1], 1)
        high, last = (at[:, None, None].expand(columns) for at in (step.high, step.last))
        values.scatter_(2, high, values.gather(2, last))
        here = self._position[:width]
        none = (here >= step.last[:, None]) | (here == step.low[:, None])
        values[rows, step.low, :width] = as_first.masked_fill(none, self.nothing)
        values[rows, :width, step.low] = as_second.masked_fill(none, self.nothing)
        values[rows, step.last] = self.nothing
        values.scatter_(2, last, self.nothing)
