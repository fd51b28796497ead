"""Rollouts on arrays: the episodes of rollouts on tensors, from the same random numbers."""

from __future__ import annotations

import pytest
import torch
from episodes import (
    COPIES,
    EITHER_WAY,
    RAGGED,
    SCORERS,
    generator,
    random_batch,
    random_policy,
    replayed_log_probs,
    several_trees,
)
from scipy.stats import chisquare

from agents.fixed import all_merge_sequences
from agents.networks.scorers import Placed, PointerPolicy
from agents.rollouts.rollout import rollout
from benchmarks.rollout_speed import OnTensors

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def both(autoencoder, policy, batch, seed, **options):
    """The same rollout on tensors and on arrays."""
    on_tensors = rollout(autoencoder, OnTensors(policy), batch, generator(seed), **options)
    return on_tensors, rollout(autoencoder, policy, batch, generator(seed), **options)


def check_equal(on_tensors, on_arrays):
    (expected, expected_terms), (made, terms) = on_tensors, on_arrays
    assert torch.equal(made.merges, expected.merges)
    assert torch.equal(made.leaf_counts, expected.leaf_counts)
    assert torch.equal(made.active, expected.active)
    torch.testing.assert_close(made.nodes, expected.nodes, **CLOSE)
    for name in ("log_prob", "log_total", "entropy"):
        torch.testing.assert_close(getattr(terms, name), getattr(expected_terms, name), **CLOSE)


@pytest.mark.parametrize("network", [*SCORERS, EITHER_WAY])
@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_merges_and_terms_are_those_on_tensors(autoencoder, network, greedy, measured, ordered):
    batch = several_trees(random_batch(RAGGED, slots=7))
    options = {"measure_entropy": measured, "ordered_entropy": ordered, "greedy": greedy}
    for seed in range(3):
        check_equal(*both(autoencoder, random_policy(network), batch, seed, **options))


def test_merges_are_those_on_tensors_where_episodes_end_early(autoencoder):
    batch, limit = several_trees(random_batch(RAGGED)), torch.tensor(RAGGED) // 2
    limit = limit.repeat_interleave(torch.tensor(COPIES))
    check_equal(*both(autoencoder, random_policy("pointer"), batch, 1, num_merges=limit))


def test_coordinates_beside_embeddings_are_those_on_tensors(autoencoder):
    seen, batch = Placed(autoencoder), several_trees(random_batch(RAGGED))
    check_equal(*both(seen, random_policy("pointer", seen.embedding_dim), batch, 2))


def test_a_subclass_with_scores_of_its_own_keeps_them(autoencoder):
    class Turned(PointerPolicy):
        def scores(self, first, second):
            return -super().scores(first, second)

    torch.manual_seed(0)
    policy, batch = Turned(5, 12), random_batch([5] * 10)
    check_equal(*both(autoencoder, policy, batch, 0, greedy=True))


@pytest.mark.parametrize("factor", [30.0, 1e3, 1e6])
def test_scores_may_lie_far_apart(autoencoder, factor):
    """After the likeliest pairs are gone the others are as unlikely as exp(-1e6) beside them."""

    class Sure(PointerPolicy):
        def features(self, embeddings, leaf_counts):
            found = super().features(embeddings, leaf_counts)
            return type(found)(factor * found.first, found.second, found.hidden)

    torch.manual_seed(0)
    policy = Sure(5, 12)
    with torch.no_grad():
        policy.head.weight.mul_(10)
    (expected, _), (made, terms) = both(autoencoder, policy, random_batch([9, 7] * 10), 0)
    assert torch.equal(made.merges, expected.merges)
    assert terms.log_prob.isfinite().all() and terms.log_total.isfinite().all()


@pytest.mark.parametrize("distance", [-7e8, 7e8, -1e30, float("nan")])
def test_scores_beyond_those_of_illegal_pairs_are_legal(autoencoder, distance):
    """As those of an autoencoder that diverges: bounded, so that all pairs are alike."""

    class Away(PointerPolicy):
        def scores(self, first, second):
            return super().scores(first, second) + distance

    torch.manual_seed(0)
    batch = random_batch(RAGGED)
    check_equal(*both(autoencoder, Away(5, 12), batch, 0))
    (_, _), (made, terms) = both(autoencoder, Away(5, 12), batch, 1)
    number = made.num_active * (made.num_active - 1)
    expected = torch.where(made.steps, -number.clamp(min=1).log(), 0.0)
    torch.testing.assert_close(terms.log_prob, expected)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["pointer", EITHER_WAY])
def test_all_sequences_of_four_tokens_come_as_often_as_they_are_likely(autoencoder, network):
    sequences, policy = all_merge_sequences(4), random_policy(network, seed=1)
    assert len(sequences) == 144  # 12 ordered pairs, then 6, then 2
    one = random_batch([4])
    expected = replayed_log_probs(
        autoencoder, policy, one.rows(torch.zeros(144, dtype=torch.int64)), sequences
    )
    expected = expected.sum(1).double().exp().detach()
    assert expected.max() > 2 * expected.min()  # else every sampler passes
    count = 50_000
    many = one.rows(torch.zeros(count, dtype=torch.int64))
    made, _ = rollout(autoencoder, policy, many, generator(3))
    observed = (made.merges[:, None] == sequences).all(3).all(2).sum(0)
    chances = expected / expected.sum() * count
    cell = torch.arange(144).where(chances > 5, chances.argmax())  # rare ones join the likeliest
    compared = [
        torch.zeros(144, dtype=torch.float64).index_add(0, cell, values.double())[cell.unique()]
        for values in (observed, chances)
    ]
    assert chisquare(*(values.numpy() for values in compared)).pvalue > 0.001
