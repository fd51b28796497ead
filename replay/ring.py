"""Rows in the order in which they came, in arrays that grow up to a capacity and then go round."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

FIRST_ROWS = 256
"""Room that the first rows get at least; it doubles when it is full."""


class Ring:
    """Columns of equally many rows. Beyond the capacity, the oldest rows make room for new ones.

    A row stays in its slot until it is overwritten, or until the columns are laid out anew because
    they grow or because rows from the middle are dropped.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.columns: dict[str, Tensor] = {}
        self.room = 0
        """Rows that the columns can hold now."""
        self.first = 0
        """The slot of the oldest row."""
        self.size = 0

    def slots(self, count: int | None = None) -> Int64[Tensor, "N"]:
        """Where the rows are, the oldest first; all of them, or so many of the oldest."""
        ages = torch.arange(self.size if count is None else count)
        return (self.first + ages) % max(1, self.room)

    def column(self, name: str) -> Tensor:
        """The values of all rows, the oldest first; a view where they lie in one piece."""
        column, end = self.columns[name], self.first + self.size
        if end <= self.room:
            return column[self.first : end]
        return torch.cat([column[self.first :], column[: end - self.room]])

    def occupied(self, slots: Int64[Tensor, "K"]) -> Bool[Tensor, "K"]:
        """True <--> the slot holds a row."""
        age = (slots - self.first) % max(1, self.room)
        return (slots >= 0) & (slots < self.room) & (age < self.size)

    def unordered(self, name: str) -> Tensor:
        """The values of all rows, in any order: a view where every slot is taken too."""
        return self.columns[name] if self.size == self.room else self.column(name)

    def rows(self, slots: Int64[Tensor, "K"]) -> dict[str, Tensor]:
        return {name: column[slots] for name, column in self.columns.items()}

    def append(self, rows: Mapping[str, Tensor]) -> tuple[Int64[Tensor, "K"], bool]:
        """Add rows as the newest; returns their slots, and whether other rows have moved.

        Of more rows than fit, the last are kept.
        """
        rows = {name: values[-self.capacity :] for name, values in rows.items()}
        count = len(next(iter(rows.values())))
        needed = self.size + count
        moves = needed > self.room < self.capacity
        if moves:
            room = max(2 * self.room, needed, FIRST_ROWS)
            self._lay_out(rows, self.slots(), min(room, self.capacity))
        self.drop_oldest(max(0, needed - self.room))
        slots = (self.first + self.size + torch.arange(count)) % self.room
        for name, values in rows.items():
            self.columns[name][slots] = values
        self.size += count
        return slots, moves

    def drop_oldest(self, count: int) -> None:
        self.first = (self.first + count) % max(1, self.room)
        self.size -= count

    def keep(self, slots: Int64[Tensor, "K"]) -> None:
        """Drop every other row; the rows move."""
        self._lay_out(self.columns, slots, self.room)
        self.size = len(slots)

    def place(self, rows: Mapping[str, Tensor], first: int, room: int) -> None:
        """Hold these rows, the oldest first, instead of any other, from the slot ``first`` on."""
        self.columns = {}
        self._lay_out(rows, torch.empty(0, dtype=torch.int64), room)
        self.first, self.size = first, len(next(iter(rows.values())))
        for name, values in rows.items():
            self.columns[name][self.slots()] = values

    def _lay_out(self, like: Mapping[str, Tensor], slots: Int64[Tensor, "K"], room: int) -> None:
        """Move the rows at ``slots`` to the front of columns with this much room."""
        columns = {}
        for name, column in like.items():
            columns[name] = column.new_zeros(room, *column.shape[1:])
            if len(slots):
                columns[name][: len(slots)] = self.columns[name][slots]
        self.columns, self.room, self.first = columns, room, 0
