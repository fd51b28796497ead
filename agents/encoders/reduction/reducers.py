"""Reducers: one vector for each group of vectors, all groups of all samples in one call.

The members of a group need not be neighbours: every vector names its owner. Sums are scattered
(``index_add``), which has the exact gradient; nested tensors lose it in the backward pass of
``sum`` and ``mean``, and ``segment_reduce`` takes contiguous groups only (and measured slower on
CPU).
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from agents.encoders.reduction.spans import equal_lengths


class Reducer(nn.Module):
    """One vector for each group; 0 where a group is empty."""

    reduce: Callable[[Tensor, Tensor, int], Tensor]
    """(S, W) from values (K, W), the group of each, and the number of groups."""

    def forward(
        self, values: Float[Tensor, "K W"], owners: Int[Tensor, "K"], count: int
    ) -> Float[Tensor, "S W"]:
        """Reduce the rows of every group.

        Rows without an owner become zeros of one more group, ``count``, that is thrown away: their
        number then need not be read from the data, and no shape depends on it.

        Args:
            values: rows without an owner may hold anything.
            owners: the group of each row, below ``count``; -1 in rows that belong to none.
            count: ``S``, the groups.
        """
        unowned = owners < 0
        values = values.masked_fill(unowned[:, None], 0.0)
        return self.reduce(values, owners.long().masked_fill(unowned, count), count + 1)[:count]


class PlainReducer(Reducer):
    """A reducer without parameters."""

    def __init__(self, reduce: Callable[[Tensor, Tensor, int], Tensor]) -> None:
        super().__init__()
        self.reduce = reduce


class AttentionReducer(Reducer):
    """The mean of every group, weighted by ``softmax(values . query / sqrt(W))`` within the group.

    The query is learned and starts as 0: as the mean.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width))

    def reduce(self, values: Tensor, groups: Tensor, count: int) -> Tensor:
        scores = (values @ self.query / len(self.query) ** 0.5)[:, None]
        # The softmax is that of the scores less any constant of the group: no gradient through it.
        weights = (scores - _max(scores.detach(), groups, count)[groups]).exp()
        total = _sum(weights, groups, count)  # at least 1 where there is anything
        return _sum(weights * values, groups, count) / total.clamp(min=1)


class CallableReducer(Reducer):
    """Any function of the vectors of a group, called once for all groups of one size.

    It is given (s, W, size) and reduces the last dimension, which it may keep: (s, W, 1) or (s, W).
    Raises ``ValueError`` where it gives another shape.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(
        self, values: Float[Tensor, "K W"], owners: Int[Tensor, "K"], count: int
    ) -> Float[Tensor, "S W"]:
        owned = (owners >= 0).nonzero().squeeze(1)
        order = owned[owners[owned].argsort(stable=True)]
        sizes = owners[owned].long().bincount(minlength=count).cpu().numpy()
        result = values.new_zeros(count, values.shape[1])
        for groups, rows in equal_lengths(sizes, sys.maxsize):
            members = values[order[torch.from_numpy(rows).to(order.device)]].transpose(1, 2)
            reduced = self.function(members)  # (s, W) or (s, W, 1)
            expected = tuple(members.shape[:2])
            if reduced.shape not in (expected, (*expected, 1)):
                raise ValueError(
                    f"the reducer gave shape {tuple(reduced.shape)} for {tuple(members.shape)}; "
                    f"expected {expected} or {(*expected, 1)}"
                )
            index = torch.from_numpy(groups).to(values.device)
            result = result.index_copy(0, index, reduced.reshape(expected))
        return result


def _sum(values: Tensor, groups: Tensor, count: int) -> Tensor:
    return values.new_zeros(count, values.shape[1]).index_add(0, groups, values)


def _mean(values: Tensor, groups: Tensor, count: int) -> Tensor:
    sizes = _sum(torch.ones_like(values[:, :1]), groups, count)
    return _sum(values, groups, count) / sizes.clamp(min=1)


def _max(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Equal largest values share the gradient evenly, as in ``torch.amax``."""
    # From -inf, not from 0 with include_self=False: the backward pass would still count the 0
    # among the ties of a largest value of 0 (seen in PyTorch 2.13).
    lowest = values.new_full((count, values.shape[1]), -torch.inf)
    index = groups[:, None].expand_as(values)
    largest = lowest.scatter_reduce(0, index, values, "amax")
    return largest.masked_fill(largest == -torch.inf, 0.0)


_REDUCERS: dict[str, Callable[[int], Reducer]] = {
    "sum": lambda width: PlainReducer(_sum),
    "mean": lambda width: PlainReducer(_mean),
    "max": lambda width: PlainReducer(_max),
    "attention": AttentionReducer,
}
"""The constructor of every reducer, from the width of what it reduces."""


def make_reducer(reducer: str | Callable[[Tensor], Tensor], width: int) -> Reducer:
    """The reducer of that name, or one made of a function (see :class:`CallableReducer`).

    Raises ``ValueError`` with the choices for an unknown name.
    """
    if callable(reducer):
        return CallableReducer(reducer)
    if reducer not in _REDUCERS:
        choices = ", ".join(_REDUCERS)
        raise ValueError(f"unknown reducer {reducer!r}; choose from {choices}, or give a function")
    return _REDUCERS[reducer](width)
