"""Reducers against plain loops over the groups."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.encoders.config import REDUCERS
from agents.encoders.reduction.reducers import make_reducer

NAMES = list(REDUCERS)


def plain(name: str, members: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """One group, by what torch itself has."""
    if not len(members):
        return torch.zeros_like(query)
    if name == "attention":
        weights = (members @ query / math.sqrt(len(query))).softmax(0)
        return (weights[:, None] * members).sum(0)
    return {"sum": torch.sum, "mean": torch.mean, "max": torch.amax}[name](members, 0)


def with_query(name: str, query: torch.Tensor) -> torch.nn.Module:
    reducer = make_reducer(name, len(query))
    for parameter in reducer.parameters():
        parameter.data.copy_(query)
    return reducer


@pytest.mark.parametrize("name", NAMES)
@given(
    owners=st.lists(st.integers(-1, 4), max_size=12),
    width=st.integers(1, 4),
    scale=st.sampled_from([1.0, 100.0]),  # scores of 100 overflow exp, unless taken off
    ties=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_reducers_equal_the_plain_loop_with_its_gradient(name, owners, width, scale, ties, seed):
    generator = torch.Generator().manual_seed(seed)
    values = scale * torch.randn(len(owners), width, generator=generator)
    if ties:  # many equal values, zeros among them
        values = (values / scale).round()
    query = torch.randn(width, generator=generator)
    weights = torch.randn(5, width, generator=generator)
    mine, theirs = (values.clone().requires_grad_() for _ in range(2))
    reducer = with_query(name, query)
    reduced = reducer(mine, torch.tensor(owners, dtype=torch.int64), 5)
    query = query.requires_grad_()
    groups = [theirs[[row for row, owner in enumerate(owners) if owner == g]] for g in range(5)]
    expected = torch.stack([plain(name, members, query) for members in groups])
    torch.testing.assert_close(reduced, expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(
        (reduced * weights).sum(), (mine, *reducer.parameters()), allow_unused=True
    )
    wanted = torch.autograd.grad(
        (expected * weights).sum() + 0 * (theirs.sum() + query.sum()), (theirs, query)
    )
    for gradient, want in zip(gradients, wanted, strict=False):
        torch.testing.assert_close(gradient, want, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("name", NAMES)
def test_what_no_slot_owns_changes_nothing(name):
    """Junk, NaN and infinity included: in the result and in every gradient."""
    owners = torch.tensor([1, -1, 0, -1, 1])
    results = []
    for junk in (0.0, torch.nan, torch.inf):
        values = torch.arange(10.0).view(5, 2)
        values[owners < 0] = junk
        values.requires_grad_()
        reducer = with_query(name, torch.tensor([0.3, -0.2]))
        reduced = reducer(values, owners, 3)
        reduced.square().sum().backward()
        gradients = [values.grad, *(parameter.grad for parameter in reducer.parameters())]
        results.append([reduced.detach(), *gradients])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))
    assert (results[0][1][owners < 0] == 0).all()


@pytest.mark.parametrize("largest", [0.0, 2.0])
def test_equal_largest_values_share_the_gradient(largest):
    """0 too, where a maximum that starts from 0 would count one value too many."""
    values = torch.tensor([[largest], [largest], [-1.0], [largest]], requires_grad=True)
    make_reducer("max", 1)(values, torch.tensor([0, 0, 0, 1]), 3).sum().backward()
    assert values.grad.ravel().tolist() == [0.5, 0.5, 0.0, 1.0]


def test_attention_starts_as_the_mean_and_learns_whom_to_hear():
    owners, values = torch.tensor([0, 0, 1]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 2.0]])
    reducer = make_reducer("attention", 2)
    reduced = reducer(values, owners, 2)
    assert reduced.tolist() == [[0.5, 0.5], [4.0, 2.0]]
    reduced[0, 0].backward()
    query = next(reducer.parameters())
    assert query.grad[0] > 0 > query.grad[1]  # towards the vector whose first number is larger


def test_an_unknown_reducer_names_the_choices():
    with pytest.raises(ValueError, match="unknown reducer 'median'; choose from sum, mean, max, a"):
        make_reducer("median", 3)
