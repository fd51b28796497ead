"""Reconstruction without being told the tree, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import small_autoencoder
from torch import nn

from htm_env.autoencoder import HTMAutoencoder
from htm_env.generation.untold import set_errors, untold_errors
from htm_env.measures.metrics import nmse_per_sample
from htm_env.types import TokenBatch


def of_numbers(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers)[:, None]


@pytest.mark.parametrize(
    ("decoded", "tokens", "error"),
    [
        ([3.0, 1.0], [1.0, 3.0], 0.0),  # a set has no order
        ([1.5, 3.0], [1.0, 3.0], 0.25 / 2),
        ([3.0], [1.0, 3.0], 1 / 2),  # 1 is missing: its square
        ([1.0, 3.0, 0.5], [1.0, 3.0], 0.25 / 2),  # 0.5 is too many: its square
        ([1.0], [1.0, 3.0], (4 + 1) / 2),  # less than 9: 1 for 3, and the mean for 1
        ([1.0, 3.0, 0.0], [1.0, 3.0], 0.0),  # the mean is what is not there
        ([5.0], [5.0], 0.0),
    ],
)
def test_errors_of_sets_by_hand(decoded, tokens, error):
    assert float(set_errors(of_numbers(*decoded), of_numbers(*tokens))) == pytest.approx(error)


def test_what_is_not_finite_shows():
    assert math.isnan(float(set_errors(of_numbers(math.nan, 1.0), of_numbers(1.0, 2.0))))


class Leaf(nn.Module):
    """A leaf is what has 0 as second number: see :func:`pairs`."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, state):
        return 0.25 - state[:, 1:2].abs() + self.shift


@torch.no_grad()
def pairs() -> HTMAutoencoder:
    """Tokens of one number; a pair is merged into its two numbers, and split again exactly."""
    autoencoder = HTMAutoencoder(1, embedding_dim=2, hidden_dim=8)
    for weight in autoencoder.parameters():
        weight.zero_()
    autoencoder.lifter.skip.weight.copy_(torch.tensor([[1.0], [0.0]]))
    autoencoder.merger.skip.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0, 1.0, 0]]))
    autoencoder.unmerger.skip.weight.copy_(torch.tensor([[1.0, 0], [0, 0], [0, 1.0], [0, 0]]))
    autoencoder.unlifter.skip.weight.copy_(torch.tensor([[1.0, 0.0]]))
    return autoencoder


def two_and_one() -> tuple[TokenBatch, torch.Tensor]:
    """The pair (3, 1), and 2 alone."""
    tokens = torch.tensor([[[3.0], [1.0]], [[2.0], [0.0]]])
    present = torch.tensor([[True, True], [True, False]])
    merges = torch.tensor([[[0, 1]], [[-1, -1]]])
    return TokenBatch(tokens, present, torch.zeros(2, 0, 2, dtype=torch.bool), merges), merges


def test_untold_is_told_where_the_classifier_is_right():
    autoencoder = pairs()
    autoencoder.classifier = Leaf()
    batch, merges = two_and_one()
    std = torch.tensor([2.0])
    roots = autoencoder.encode(batch.tokens, batch.present, merges).roots
    off = roots + torch.tensor([0.5, 0.0])  # so that there is an error: 0.5 of one token of each
    told = nmse_per_sample(autoencoder.decode(off, merges, batch.present), *batch[:2], std)
    untold = untold_errors(autoencoder, off, batch, torch.zeros(1), std)
    assert untold.tolist() == pytest.approx(told.tolist())
    assert untold.tolist() == pytest.approx([(0.5 / 2) ** 2 / 2, (0.5 / 2) ** 2])


def test_a_pair_that_is_called_a_leaf_lacks_a_token():
    """The pair's first number is decoded, 3, and 1 is missing; the single token is right."""
    autoencoder = pairs()
    autoencoder.classifier = Leaf(shift=100.0)
    batch, merges = two_and_one()
    roots = autoencoder.encode(batch.tokens, batch.present, merges).roots
    found = untold_errors(autoencoder, roots, batch, torch.zeros(1), torch.ones(1))
    assert found.tolist() == pytest.approx([1 / 2, 0.0])


def test_a_classifier_that_never_stops_is_stopped():
    """Four tokens at most, twice the slots: the single token 2 becomes 2 and three times 0."""
    autoencoder = pairs()
    autoencoder.classifier = Leaf(shift=-100.0)
    batch, merges = two_and_one()
    roots = autoencoder.encode(batch.tokens, batch.present, merges).roots
    found = untold_errors(autoencoder, roots, batch, torch.zeros(1), torch.ones(1))
    assert found.tolist() == pytest.approx([0.0, 0.0])


def test_units_and_the_mean_are_those_of_the_training_split():
    """A missing token costs its distance from the mean in standard deviations, squared."""
    autoencoder = small_autoencoder(1)
    autoencoder.classifier = Leaf(shift=100.0)
    batch, _ = two_and_one()
    with torch.no_grad():
        for weight in autoencoder.unlifter.parameters():
            weight.zero_()  # the mean is decoded
    roots = torch.zeros(2, autoencoder.embedding_dim)
    mean, std = autoencoder.token_mean, torch.tensor([2.0])
    found = untold_errors(autoencoder, roots, batch, mean, std)
    distance = ((batch.tokens - mean) / std).square()
    expected = [float(distance[0].sum()) / 2, float(distance[1, 0, 0])]
    assert found.tolist() == pytest.approx(expected)
