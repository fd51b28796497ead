"""The exponential with a floor: the same above it, exactly 0 below, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch

from replay.exponential import LEAST, weights_of


@pytest.mark.parametrize(("dtype", "least"), LEAST.items())
def test_it_is_the_exponential_above_the_floor_and_nothing_below(dtype, least):
    values = torch.tensor([0.0, 1.5, -3.0, least + 1, least - 1, -1e9, -math.inf], dtype=dtype)
    weights = weights_of(values)
    assert torch.equal(weights[:4], values[:4].exp())
    assert weights[4:].tolist() == [0.0, 0.0, 0.0]
    assert weights_of(torch.tensor([math.nan], dtype=dtype)).isnan().all()
    assert torch.equal(weights_of(values.repeat(9))[-7:], weights)  # in vectors as one by one


def test_its_gradient_is_itself():
    values = torch.tensor([0.5, -2.0, -1e9], requires_grad=True)
    weights_of(values).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([math.exp(0.5), math.exp(-2.0), 0.0])
