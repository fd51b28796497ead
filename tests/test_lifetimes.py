"""Sums over the time in which a pair could be merged: by hand, against a loop, far apart."""

from __future__ import annotations

import pytest
import torch
from episodes import RAGGED, active_lists, generator, random_batch, random_policy

from agents.likelihood.among_all import Lifetimes
from agents.rollouts.rollout import rollout

FOUR = torch.tensor([[[0, 1], [4, 2], [5, 3]]])  # a chain over the tokens 0 to 3
ALL = torch.ones(1, 7, dtype=torch.bool)


def test_lifetimes_of_a_chain_by_hand():
    found = Lifetimes(FOUR, ALL, torch.tensor([4]))
    expected = {
        (0, 1): (0, 0),
        (0, 2): (0, 0),
        (2, 3): (0, 1),
        (2, 4): (1, 1),
        (3, 4): (1, 1),
        (3, 5): (2, 2),
        (1, 3): (0, 0),
        (1, 2): (0, 0),
        (0, 3): (0, 0),
    }
    for first in range(7):
        for second in range(7):
            pair = (min(first, second), max(first, second))
            assert bool(found.pairs[0, first, second]) == (pair in expected)
            if pair in expected:
                times = (found.first_step[0, first, second], found.last_step[0, first, second])
                assert tuple(map(int, times)) == expected[pair]


def test_sums_of_a_chain_by_hand():
    """The pair (2, 3) can be merged at the first two steps: e^(1 - 2) and e^(1 - 3)."""
    scores = torch.ones(1, 7, 7)
    totals, weights = torch.tensor([[2.0, 3.0, 1.0]]), torch.tensor([[5.0, -7.0, 11.0]])
    found = Lifetimes(FOUR, ALL, torch.tensor([4])).sums(scores, totals, weights)[0]
    e = torch.tensor(1.0).exp()
    assert float(found[2, 3]) == pytest.approx(float(5 / e - 7 / e**2))
    assert float(found[3, 5]) == pytest.approx(11.0)
    assert float(found[0, 1]) == pytest.approx(float(5 / e))
    assert float(found[0, 4]) == float(found[6, 6]) == float(found[2, 2]) == 0.0


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_sums_are_those_of_a_loop(autoencoder, partial, spread):
    """Also where the pairs of one step are e^300 times as likely as those of another."""
    batch = random_batch(RAGGED, slots=7)
    limit = torch.tensor([3, 1, 2, 0, 2, 4]) if partial else None
    made, _ = rollout(autoencoder, random_policy("pointer"), batch, generator(), num_merges=limit)
    scores = torch.randn(6, 13, 13, generator=generator(1), dtype=torch.float64) * spread
    weights = torch.randn(6, 6, generator=generator(2), dtype=torch.float64)
    totals, expected = torch.zeros_like(weights), torch.zeros_like(scores)
    for row, steps in enumerate(active_lists(made.merges, batch.num_tokens)):
        for step, active in enumerate(steps):
            if not made.steps[row, step]:
                continue
            pairs = [(i, j) for i in active for j in active if i != j]
            first, second = torch.tensor(pairs).unbind(1)
            totals[row, step] = scores[row, first, second].logsumexp(0)
            chance = (scores[row, first, second] - totals[row, step]).exp()
            expected[row, first, second] += weights[row, step] * chance
    found = Lifetimes(made.merges, made.exists, batch.num_tokens)
    torch.testing.assert_close(found.sums(scores, totals, weights), expected)
    single = found.sums(scores.float(), totals.float(), weights.float())
    torch.testing.assert_close(single, expected.float(), rtol=1e-3, atol=1e-4)
