"""What the rows of a ring are drawn by: a priority for each, made of its value."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from replay.ring import Ring
from replay.samplers import Sampler
from replay.sum_tree import SumTree


class Priorities:
    """Keeps the columns ``value`` and ``priority`` of a ring, and the sums that rows are drawn by.

    A value is nan where none was given.
    """

    def __init__(
        self, ring: Ring, sampler: Sampler, bounds: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        self._ring, self._sampler = ring, sampler
        self.bounds = bounds
        """The least and the largest value when the priorities were computed."""
        self.rebuild()

    def columns(self, values: Float[np.ndarray, "B"]) -> dict[str, Tensor]:
        """What new rows need. Those without a value get the largest priority that is stored."""
        largest = 1.0
        if self._ring.size:
            largest = float(self._ring.unordered("priority").max())
        given = self._sampler.priorities(values, *self.bounds)
        priorities = np.where(np.isnan(values), largest, given)
        return {"value": torch.from_numpy(values), "priority": torch.from_numpy(priorities)}

    def enter(self, slots: Int64[Tensor, "K"]) -> None:
        """The ring has put new rows there."""
        self._sums[slots.numpy()] = self._ring.columns["priority"][slots].numpy()

    def leave(self, slots: Int64[Tensor, "K"]) -> None:
        """The ring no longer has the rows there."""
        self._sums[slots.numpy()] = np.zeros(len(slots))

    def rebuild(self) -> None:
        """Add everything up anew: the rows have moved."""
        leaves = np.zeros(self._ring.room)
        if self._ring.size:
            leaves[self._ring.slots().numpy()] = self._ring.column("priority").numpy()
        self._sums = SumTree(leaves)

    def update(self, slots: Int64[Tensor, "K"], values: Float[np.ndarray, "K"]) -> None:
        """Give rows new values; the last of equal slots counts."""
        places, columns = slots.numpy(), self._ring.columns
        columns["value"].numpy()[places] = values
        columns["priority"].numpy()[places] = self._sampler.priorities(values, *self.bounds)
        self._sums[places] = columns["priority"].numpy()[places]

    def draw(
        self, count: int, generator: torch.Generator
    ) -> tuple[Int64[Tensor, "K"], Float[Tensor, "K"]]:
        """The slots of rows, with replacement, and the weights that correct for their priorities.

        Stratified, as in the paper: one from each of ``count`` equal parts of the total.
        """
        self._refresh()
        drawn = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
        positions = (np.arange(count) + drawn.cpu().numpy()) / count * self._sums.total
        slots = self._sums.find(positions)
        # N and the total cancel when the weights are divided by that of the rarest row.
        rarest = float(self._ring.unordered("priority").min())
        weights = (self._sums[slots] / rarest) ** -self._sampler.beta
        return torch.from_numpy(slots), torch.from_numpy(weights).float()

    def _refresh(self) -> None:
        """Compute all priorities anew where the values that they are relative to have moved."""
        if not self._sampler.relative:
            return
        values = self._ring.unordered("value").numpy()
        bounds = float(np.fmin.reduce(values)), float(np.fmax.reduce(values))  # nan is left out
        if bounds != self.bounds and not np.isnan(bounds[0]):
            self.bounds = bounds
            values = self._ring.column("value").numpy()
            optimistic = np.where(np.isnan(values), bounds[1], values)
            priorities = self._sampler.priorities(optimistic, *bounds)
            self._ring.columns["priority"][self._ring.slots()] = torch.from_numpy(priorities)
            self.rebuild()
