"""Trees of one sample: what they share is done once, and comes out as if it were not."""

from __future__ import annotations

import pytest
import torch
from episodes import RAGGED, SCORERS, generator, random_batch, random_policy
from hypothesis import given
from hypothesis import strategies as st

from agents.node_features import NodeFeatures
from agents.policy import Features
from agents.rollout import follow, rollout
from htm_env.autoencoder import HTMAutoencoder
from htm_env.forest import leaf_counts
from htm_env.rewards import node_errors
from htm_env.shared_nodes import SharedNodes
from htm_env.types import TokenBatch

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
COPIES = [2, 3, 1, 2, 1, 3]
"""Trees of every sample of RAGGED."""
STD = torch.ones(3)


@pytest.fixture(scope="module")
def autoencoder() -> HTMAutoencoder:
    return HTMAutoencoder(3, 5, 16, generator=generator(1))


def trees(autoencoder: HTMAutoencoder, seed: int) -> tuple[TokenBatch, torch.Tensor]:
    """Several trees a sample by an undecided policy, some of which begin alike, or are the same."""
    one = random_batch(RAGGED, seed=seed)
    batch = one.rows(torch.arange(len(RAGGED)).repeat_interleave(torch.tensor(COPIES)))
    policy = random_policy("pointer", seed=seed)
    merges = rollout(autoencoder, policy, batch, generator(seed)).merges
    twin = torch.tensor([1, 10])  # of the rows before them
    merges[twin] = merges[twin - 1]
    merges[10, -1] = merges[10, -1].flip(0)  # but for the last merge of six tokens
    return batch, merges


def test_rows_of_a_sample_are_neighbours_with_its_tokens():
    one = random_batch(RAGGED)
    shared = SharedNodes.of(one.rows(torch.tensor([2, 2, 0, 2, 3, 3, 3])))
    assert shared.first.tolist() == [0, 2, 3, 4]
    assert shared.sample.tolist() == [0, 0, 1, 2, 3, 3, 3]
    assert shared.same.tolist() == [0, 0, 2, 3, 4, 4, 4]
    assert shared.spread(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [1, 1, 2, 3, 4, 4, 4]


def test_the_same_tokens_in_other_slots_are_another_sample():
    batch = random_batch([2, 2])
    batch = batch._replace(
        tokens=torch.zeros_like(batch.tokens),
        present=torch.tensor([[True, True, False], [True, False, True]]),
    )
    assert SharedNodes.of(batch).first.tolist() == [0, 1]


@given(seed=st.integers(0, 1000))
def test_what_is_repeated_are_leaves_and_merges_before_the_first_other_one(seed):
    drawn = generator(seed)
    batch = random_batch([4, 3]).rows(torch.tensor([0, 0, 0, 1, 1]))
    # few pairs, so that many begin alike; whether they are a forest does not matter here
    merges = torch.randint(0, 2, (5, 3, 2), generator=drawn)
    merges[3:, 2] = -1
    repeated = SharedNodes.of(batch).repeated(merges, batch.num_tokens)
    for row, first, tokens in ((0, 0, 4), (1, 0, 4), (2, 0, 4), (3, 3, 3), (4, 3, 3)):
        expected = [False] * 7
        if row != first:
            expected[:tokens] = [True] * tokens
            for time in range(tokens - 1):
                if merges[row, : time + 1].tolist() != merges[first, : time + 1].tolist():
                    break
                expected[tokens + time] = True
        assert repeated[row].tolist() == expected


@pytest.mark.parametrize("seed", range(3))
def test_errors_of_shared_nodes_are_those_of_every_tree_alone(autoencoder, seed):
    batch, merges = trees(autoencoder, seed)
    episodes = follow(autoencoder, batch, merges)
    errors = node_errors(autoencoder, episodes.nodes, episodes.exists, merges, batch, STD)
    for row in range(len(merges)):
        only = slice(row, row + 1)
        alone = node_errors(
            *(autoencoder, episodes.nodes[only], episodes.exists[only], merges[only]),
            *(batch.rows(only), STD),
        )
        torch.testing.assert_close(errors[only], alone, **CLOSE)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("seed", range(3))
def test_features_of_shared_nodes_are_those_of_all_and_so_are_their_gradients(
    autoencoder, scorer, seed
):
    batch, merges = trees(autoencoder, seed)
    episodes, policy = follow(autoencoder, batch, merges), random_policy(scorer, seed=seed)
    exists = leaf_counts(merges, batch.num_tokens) > 0
    found = NodeFeatures(policy, batch, episodes)
    every = policy.features(episodes.nodes, episodes.leaf_counts)
    assert len(found.features.first) < int(exists.sum())
    gradients = []
    for features in (found.table, every):
        here = Features(*(values[exists] for values in features))
        weights = [
            torch.randn(values.shape, generator=generator(5)) for values in here
        ]  # the same for both
        loss = sum((values * weight).sum() for values, weight in zip(here, weights, strict=True))
        used = list(policy.body.parameters() if scorer == "pointer" else policy.first.parameters())
        gradients.append([*here, *torch.autograd.grad(loss, used)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_greedy_trees_of_a_sample_are_all_alike(autoencoder):
    one, policy = random_batch(RAGGED), random_policy("pointer")
    alone = rollout(autoencoder, policy, one, generator(), greedy=True)
    rows = torch.arange(len(RAGGED)).repeat_interleave(torch.tensor(COPIES))
    several = rollout(autoencoder, policy, one.rows(rows), generator(), greedy=True)
    assert torch.equal(several.merges, alone.merges[rows])
    torch.testing.assert_close(several.log_prob, alone.log_prob[rows], **CLOSE)
