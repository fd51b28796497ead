"""Reducers: one vector for each group of vectors, all groups of all samples in one call.

The members of a group need not be neighbours: every vector names its owner. Sums are scattered
(``index_add``), which has the exact gradient; nested tensors lose it in the backward pass of
``sum`` and ``mean``, and ``segment_reduce`` takes contiguous groups only (and measured slower on
CPU).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn


def reduce_sum(
    values: Float[Tensor, "K W"], owners: Int[Tensor, "K"], count: int
) -> Float[Tensor, "S W"]:
    """The sum of every group; 0 where a group is empty.

    Args:
        values: rows without an owner may hold anything.
        owners: the group of each row, below ``count``; -1 in rows that belong to none.
        count: ``S``, the groups.
    """
    values, groups = _with_bin(values, owners, count)
    return _sum(values, groups, count + 1)[:count]


def reduce_mean(
    values: Float[Tensor, "K W"], owners: Int[Tensor, "K"], count: int
) -> Float[Tensor, "S W"]:
    """The mean of every group; 0 where a group is empty. Arguments: :func:`reduce_sum`."""
    values, groups = _with_bin(values, owners, count)
    sizes = _sum(torch.ones_like(values[:, :1]), groups, count + 1)
    return (_sum(values, groups, count + 1) / sizes.clamp(min=1))[:count]


def reduce_max(
    values: Float[Tensor, "K W"], owners: Int[Tensor, "K"], count: int
) -> Float[Tensor, "S W"]:
    """The largest value of every group; 0 where a group is empty. Arguments: :func:`reduce_sum`.

    Equal largest values share the gradient evenly, as in ``torch.amax``.
    """
    values, groups = _with_bin(values, owners, count)
    return _max(values, groups, count + 1)[:count]


def reduce_attention(
    values: Float[Tensor, "K W"],
    owners: Int[Tensor, "K"],
    count: int,
    query: Float[Tensor, "W"],
) -> Float[Tensor, "S W"]:
    """The mean of every group, weighted by ``softmax(values . query / sqrt(W))`` within the group.

    0 where a group is empty. Other arguments: :func:`reduce_sum`.
    """
    values, groups = _with_bin(values, owners, count)
    scores = (values @ query / len(query) ** 0.5)[:, None]
    # The softmax is that of the scores less any constant of the group: no gradient through it.
    weights = (scores - _max(scores.detach(), groups, count + 1)[groups]).exp()
    total = _sum(weights, groups, count + 1)  # at least 1 where there is anything
    return (_sum(weights * values, groups, count + 1) / total.clamp(min=1))[:count]


class AttentionReducer(nn.Module):
    """:func:`reduce_attention` with a learned query, which starts as 0: as the mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width))

    def forward(
        self, values: Float[Tensor, "K W"], owners: Int[Tensor, "K"], count: int
    ) -> Float[Tensor, "S W"]:
        return reduce_attention(values, owners, count, self.query)


class PlainReducer(nn.Module):
    """A reducer without parameters."""

    def __init__(self, reduce: Callable[[Tensor, Tensor, int], Tensor]) -> None:
        super().__init__()
        self.reduce = reduce

    def forward(
        self, values: Float[Tensor, "K W"], owners: Int[Tensor, "K"], count: int
    ) -> Float[Tensor, "S W"]:
        return self.reduce(values, owners, count)


_REDUCERS: dict[str, Callable[[int], nn.Module]] = {
    "sum": lambda width: PlainReducer(reduce_sum),
    "mean": lambda width: PlainReducer(reduce_mean),
    "max": lambda width: PlainReducer(reduce_max),
    "attention": AttentionReducer,
}
"""The constructor of every reducer, from the width of what it reduces."""


def make_reducer(name: str, width: int) -> nn.Module:
    """The reducer of that name, called with values, owners and count.

    Raises ``ValueError`` with the choices for an unknown name.
    """
    if name not in _REDUCERS:
        raise ValueError(f"unknown reducer {name!r}; choose from {', '.join(_REDUCERS)}")
    return _REDUCERS[name](width)


def _with_bin(
    values: Float[Tensor, "K W"], owners: Int[Tensor, "K"], count: int
) -> tuple[Float[Tensor, "K W"], Int64[Tensor, "K"]]:
    """Rows without an owner become zeros of one more group, ``count``, that is thrown away.

    Their number then need not be read from the data, and no shape depends on it.
    """
    unowned = owners < 0
    return values.masked_fill(unowned[:, None], 0.0), owners.long().masked_fill(unowned, count)


def _sum(
    values: Float[Tensor, "K W"], groups: Int64[Tensor, "K"], count: int
) -> Float[Tensor, "S W"]:
    return values.new_zeros(count, values.shape[1]).index_add(0, groups, values)


def _max(
    values: Float[Tensor, "K W"], groups: Int64[Tensor, "K"], count: int
) -> Float[Tensor, "S W"]:
    # From -inf, not from 0 with include_self=False: the backward pass would still count the 0
    # among the ties of a largest value of 0 (seen in PyTorch 2.13).
    lowest = values.new_full((count, values.shape[1]), -torch.inf)
    index = groups[:, None].expand_as(values)
    largest = lowest.scatter_reduce(0, index, values, "amax")
    return largest.masked_fill(largest == -torch.inf, 0.0)
