"""The words and shapes that every module shares.

Legend of the shapes, everywhere in this project:

    B  batch            P  token slots (the largest population)
    T  token dimension  D  embedding dimension
    n  tokens of one sample, ``n <= P``
    M  merges stored per sample, ``P - 1``, padded with -1
    N  node slots per sample, ``2 P - 1``
    C  clades stored per sample

Nodes are numbered as in scipy's linkage: the leaves of a sample are nodes ``0 .. n-1`` (its tokens
in slot order) and merge ``t`` makes node ``n + t``.

Masks and sentinels, everywhere: a mask is ``True`` where something *is* (a token is present, a slot
is active, an action is legal); the index ``-1`` means "none".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

NONE = -1
"""The node id that pads merges and empty slots."""


LARGE = 256
"""Tokens of a set, above which all its pairs are many."""


class TokenBatch(NamedTuple):
    """A batch of token sets, padded to ``P`` slots, with the hierarchy that the data itself has.

    The order of the tokens carries no information: every dataset shuffles the tokens of a sample,
    and ``clades`` and ``merges`` name the shuffled slots.
    """

    tokens: Float[Tensor, "B P T"]
    """Raw coordinates in the data's own units; zeros in empty slots."""
    present: Bool[Tensor, "B P"]
    """True <--> a token is here; the tokens of a sample fill its slots ``0 .. n-1``."""
    clades: Bool[Tensor, "B C P"]
    """The data's own clades, one leaf set a row; an all-False row pads."""
    merges: Int64[Tensor, "B M 2"]
    """The data's own hierarchy in the generator's canonical order; -1 pads, or has no hierarchy."""

    sample: Int64[Tensor, "B"] | None = None
    """Sample of each row, where :meth:`rows` may have repeated some; None <--> every row is
    another one."""

    @property
    def num_tokens(self) -> Int64[Tensor, "B"]:
        """Number of tokens of each sample."""
        return self.present.sum(dim=1)

    def each(self, change: Callable[[Tensor], Tensor]) -> TokenBatch:
        """The batch with every tensor changed alike along the batch axis, ``sample`` included."""
        return TokenBatch(*(None if tensor is None else change(tensor) for tensor in self))  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        return self.each(lambda tensor: tensor.to(device))

    def rows(self, index: Tensor | slice) -> TokenBatch:
        """The samples that ``index`` selects along the batch axis; some may be repeated."""
        sample = self.sample
        if sample is None:
            sample = torch.arange(len(self.tokens), device=self.tokens.device)
        return self._replace(sample=sample).each(lambda tensor: tensor[index])

    def with_rows(self, index: Int64[Tensor, "R"], other: TokenBatch) -> TokenBatch:
        """The batch with the samples of ``index`` replaced by the ``R`` of another one."""
        pairs = zip(self[:4], other[:4], strict=True)
        return TokenBatch(*(here.index_copy(0, index, there) for here, there in pairs))

    def parts(self, size: int) -> Iterator[TokenBatch]:
        """The samples in order, at most ``size`` at a time."""
        for start in range(0, len(self.tokens), size):
            yield self.rows(slice(start, start + size))


BatchedType = TypeVar("BatchedType")
"""A subclass of :class:`Batched`."""


@dataclass(frozen=True)
class Batched:
    """A dataclass whose fields have one row a sample: tensors, others of this kind, or None."""

    def rows(self: BatchedType, index: Tensor | slice) -> BatchedType:
        """The rows of the samples that ``index`` selects."""

        def chosen(values: Any) -> Any:
            return values[index] if isinstance(values, Tensor) else values.rows(index)

        columns = (None if values is None else chosen(values) for values in _columns(self))
        return type(self)(*columns)

    def with_rows(self: BatchedType, index: Int64[Tensor, "R"], other: BatchedType) -> BatchedType:
        """These with the samples of ``index`` replaced by the ``R`` of another."""

        def replaced(here: Any, there: Any) -> Any:
            if isinstance(here, Tensor):
                return here.index_copy(0, index, there)
            return None if here is None else here.with_rows(index, there)

        return type(self)(*map(replaced, _columns(self), _columns(other)))


def _columns(batched: Any) -> list[Any]:
    return [getattr(batched, field.name) for field in fields(batched)]


@dataclass(frozen=True)
class SampleRows:
    """Groups of neighbouring rows that are trees of one sample: they share leaves and first
    merges."""

    first_row: Int64[Tensor, "B"]
    """The first of the neighbours that have the sample of each row."""

    @classmethod
    def of(cls, batch: TokenBatch) -> SampleRows:
        """As the batch says; without neighbours where it does not say it."""
        rows = torch.arange(len(batch.tokens), device=batch.tokens.device)
        if batch.sample is None:
            return cls(rows)
        new = torch.ones_like(batch.present[:, 0])
        new[1:] = batch.sample[1:] != batch.sample[:-1]
        return cls(torch.where(new, rows, 0).cummax(0).values)

    @cached_property
    def begins(self) -> Bool[Tensor, "B"]:
        """True <--> the row before has another sample."""
        rows = torch.arange(len(self.first_row), device=self.first_row.device)
        return self.first_row == rows

    @cached_property
    def first_rows(self) -> Int64[Tensor, "S"]:
        """One row for each sample."""
        return self.begins.nonzero()[:, 0]

    def spread(self, values: Float[Tensor, "S ..."]) -> Float[Tensor, "B ..."]:
        """Its sample's values for every row; the argument itself where no row shares its sample."""
        if len(values) == len(self.first_row):
            return values
        return values.index_select(0, self.begins.cumsum(0) - 1)

    def repeated(
        self, merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]
    ) -> Bool[Tensor, "B N"]:
        """True <--> the first row with that sample has the same node in the same place.

        These are the leaves, and what was merged before the first merge that is another one.
        """
        alike = ((merges == merges[self.first_row]) & (merges >= 0)).all(2)
        common = num_leaves + alike.cumprod(1).sum(1)
        nodes = torch.arange(2 * merges.shape[1] + 1, device=merges.device)
        return (nodes < common[:, None]) & ~self.begins[:, None]
