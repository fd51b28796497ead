"""Terms of merges and trees: against the policy's own forward pass, and all sequences."""

from __future__ import annotations

import pytest
import torch
from episodes import NETWORKS, RAGGED, generator, random_batch, random_policy, replayed_log_probs

from agents.likelihood.trees import tree_log_probs
from agents.rollouts.rollout import follow, rollout
from replay.tree_probability import all_sequences

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def trees(autoencoder, policy, sizes, limit=None):
    batch = random_batch(sizes, slots=7)
    made, _ = rollout(autoencoder, policy, batch, generator(1), num_merges=limit)
    return batch, made, policy.terms(autoencoder, batch, made)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("partial", [False, True])
def test_terms_of_the_merges_of_another_policy(autoencoder, network, partial):
    limit = torch.tensor([3, 1, 2, 0, 2, 4]) if partial else None
    batch, made, _ = trees(autoencoder, random_policy(network, seed=3), RAGGED, limit)
    policy = random_policy(network)
    terms = policy.terms(autoencoder, batch, made)
    found = terms.measured(True).log_prob
    torch.testing.assert_close(found, terms.log_probs.to(found.dtype), **CLOSE)
    expected = replayed_log_probs(autoencoder, policy, batch, made.merges)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert not found[~made.steps].any()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("most_states", [0, 10**6])
def test_a_tree_is_as_likely_as_all_sequences_that_make_it(autoencoder, network, most_states):
    """Through the forests on the way, and through the sequences of trees that are too large."""
    policy = random_policy(network)
    batch, made, terms = trees(autoencoder, policy, [5, 2, 6, 1, 4])
    found = tree_log_probs(policy.terms, autoencoder, batch, terms, generator(), most_states)
    sequences, owner = all_sequences(made.merges, batch.num_tokens)
    each = replayed_log_probs(autoencoder, policy, batch.rows(owner), sequences).sum(1)
    expected = torch.stack([each[owner == row].logsumexp(0) for row in range(5)])
    torch.testing.assert_close(found, expected, **CLOSE)
    parameters = list(policy.parameters())
    gradients = [
        torch.autograd.grad(values.sum(), parameters, retain_graph=True, allow_unused=True)
        for values in (found, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_large_tree_is_estimated(autoencoder):
    """From sequences drawn at random: near the exact value for a policy that hardly minds."""
    policy = random_policy("pointer")
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(0.3)
    batch = random_batch([7, 7])
    chained = [[0, 1], [7, 2], [3, 4], [5, 6], [9, 10], [8, 11]]
    made = follow(autoencoder, batch, torch.tensor([chained, chained]))
    terms = policy.terms(autoencoder, batch, made)
    exact = tree_log_probs(policy.terms, autoencoder, batch, terms, generator())
    estimated = tree_log_probs(policy.terms, autoencoder, batch, terms, generator(), most_states=0)
    assert not torch.equal(estimated, exact)
    torch.testing.assert_close(estimated, exact, rtol=0, atol=0.1)
