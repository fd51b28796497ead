"""Learning from stored episodes: how far a probability may move, and what is imitated."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.off_policy import trusted


@pytest.mark.parametrize(
    ("ratio", "advantage", "may_move"),
    [
        (1.0, 1.0, True),
        (1.19, 1.0, True),
        (1.21, 1.0, False),  # already more likely than it may become
        (1.21, -1.0, True),  # but it may come back
        (0.81, -1.0, True),
        (0.79, -1.0, False),
        (0.79, 1.0, True),
        (0.0, 1.0, True),
        (0.0, -1.0, False),
    ],
)
def test_a_probability_moves_no_further_than_it_is_trusted(ratio, advantage, may_move):
    found = trusted(torch.tensor([ratio]).log(), torch.tensor([advantage]), 0.2)
    assert found.tolist() == [may_move]


@given(st.floats(-50, 50, width=32), st.floats(-1e6, 1e6, width=32), st.floats(0, 10, width=32))
def test_the_trust_region_is_that_of_the_clipped_objective(log_ratio, advantage, trust):
    """Its gradient is nonzero exactly where the probability may still move."""
    log_prob = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    ratio, factor = log_prob.exp(), torch.tensor([advantage], dtype=torch.float64)
    clipped = ratio.clamp(1 - trust, 1 + trust)
    torch.minimum(ratio * factor, clipped * factor).backward()
    moves = bool(trusted(log_prob.detach(), factor, trust))
    if advantage != 0 and ratio.item() not in (1 - trust, 1 + trust):
        assert (log_prob.grad != 0).item() == (moves and (ratio * factor).item() != 0)


def test_boundless_trust_lets_everything_move():
    log_ratio, advantages = torch.tensor([-40.0, 40.0, -40.0, 40.0]), torch.tensor([-1.0, 1, 1, -1])
    assert trusted(log_ratio, advantages, math.inf).all()
