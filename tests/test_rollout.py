"""Rollouts against the plain replay: one population, one forward pass, one merge at a time."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from episodes import (
    COPIES,
    NETWORKS,
    RAGGED,
    active_lists,
    generator,
    plain_forests,
    random_batch,
    random_policy,
    replayed,
    replayed_log_probs,
    several_trees,
)
from scipy.stats import chisquare

from agents.fixed import all_merge_sequences
from agents.networks.scorers import NodePolicy
from agents.rollouts.pair_scores import Features
from agents.rollouts.rollout import follow, rollout
from htm_env.forest import action_mask, action_to_pair, check_merges
from htm_env.observation import observe_population

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
PARTIAL = [3, 1, 2, 0, 2, 4]  # merges of the samples of RAGGED, not in the order of their sizes


def limits(partial: bool) -> torch.Tensor | None:
    return torch.tensor(PARTIAL) if partial else None


class ConstantPolicy(NodePolicy):
    """All pairs alike."""

    def features(self, embeddings, leaf_counts):
        return Features(embeddings, embeddings)

    def scores(self, first, second):
        return torch.full((len(first), first.shape[1], second.shape[1]), 0.3)

    def values(self, pooled, members):
        return members.sum(-1)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_log_probabilities_are_those_of_the_replay(autoencoder, network, partial, seed):
    batch, policy = random_batch(RAGGED, slots=7, seed=seed), random_policy(network, seed=seed)
    wanted = PARTIAL if partial else [n - 1 for n in RAGGED]
    if seed:  # several trees a sample, the last of each with a merge less
        batch = several_trees(batch)
        wanted = torch.tensor(wanted).repeat_interleave(torch.tensor(COPIES))
        last = torch.tensor(COPIES).cumsum(0) - 1
        wanted[last] = (wanted[last] - int(partial)).clamp(min=0)
        wanted = wanted.tolist()
    num_merges = torch.tensor(wanted) if partial else None
    made, terms = rollout(autoencoder, policy, batch, generator(seed), num_merges=num_merges)
    assert made.steps.sum(1).tolist() == wanted
    check_merges(made.merges, batch.num_tokens)
    expected = replayed_log_probs(autoencoder, policy, batch, made.merges).detach()
    torch.testing.assert_close(terms.log_prob, expected, **CLOSE)
    assert (terms.log_prob[made.steps].exp() < 1).all()
    assert not terms.log_prob[~made.steps].any()
    again = policy.terms(autoencoder, batch, made).measured(True)
    torch.testing.assert_close(terms.log_total, again.log_total, **CLOSE)
    torch.testing.assert_close(terms.entropy, again.entropy, **CLOSE)
    assert not terms.log_total[~made.steps].any()


@pytest.mark.parametrize("ordered", [False, True])
def test_entropy_that_is_not_measured_is_estimated_from_what_was_drawn(autoencoder, ordered):
    """Minus the log-probability of the choice, over that of a uniform one."""
    batch, policy = random_batch(RAGGED, slots=7), random_policy("pointer")
    made, terms = rollout(
        autoencoder, policy, batch, generator(), ordered_entropy=ordered, measure_entropy=False
    )
    turned = torch.where(made.steps[..., None], made.merges.flip(2), -1)
    for step in range(6):
        merges = made.merges.clone()
        merges[:, step] = turned[:, step]
        other = replayed_log_probs(autoencoder, policy, batch, merges)[:, step].exp().detach()
        chance = terms.log_prob[:, step].exp() + (0 if ordered else other)
        for row in made.steps[:, step].nonzero().flatten().tolist():
            n = RAGGED[row] - step
            most = math.log(n * (n - 1) / (1 if ordered else 2)) if n > 2 or ordered else 1.0
            expected = -math.log(float(chance[row])) / most
            assert float(terms.entropy[row, step]) == pytest.approx(expected, abs=1e-4)
    assert not terms.entropy[~made.steps].any()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("partial", [False, True])
def test_nodes_counts_and_active_lists(autoencoder, network, partial):
    batch = random_batch(RAGGED, slots=7)
    made, _ = rollout(
        autoencoder, random_policy(network), batch, generator(), num_merges=limits(partial)
    )
    encoding = autoencoder.encode(batch.tokens, batch.present, made.merges)
    torch.testing.assert_close(made.nodes, encoding.nodes.detach(), **CLOSE)
    for row, forest in enumerate(plain_forests(made.merges, batch.num_tokens)):
        counts = [len(forest.leaves(node)) for node in forest.nodes()]
        assert made.leaf_counts[row].tolist() == counts + [0] * (13 - len(counts))
        assert made.exists[row].sum() == len(counts)
    for row, steps in enumerate(active_lists(made.merges, batch.num_tokens)):
        for step, active in enumerate(steps):
            listed = made.active[row, step].tolist()
            assert set(listed[: len(active)]) == active
            assert listed[len(active) :] == [-1] * (7 - len(active))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("partial", [False, True])
def test_following_the_same_merges_gives_the_same_episodes(autoencoder, network, partial):
    batch = random_batch(RAGGED, slots=7)
    made, _ = rollout(
        autoencoder, random_policy(network), batch, generator(), num_merges=limits(partial)
    )
    followed = follow(autoencoder, batch, made.merges)
    torch.testing.assert_close(followed.nodes, made.nodes, **CLOSE)
    assert torch.equal(followed.leaf_counts, made.leaf_counts)
    assert torch.equal(followed.active.sort(2).values, made.active.sort(2).values)


@pytest.mark.parametrize("network", NETWORKS)
def test_greedy_takes_the_best_pair(autoencoder, network):
    batch, policy = random_batch(RAGGED), random_policy(network)
    made, _ = rollout(autoencoder, policy, batch, generator(), greedy=True)
    for population, action in replayed(autoencoder, batch, made.merges):
        logits, _ = policy(observe_population(autoencoder, population, policy.observes))
        taken = logits.gather(1, action.clamp(min=0)[:, None])[:, 0]
        running = action >= 0
        torch.testing.assert_close(taken[running], logits.amax(1)[running], **CLOSE)
    again, _ = rollout(autoencoder, policy, batch, generator(1), greedy=True)
    assert torch.equal(made.merges, again.merges)  # nothing is drawn


@pytest.mark.parametrize("network", NETWORKS)
def test_whole_episodes_come_as_often_as_their_probabilities_say(autoencoder, network):
    """Three tokens: twelve sequences of ordered merges, whose probabilities sum to one."""
    sequences, policy = all_merge_sequences(3), random_policy(network, seed=1)
    every = random_batch([3] * 12)
    every.tokens[:] = every.tokens[:1]
    expected = replayed_log_probs(autoencoder, policy, every, sequences).sum(1).exp().detach()
    assert float(expected.sum()) == pytest.approx(1, abs=1e-5)
    assert expected.max() > 2 * expected.min()  # else every sampler passes
    count = 6000
    many = every.rows(torch.zeros(count, dtype=torch.int64))
    made, _ = rollout(autoencoder, policy, many, generator(2))
    same = (made.merges[:, None] == sequences).all(3).all(2)  # (count, 12)
    assert (same.sum(1) == 1).all()
    expected = expected.double() / expected.double().sum()
    assert chisquare(same.sum(0).numpy(), (expected * count).numpy()).pvalue > 0.01


def test_the_same_generator_gives_the_same_episodes(autoencoder):
    batch, policy = random_batch([6] * 20), random_policy("pointer")
    first, again, other = (
        rollout(autoencoder, policy, batch, generator(seed))[0].merges for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("ordered", [True, False])
def test_entropy_of_a_constant_policy_counts_the_legal_choices(autoencoder, ordered):
    """``e^entropy`` is the number of legal actions, or of unordered pairs."""
    batch = random_batch(RAGGED)
    made, terms = rollout(
        autoencoder, ConstantPolicy(), batch, generator(), ordered_entropy=ordered
    )
    for step, (population, action) in enumerate(replayed(autoencoder, batch, made.merges)):
        legal = action_mask(population.forest.active).sum(1)
        choices = legal if ordered else legal // 2
        for row in (action >= 0).nonzero().flatten().tolist():
            number = int(choices[row])
            entropy = float(terms.entropy[row, step]) * math.log(max(number, 2))
            assert math.exp(entropy) == pytest.approx(number, rel=1e-4)
    assert not terms.entropy[~made.steps].any()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("ordered", [True, False])
def test_entropy_is_that_of_the_replay(autoencoder, network, ordered):
    batch, policy = random_batch(RAGGED), random_policy(network)
    made, terms = rollout(autoencoder, policy, batch, generator(), ordered_entropy=ordered)
    for step, (population, action) in enumerate(replayed(autoencoder, batch, made.merges)):
        logits, _ = policy(observe_population(autoencoder, population, policy.observes))
        probabilities = logits.double().softmax(1).detach()
        for row in (action >= 0).nonzero().flatten().tolist():
            chances: dict[object, float] = {}
            for index in range(probabilities.shape[1]):
                pair = action_to_pair(index, 6)
                key = pair if ordered else frozenset(pair)
                chances[key] = chances.get(key, 0.0) + float(probabilities[row, index])
            entropy = -sum(p * math.log(p) for p in chances.values() if p > 0)
            n = int(population.forest.num_active[row])
            uniform = math.log(n * (n - 1) if ordered else n * (n - 1) / 2)
            expected = entropy / uniform if uniform > 0 else 0.0
            assert float(terms.entropy[row, step]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("damage", [float("nan"), float("inf"), 1e12])
def test_a_diverged_autoencoder_still_gives_legal_merges(autoencoder, network, damage):
    """So that the loss is what notices, and its guard what stops the run."""
    with torch.no_grad():
        for weight in autoencoder.merger.parameters():
            weight.fill_(damage)
    batch = random_batch(RAGGED)
    made, terms = rollout(autoencoder, random_policy(network), batch, generator())
    check_merges(made.merges, batch.num_tokens)
    assert made.steps.sum(1).tolist() == [n - 1 for n in RAGGED]
    assert terms.entropy.isfinite().all()


def test_every_pair_is_scored_in_its_own_direction(autoencoder):
    """A policy that only minds its first node: the first of a pair is always the widest one."""

    class FirstMatters(ConstantPolicy):
        def scores(self, first, second):
            return 40 * first[..., :1].expand(-1, -1, second.shape[1])

    batch = random_batch([5] * 8)
    made, _ = rollout(autoencoder, FirstMatters(), batch, generator(), greedy=True)
    for row, steps in enumerate(active_lists(made.merges, batch.num_tokens)):
        for step, active in enumerate(steps):
            size = {node: float(made.nodes[row, node, 0]) for node in active}
            first, second = made.merges[row, step].tolist()
            assert first == max(size, key=size.get)
            assert (first, second) in set(permutations(active, 2))
