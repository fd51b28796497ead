"""Trees of one sample: what they share is done once, and comes out as if it were not."""

from __future__ import annotations

import pytest
import torch
from episodes import RAGGED, SCORERS, generator, random_batch, random_policy, several_trees
from hypothesis import given
from hypothesis import strategies as st

from agents.likelihood.among_all import NodeFeatures
from agents.rollouts.rollout import follow
from htm_env.autoencoder import HTMAutoencoder
from htm_env.candidates import Nearest
from htm_env.population import node_errors
from htm_env.types import SampleRows, TokenBatch

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
STD = torch.ones(3)


@pytest.fixture(scope="module")
def autoencoder() -> HTMAutoencoder:
    return HTMAutoencoder(3, 5, 16, generator=generator(1))


def trees(autoencoder: HTMAutoencoder, seed: int) -> tuple[TokenBatch, torch.Tensor]:
    """Several trees a sample by an undecided policy, some of which begin alike, or are the same."""
    batch, policy = several_trees(random_batch(RAGGED, seed=seed)), random_policy("pointer")
    merges = policy.plan(autoencoder, batch, generator(seed), greedy=False)
    merges[1] = merges[0]  # four tokens
    merges[10] = merges[9]  # six, alike but for the last merge
    merges[10, -1] = merges[10, -1].flip(0)
    merges[11, 3:] = -1  # six, not merged to the end
    return batch, merges


def two_trees(common: int) -> tuple[TokenBatch, torch.Tensor]:
    """Chains of four tokens that begin with so many merges alike."""
    chain = torch.tensor([[0, 1], [4, 2], [5, 3]])
    other = torch.cat([chain[:common], chain[common:].flip(1)])
    return random_batch([4]).rows(torch.tensor([0, 0])), torch.stack([chain, other])


# ---------------------------------------------------------------- rows


def test_rows_of_a_sample_are_neighbours():
    batch = random_batch(RAGGED).rows(torch.tensor([2, 2, 0, 2, 3, 3, 3]))
    rows = SampleRows.of(batch)
    assert rows.first_row.tolist() == [0, 0, 2, 3, 4, 4, 4]
    assert rows.first_rows.tolist() == [0, 2, 3, 4]
    assert rows.spread(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [1, 1, 2, 3, 4, 4, 4]
    again = batch.rows(torch.tensor([0, 3, 1, 4, 4])).to("cpu")  # also of rows that were repeated
    assert SampleRows.of(again).first_row.tolist() == [0, 0, 0, 3, 3]
    assert SampleRows.of(batch.rows(slice(1, 4))).first_row.tolist() == [0, 1, 2]


def test_samples_with_the_same_tokens_are_others_unless_the_batch_says_so():
    batch = random_batch([3, 3])
    batch.tokens[1] = batch.tokens[0]
    assert SampleRows.of(batch).first_row.tolist() == [0, 1]


@given(seed=st.integers(0, 1000))
def test_what_is_repeated_are_leaves_and_merges_before_the_first_other_one(seed):
    drawn = generator(seed)
    batch = random_batch([4, 3]).rows(torch.tensor([0, 0, 0, 1, 1]))
    # few pairs, so that many begin alike; whether they are a forest does not matter here
    merges = torch.randint(0, 2, (5, 3, 2), generator=drawn)
    merges[3:, 2] = -1
    repeated = SampleRows.of(batch).repeated(merges, batch.num_tokens)
    for row, first, tokens in ((0, 0, 4), (1, 0, 4), (2, 0, 4), (3, 3, 3), (4, 3, 3)):
        expected = [False] * 7
        if row != first:
            expected[:tokens] = [True] * tokens
            for time in range(tokens - 1):
                if merges[row, : time + 1].tolist() != merges[first, : time + 1].tolist():
                    break
                expected[tokens + time] = True
        assert repeated[row].tolist() == expected


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("seed", range(3))
def test_errors_of_shared_nodes_are_those_of_every_tree_alone(autoencoder, seed):
    batch, merges = trees(autoencoder, seed)
    episodes = follow(autoencoder, batch, merges)
    errors = node_errors(autoencoder, batch, merges, episodes.nodes, STD)
    for row in range(len(merges)):
        only = slice(row, row + 1)
        alone = node_errors(autoencoder, batch.rows(only), merges[only], episodes.nodes[only], STD)
        torch.testing.assert_close(errors[only], alone, **CLOSE)


@pytest.mark.parametrize("common", range(4))
def test_what_two_trees_share_is_decoded_once(autoencoder, common):
    """Counted in leaves that are unlifted: each node's own tokens."""
    batch, merges = two_trees(common)
    episodes, leaves = follow(autoencoder, batch, merges), []
    hook = autoencoder.unlifter.register_forward_hook(
        lambda network, inputs, output: leaves.append(len(output))
    )
    node_errors(autoencoder, batch, merges, episodes.nodes, STD)
    hook.remove()
    counts = episodes.leaf_counts
    assert sum(leaves) == counts.sum() - counts[1, : 4 + common].sum()


# ---------------------------------------------------------------- what a scorer makes of nodes


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("common", range(4))
def test_what_two_trees_share_is_evaluated_once(autoencoder, scorer, common):
    batch, merges = two_trees(common)
    nodes = NodeFeatures(random_policy(scorer), batch, follow(autoencoder, batch, merges))
    assert len(nodes.known.first) == 7 + 3 - common
    shared = slice(0, 4 + common)
    assert torch.equal(nodes.first[0, shared], nodes.first[1, shared])
    assert torch.equal(nodes.pooled[0, shared], nodes.pooled[1, shared])


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("seed", range(3))
def test_features_of_shared_nodes_are_those_of_every_node_and_so_are_their_gradients(
    autoencoder, scorer, seed
):
    batch, merges = trees(autoencoder, seed)
    episodes, policy = follow(autoencoder, batch, merges), random_policy(scorer, seed=seed)
    every = policy.features(episodes.nodes, episodes.leaf_counts)
    results = []
    for features in (NodeFeatures(policy, batch, episodes), every):
        tables = [features.first, features.second, features.pooled]
        assert all(table.isfinite().all() for table in tables)
        there = [table[episodes.exists] for table in tables]
        # of the same random weights for both
        loss = sum(
            (values * torch.randn(values.shape, generator=generator(5))).sum() for values in there
        )
        gradients = torch.autograd.grad(
            loss,
            list(policy.parameters()),
            retain_graph=True,
            materialize_grads=True,
            allow_unused=True,
        )
        results.append([*there, *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("nearest", [None, Nearest(2)])
@pytest.mark.parametrize("scorer", SCORERS)
def test_a_step_on_several_trees_is_the_mean_of_those_on_each(autoencoder, scorer, nearest):
    batch, merges = trees(autoencoder, 0)
    policy, drawn = random_policy(scorer), generator(7)
    weights = torch.randn(merges.shape[:2], generator=drawn)
    price = torch.rand(len(merges), 1, generator=drawn)

    def gradients(rows) -> list[torch.Tensor]:
        some = batch.rows(rows)
        policy.zero_grad()
        episodes = follow(autoencoder, some, merges[rows], nearest)
        terms = policy.terms(autoencoder, some, episodes)
        terms.backward(terms.measured(True), weights[rows], price[rows], ordered=True)
        return [
            torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
            for weight in policy.parameters()
        ]

    together = gradients(torch.arange(len(merges)))
    alone = [gradients(torch.tensor([row])) for row in range(len(merges))]
    for one, *others in zip(together, *alone, strict=True):
        torch.testing.assert_close(one, sum(others) / len(merges), rtol=1e-3, atol=1e-5)
