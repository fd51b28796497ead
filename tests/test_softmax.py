"""Sums and entropies over pairs in many states at once, and the exponential with a floor."""

from __future__ import annotations

import math

import pytest
import torch

from htm_env.softmax import LEAST, choice_entropy, log_totals, weights_of

ACTIVE = torch.tensor([[[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]]]).bool()


def test_by_hand():
    scores = torch.tensor([[[9.0, 0.0, 1.0], [2.0, 9.0, 3.0], [4.0, 5.0, 9.0]]])
    found = log_totals(scores, ACTIVE)[0].tolist()
    six = math.log(sum(math.exp(x) for x in range(6)))
    assert found == pytest.approx([six, math.log(math.exp(3) + math.exp(5)), 0.0, 0.0])


def test_a_state_far_below_the_best_pair_is_exact():
    """(0, 1) is e^1000 times as likely as all else, and not there in the second state."""
    scores = torch.zeros(1, 3, 3)
    scores[0, 0, 1] = 1000.0
    scores.requires_grad_()
    found = log_totals(scores, ACTIVE)
    assert found[0].tolist() == pytest.approx([1000.0, math.log(2), 0.0, 0.0])
    found[0, 1].backward()
    expected = torch.zeros(3, 3)
    expected[1, 2] = expected[2, 1] = 0.5
    torch.testing.assert_close(scores.grad[0], expected)


@pytest.mark.parametrize("ordered", [True, False])
def test_entropy_counts_equal_choices(ordered):
    scores = torch.full((1, 3, 3), 7.0)
    found = choice_entropy(scores, ACTIVE, ordered)[0].exp().tolist()
    assert found == pytest.approx([6, 2, 1, 1] if ordered else [3, 1, 1, 1])


@pytest.mark.parametrize("ordered", [True, False])
def test_entropy_by_hand(ordered):
    """(0, 1) is twice as likely as (1, 0), and every other pair impossible, or not there."""
    scores = torch.full((1, 3, 3), -900.0)
    scores[0, 0, 1], scores[0, 1, 0] = math.log(2.0), 0.0
    found = choice_entropy(scores, ACTIVE, ordered)[0].tolist()
    two_thirds = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)
    assert found == pytest.approx([two_thirds if ordered else 0.0, 0.0, 0.0, 0.0], abs=1e-6)


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
