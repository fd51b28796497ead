"""The distribution over pairs: sampling, log-probability and entropy by hand."""

from __future__ import annotations

import math

import pytest
import torch
from episodes import generator
from scipy.stats import chisquare

from agents.rollouts.pair_scores import ILLEGAL
from agents.rollouts.rollout import choices, choose_pairs, most_entropy

SCORES = torch.tensor([[ILLEGAL, 0.0, 1.0], [0.5, ILLEGAL, -1.0], [1.5, 0.2, ILLEGAL]])


def test_probabilities_are_the_softmax_of_the_scores():
    probability, _ = choices(SCORES[None] + 300.0, ordered=True)
    expected = SCORES.flatten().softmax(0).view(1, 3, 3)
    torch.testing.assert_close(probability, expected)
    assert not probability[0].diagonal().any()  # exactly 0


def test_sampled_pairs_come_as_often_as_their_probabilities_say():
    count = 20_000
    probability, _ = choices(SCORES.expand(count, 3, 3), ordered=True)
    draws = torch.rand(2, count, generator=generator(), dtype=torch.float64)
    first, second, log_prob = choose_pairs(probability, draws)
    expected = SCORES.flatten().softmax(0)
    torch.testing.assert_close(log_prob.exp(), expected[first * 3 + second])
    observed = torch.bincount(first * 3 + second, minlength=9)
    legal = expected > 0
    assert observed[~legal].sum() == 0
    assert legal.sum() == 6
    chances = expected[legal].double() / expected[legal].double().sum()
    assert chisquare(observed[legal].numpy(), (chances * count).numpy()).pvalue > 0.01


def test_greedy_takes_the_most_likely_pair():
    first, second, log_prob = choose_pairs(choices(SCORES[None], True)[0], None)
    assert (first.tolist(), second.tolist()) == ([2], [0])
    assert float(log_prob) == pytest.approx(float(SCORES.flatten().log_softmax(0)[6]))


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("ordered", [True, False])
def test_entropy_of_equal_scores_counts_the_legal_choices(count, ordered):
    """``e^entropy`` is their number, whatever stands in empty positions."""
    scores = torch.full((1, 8, 8), ILLEGAL)
    scores[:, :count, :count] = 4.2
    scores.diagonal(dim1=1, dim2=2).fill_(ILLEGAL)
    number = count * (count - 1) // (1 if ordered else 2)
    assert float(choices(scores, ordered)[1].exp()) == pytest.approx(number, rel=1e-5)
    most = float(most_entropy(torch.tensor([count]), ordered))
    assert most == pytest.approx(math.log(number) if number > 1 else 1.0)


def test_entropy_by_hand():
    """Of three nodes, (0, 1) and (1, 0) are equally likely and the others impossible."""
    scores = torch.full((1, 3, 3), -50.0)
    scores[0, 0, 1] = scores[0, 1, 0] = 2.0
    scores[0].fill_diagonal_(ILLEGAL)
    assert float(choices(scores, True)[1]) == pytest.approx(math.log(2))
    assert float(choices(scores, False)[1]) == pytest.approx(0, abs=1e-6)
    scores[0, 0, 2] = 2.0 + math.log(2)  # as likely as the other two together
    assert float(choices(scores, True)[1]) == pytest.approx(1.5 * math.log(2))
    assert float(choices(scores, False)[1]) == pytest.approx(math.log(2))
