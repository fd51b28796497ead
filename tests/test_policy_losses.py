"""The policy's losses against plain autograd, brute force and exact expectations."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from episodes import (
    NETWORKS,
    RAGGED,
    SCORERS,
    active_lists,
    generator,
    random_batch,
    random_policy,
    replayed,
    replayed_log_probs,
    scores_of,
    terms_of,
)

from agents.fixed import all_merge_sequences
from agents.learners.baselines import LeaveOneOut, Returns, discounted_returns, value_loss
from agents.learners.reinforce import distance_to_target
from agents.likelihood.among_all import score_gradient
from agents.rollouts.rollout import follow, rollout
from htm_env.observation import observe_population
from htm_env.rewards import EncodedEpisodes

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
PARTIAL = [3, 1, 2, 0, 2, 4]


def episodes(autoencoder, policy, partial=False, ordered=True):
    batch = random_batch(RAGGED, slots=7)
    limit = torch.tensor(PARTIAL) if partial else None
    made, terms = rollout(
        autoencoder, policy, batch, generator(1), num_merges=limit, ordered_entropy=ordered
    )
    return batch, made, terms


def gradients(policy) -> dict[str, torch.Tensor]:
    return {
        name: weight.grad.clone()
        for name, weight in policy.named_parameters()
        if weight.grad is not None
    }


def assert_same_gradients(found, expected, **tolerance):
    for name in found.keys() | expected.keys():
        zero = torch.zeros(())
        torch.testing.assert_close(
            found.get(name, zero).expand_as(expected.get(name, found.get(name, zero))),
            expected.get(name, zero).expand_as(found.get(name, expected.get(name, zero))),
            **tolerance,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    assert sum(float(gradient.abs().sum()) for gradient in expected.values()) > 1e-3


# ---------------------------------------------------------------- by hand, by brute force


def test_discounted_returns_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, 0.0]])
    assert discounted_returns(rewards, 0.5).tolist() == [[3.0, 4.0, 4.0], [3.0, 0.0, 0.0]]
    assert discounted_returns(rewards, 1.0).tolist() == [[7.0, 6.0, 4.0], [3.0, 0.0, 0.0]]
    assert torch.equal(discounted_returns(rewards, 0.0), rewards)


def test_value_loss_by_hand():
    values, returns = torch.tensor([[1.0, 9.0], [2.0, 5.0]]), torch.tensor([[3.0, 0.0], [2.0, 4.0]])
    steps = torch.tensor([[True, False], [True, True]])
    assert float(value_loss(values, returns, steps)) == pytest.approx((4 + 0 + 1) / 3)


@pytest.mark.parametrize("partial", [False, True])
def test_membership_and_coactivity_by_brute_force(autoencoder, partial):
    batch, made, _ = episodes(autoencoder, random_policy("pointer"), partial)
    members, together = made.members, made.coactive
    for row, steps in enumerate(active_lists(made.merges, batch.num_tokens)):
        expected = torch.zeros(13, 13, dtype=torch.bool)
        for step, active in enumerate(steps):
            assert set(members[row, step].nonzero().flatten().tolist()) == active
            for first in active:
                for second in active:
                    expected[first, second] = True
        assert torch.equal(together[row], expected)
    assert set(members.unique().tolist()) == {0.0, 1.0}


def test_distance_to_target_is_a_sign(autoencoder):
    _, made, terms = episodes(autoencoder, random_policy("pointer"), ordered=True)
    mean = [float(terms.entropy[row].sum()) / max(1, n - 1) for row, n in enumerate(RAGGED)]
    signs = distance_to_target(made, terms, 0.6, True)[:, 0].tolist()
    assert signs == [math.copysign(1, value - 0.6) for value in mean]
    assert set(signs) == {-1.0, 1.0}


# ---------------------------------------------------------------- against autograd


def plain_terms(scores, made, row, step, ordered):
    """Log-probability and normalised entropy of one merge, from the scores of all nodes."""
    active = sorted(set(made.active[row, step].tolist()) - {-1})
    pairs = list(permutations(active, 2))
    chances = torch.stack([scores[row, i, j] for i, j in pairs]).softmax(0)
    chosen = chances[pairs.index(tuple(made.merges[row, step].tolist()))]
    if not ordered:
        at = {pair: place for place, pair in enumerate(pairs)}
        chances = torch.stack([chances[at[i, j]] + chances[at[j, i]] for i, j in pairs if i < j])
    uniform = math.log(len(chances))
    entropy = -(chances * chances.log()).sum()
    return chosen.log(), entropy / uniform if uniform > 0 else 0 * entropy


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("priced", [False, True])
def test_the_closed_form_is_the_gradient_of_the_documented_loss(
    autoencoder, scorer, partial, ordered, priced
):
    """With respect to the scores of all pairs of nodes, and the loss itself."""
    policy = random_policy(scorer)
    _, made, terms = episodes(autoencoder, policy, partial, ordered)
    scores = scores_of(policy, made).detach().requires_grad_()
    advantages = torch.randn(6, 6, generator=generator(5))  # in padding too: it must not count
    coefficient = torch.randn(6, 1, generator=generator(6)) * priced
    reinforce, price = torch.zeros(()), torch.zeros(())
    for row, step in made.steps.nonzero().tolist():
        log_prob, entropy = plain_terms(scores, made, row, step, ordered)
        assert float(log_prob.detach()) == pytest.approx(float(terms.log_prob[row, step]), abs=1e-4)
        assert float(entropy.detach()) == pytest.approx(float(terms.entropy[row, step]), abs=1e-4)
        reinforce = reinforce - advantages[row, step] * log_prob / 6
        price = price + coefficient[row, 0] * entropy / made.steps[row].sum() / 6
    (reinforce + price).backward()
    gradient, parts = score_gradient(scores.detach(), made, terms, advantages, coefficient, ordered)
    torch.testing.assert_close(parts["policy"], reinforce.detach(), **CLOSE)
    torch.testing.assert_close(parts["entropy"], price.detach(), **CLOSE)
    torch.testing.assert_close(gradient, scores.grad, **CLOSE)
    assert gradient.abs().max() > 1e-2


def test_episodes_without_a_merge_have_no_gradient(autoencoder):
    policy, batch = random_policy("pointer"), random_batch([1, 1], slots=3)
    made, terms = rollout(autoencoder, policy, batch, generator())
    gradient, parts = score_gradient(
        torch.ones(2, 5, 5), made, terms, torch.ones(2, 2), torch.ones(2, 1), True
    )
    assert not gradient.any()
    assert float(parts["policy"]) == float(parts["entropy"]) == 0.0


def naive_loss(autoencoder, policy, batch, made, advantages, coefficient) -> torch.Tensor:
    """The documented loss, one episode and one step at a time, through the forward pass."""
    total = torch.zeros(())
    lengths = [max(1, int(steps.sum())) for steps in made.steps]
    log_probs = replayed_log_probs(autoencoder, policy, batch, made.merges)
    for step, (population, action) in enumerate(replayed(autoencoder, batch, made.merges)):
        logits, _ = policy(observe_population(autoencoder, population, policy.observes))
        for row in (action >= 0).nonzero().flatten().tolist():
            n = int(population.forest.num_active[row])
            chances = logits[row].softmax(0)
            chances = chances[chances > 0]
            entropy = -(chances * chances.log()).sum() / math.log(n * (n - 1))
            total = total - advantages[row, step] * log_probs[row, step]
            total = total + coefficient[row, 0] * entropy / lengths[row]
    return total / len(made.merges)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("at_a_time", [30, 10**6])
def test_the_gradient_is_that_of_the_naive_loop(autoencoder, network, partial, at_a_time):
    """Whether populations are evaluated all at once, or a few at a time and twice."""
    policy = random_policy(network)
    batch, made, terms = episodes(autoencoder, policy, partial)
    advantages = torch.randn(6, 6, generator=generator(5))  # in padding too: it must not count
    coefficient = torch.randn(6, 1, generator=generator(6))
    loss = naive_loss(autoencoder, policy, batch, made, advantages, coefficient)
    loss.backward()
    expected = gradients(policy)
    policy.zero_grad()
    evaluated = terms_of(policy, autoencoder, batch, made, at_a_time)
    parts = evaluated.backward(terms, advantages, coefficient, True)
    total = float(parts["policy"] + parts["entropy"])
    assert total == pytest.approx(float(loss.detach()), rel=1e-4)
    assert_same_gradients(gradients(policy), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_values_are_those_of_the_forward_pass(autoencoder, network):
    policy = random_policy(network)
    batch, made, _ = episodes(autoencoder, policy)
    expected = torch.zeros(made.steps.shape)
    for step, (population, action) in enumerate(replayed(autoencoder, batch, made.merges)):
        _, values = policy(observe_population(autoencoder, population, policy.observes))
        expected[:, step] = values * (action >= 0)
    (expected.square().sum() / 2).backward()
    gradient = gradients(policy)
    policy.zero_grad()
    values = policy.terms(autoencoder, batch, made).values * made.steps
    torch.testing.assert_close(values.detach(), expected.detach(), rtol=1e-4, atol=1e-5)
    (values.square().sum() / 2).backward()
    assert_same_gradients(gradients(policy), gradient, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------- exact expectations


def three_tokens(autoencoder, policy):
    """All twelve episodes over three tokens, their returns to go and exact probabilities."""
    sequences = all_merge_sequences(3)
    batch = random_batch([3] * 12)
    batch.tokens[:] = batch.tokens[:1]
    made = follow(autoencoder, batch, sequences)
    std = torch.tensor([0.5, 2.0, 3.0])
    rewards = EncodedEpisodes(autoencoder, batch, sequences, made.nodes, std).error_falls
    probabilities = replayed_log_probs(autoencoder, policy, batch, sequences).sum(1).exp()
    return batch, made, discounted_returns(rewards, 1.0), probabilities


def exact_gradients(policy, returns, probabilities):
    """Of minus the expected return, through the probabilities themselves."""
    policy.zero_grad()
    (-(probabilities * returns[:, 0]).sum()).backward()
    return gradients(policy)


@pytest.mark.parametrize("scorer", SCORERS)
def test_the_expected_gradient_is_that_of_the_expected_return(autoencoder, scorer):
    policy = random_policy(scorer)
    batch, made, returns, probabilities = three_tokens(autoencoder, policy)
    expected = exact_gradients(policy, returns, probabilities)
    policy.zero_grad()
    weighted = 12 * probabilities.detach()[:, None] * returns  # the step takes a mean over twelve
    terms = policy.terms(autoencoder, batch, made)
    terms.backward(terms.measured(True), weighted, torch.zeros(12, 1), True)
    assert_same_gradients(gradients(policy), expected, rtol=1e-3, atol=1e-4)


def test_leaving_one_out_does_not_bias_the_expected_gradient(autoencoder):
    """Two trees a sample: all 144 pairs of episodes, weighted by their probability."""
    policy = random_policy("pointer")
    batch, made, returns, probabilities = three_tokens(autoencoder, policy)
    expected = exact_gradients(policy, returns, probabilities)
    policy.zero_grad()
    pairs = torch.cartesian_prod(torch.arange(12), torch.arange(12)).flatten()  # (288,)
    both = made.rows(pairs)
    chance = probabilities.detach()[pairs].view(144, 2).prod(1).repeat_interleave(2)
    advantages = LeaveOneOut().advantages(
        Returns(returns[pairs], both.steps, 2, lambda: returns[pairs], lambda: returns[pairs])
    )
    weighted = 144 * chance[:, None] * advantages
    terms = policy.terms(autoencoder, batch.rows(pairs), both)
    terms.backward(terms.measured(True), weighted, torch.zeros(288, 1), True)
    assert_same_gradients(gradients(policy), expected, rtol=1e-3, atol=1e-4)
