"""Softmaxes over choices with a time of their own, against a table of all choices at all steps."""

from __future__ import annotations

import pytest
import torch
from episodes import generator
from hypothesis import given
from hypothesis import strategies as st
from memory import Largest
from torch import Tensor

from agents.likelihood.among_candidates import Intervals

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def drawn(seed: int, choices: int, size: int, steps: int) -> tuple[Intervals, Tensor]:
    random = generator(seed)
    row = torch.randint(0, size, (choices,), generator=random)
    ends = torch.randint(0, steps, (choices, 2), generator=random).sort(1).values
    intervals = Intervals(row, ends, size, steps)
    return intervals, 5 * torch.randn(choices, generator=random, dtype=torch.float64)


def table(intervals: Intervals) -> Tensor:
    """(B, M, E) True <--> the choice is there at the step."""
    step = torch.arange(intervals.steps)[:, None]
    here = (intervals.times[:, 0] <= step) & (step <= intervals.times[:, 1])
    return here & (intervals.row == torch.arange(intervals.size)[:, None, None])


@given(
    seed=st.integers(0, 10_000),
    choices=st.integers(1, 40),
    size=st.integers(1, 3),
    steps=st.integers(1, 20),
)
def test_softmaxes_and_sums_are_those_of_the_table(seed, choices, size, steps):
    intervals, scores = drawn(seed, choices, size, steps)
    there = table(intervals)
    masked = scores.expand(there.shape).masked_fill(~there, -torch.inf)
    found = intervals.softmax(scores)
    log_total = masked.logsumexp(2)
    some = there.any(2)
    assert torch.equal(found.log_total.isfinite(), some)
    torch.testing.assert_close(found.log_total[some], log_total[some], **CLOSE)
    share = (masked - log_total[..., None]).exp().nan_to_num(0.0)
    torch.testing.assert_close(found.mean_score, (share * scores).sum(2), **CLOSE)
    weights = torch.randn(size, steps, generator=generator(seed + 1), dtype=torch.float64)
    sums = intervals.sums(scores, found.log_total, weights)
    expected = (weights[..., None] * share).sum((0, 1))
    torch.testing.assert_close(sums, expected, **CLOSE)


def test_gradients_are_those_of_the_table():
    intervals, scores = drawn(0, 12, 2, 7)
    scores.requires_grad_()
    found = intervals.log_totals(scores)
    some = found.isfinite()
    weights = torch.randn(some.shape, generator=generator(2), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((found * weights)[some].sum(), scores)
    masked = scores.expand(table(intervals).shape).masked_fill(~table(intervals), -torch.inf)
    (expected,) = torch.autograd.grad((masked.logsumexp(2) * weights)[some].sum(), scores)
    torch.testing.assert_close(gradient, expected, **CLOSE)


@pytest.mark.parametrize("scale", [1e3, 1e8])
def test_scores_far_apart_lose_nothing(scale):
    """A choice that dwarfs all others at its own steps leaves those of other steps as they are."""
    row = torch.zeros(3, dtype=torch.int64)
    intervals = Intervals(row, torch.tensor([[0, 1], [2, 3], [0, 3]]), 1, 4)
    scores = torch.tensor([scale, 0.0, 0.5], dtype=torch.float64)
    totals = intervals.softmax(scores).log_total[0]
    later = torch.tensor([0.0, 0.5], dtype=torch.float64).logsumexp(0)
    torch.testing.assert_close(totals, torch.stack([scores[0], scores[0], later, later]))
    sums = intervals.sums(scores, totals[None], torch.ones(1, 4, dtype=torch.float64))
    expected = torch.stack([scores[0] * 0 + 2, 2 * (0 - later).exp(), 2 * (0.5 - later).exp()])
    torch.testing.assert_close(sums, expected)


def test_memory_grows_as_choices_and_not_as_their_steps():
    count, steps = 1000, 1000
    intervals, scores = drawn(3, count, 1, steps)
    with Largest() as largest:
        intervals.softmax(scores)
    assert largest.size <= 2 * 10 * count + 2 * 1024 < table(intervals).sum()
