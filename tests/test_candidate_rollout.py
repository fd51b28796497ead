"""Episodes among candidates against a plain loop over populations and their lists."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from episodes import (
    NETWORKS,
    RAGGED,
    generator,
    random_batch,
    random_policy,
    replayed,
    several_trees,
    terms_of,
)
from torch import Tensor

from agents.likelihood.among_candidates import IMPOSSIBLE, CandidateTerms
from agents.rollouts.rollout import Episodes, follow, rollout
from htm_env.autoencoder import HTMAutoencoder
from htm_env.candidates import Nearest, merged_candidates, nearest_candidates
from htm_env.forest import action_to_pair
from htm_env.membership import Membership, centroids
from htm_env.observation import observe_population
from htm_env.types import TokenBatch

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
EVERY = pytest.mark.parametrize("network", NETWORKS)
SPACES = pytest.mark.parametrize("by_centroids", [False, True])


@pytest.fixture
def autoencoder() -> HTMAutoencoder:
    return HTMAutoencoder(3, 5, 16, generator=generator(1))


def plain(autoencoder, policy, batch: TokenBatch, merges: Tensor, nearest: Nearest):
    """Log-probabilities and entropies (B, M) of a loop that asks the policy at every population."""
    slots, lists, went = batch.present.shape[1], None, None
    log_probs, entropies = [], []
    for population, action in replayed(autoencoder, batch, merges):
        active, places = population.forest.active, population.embeddings
        if nearest.by_centroids:
            standardised = autoencoder.standardise(batch.tokens)
            places = centroids(Membership.of(standardised, batch.present, population.forest))
        if lists is None:
            lists = nearest_candidates(places, active, nearest.k)
        else:
            some = (places[went], active[went], i[went], j[went])
            lists = lists.with_rows(went, merged_candidates(lists.rows(went), *some))
        observation = observe_population(autoencoder, population, policy.observes)
        logits, _ = policy(observation | {"candidates": lists.partners})
        log_choice = logits.log_softmax(1).view(*lists.partners.shape)
        i, j = action_to_pair(action.clamp(min=0), slots)
        went = (action >= 0).nonzero()[:, 0]
        rows = torch.arange(len(action))
        places_of_second = (lists.partners[rows, i] == j[:, None]).int().argmax(1)
        listed = (lists.partners[rows, i] == j[:, None]).any(1) & (action >= 0)
        log_probs.append(log_choice[rows, i, places_of_second].where(listed, 0.0))
        count = (lists.partners >= 0).flatten(1).sum(1)
        nats = -(log_choice.exp() * log_choice.clamp(min=-1e3)).flatten(1).sum(1)
        share = torch.where(count > 1, nats / count.clamp(min=2).log(), 0.0)
        entropies.append(share.where(action >= 0, 0.0))
    return torch.stack(log_probs, 1), torch.stack(entropies, 1)


@EVERY
@SPACES
@pytest.mark.parametrize("k", [1, 2, 9])
def test_rollouts_and_terms_are_those_of_the_loop(autoencoder, network, by_centroids, k):
    policy, batch = random_policy(network), random_batch(RAGGED)
    if k == 2:
        batch = several_trees(batch)
    nearest = Nearest(k, by_centroids)
    episodes, made = rollout(autoencoder, policy, batch, generator(3), nearest=nearest)
    assert torch.equal(episodes.steps.sum(1), batch.num_tokens - 1)
    log_probs, entropies = plain(autoencoder, policy, batch, episodes.merges, nearest)
    assert (log_probs[episodes.steps] < 0).any()
    torch.testing.assert_close(made.log_prob, log_probs, **CLOSE)
    torch.testing.assert_close(made.entropy, entropies, **CLOSE)
    again = follow(autoencoder, batch, episodes.merges, nearest)
    assert episodes.candidates.chosen(episodes.merges)[episodes.steps].all()
    for seen in (episodes, again):
        terms = policy.terms(autoencoder, batch, seen)
        torch.testing.assert_close(terms.log_probs, log_probs, **CLOSE)
        measured = terms.measured(ordered=True)
        for name in ("log_prob", "log_total"):
            torch.testing.assert_close(getattr(measured, name), getattr(made, name), **CLOSE)
        for ordered in (False, True):  # among candidates it always is
            entropy = terms.measured(ordered).entropy
            torch.testing.assert_close(entropy, entropies, **CLOSE)


@EVERY
def test_candidates_of_everyone_are_all_pairs(autoencoder, network):
    policy, batch = random_policy(network), random_batch(RAGGED)
    episodes, _ = rollout(autoencoder, policy, batch, generator(3), nearest=Nearest(5))
    every = policy.terms(autoencoder, batch, follow(autoencoder, batch, episodes.merges))
    among = policy.terms(autoencoder, batch, episodes)
    for name in ("log_prob", "log_total", "entropy"):
        ours, theirs = (getattr(seen.measured(ordered=True), name) for seen in (among, every))
        torch.testing.assert_close(ours, theirs, **CLOSE)
    torch.testing.assert_close(among.values, every.values, **CLOSE)


@EVERY
@pytest.mark.parametrize("priced", [False, True])
@pytest.mark.parametrize("block", [CandidateTerms.at_a_time, 7])
def test_the_gradient_is_that_of_the_loop(autoencoder, network, priced, block):
    policy, batch = random_policy(network), random_batch([6, 4, 2])
    nearest = Nearest(2)
    episodes, measured = rollout(autoencoder, policy, batch, generator(3), nearest=nearest)
    assert len(episodes.candidates.row) > episodes.leaf_counts.numel()  # several blocks of 7
    advantages = torch.randn(episodes.steps.shape, generator=generator(5))
    price = torch.tensor([[0.7], [-0.3], [0.2]]) * priced
    losses = terms_of(policy, autoencoder, batch, episodes, block).backward(
        measured, advantages, price, ordered=True
    )
    ours = {
        name: weight.grad.clone()
        for name, weight in policy.named_parameters()
        if weight.grad is not None
    }
    policy.zero_grad()
    log_probs, entropies = plain(autoencoder, policy, batch, episodes.merges, nearest)
    steps = episodes.steps
    policy_loss = -(advantages * steps * log_probs).sum() / 3
    entropy_loss = (price / steps.sum(1, keepdim=True) * entropies).sum() / 3
    (policy_loss + entropy_loss).backward()
    torch.testing.assert_close(losses["policy"], policy_loss.detach(), **CLOSE)
    torch.testing.assert_close(losses["entropy"], entropy_loss.detach(), **CLOSE)
    for name, weight in policy.named_parameters():
        if weight.grad is not None and weight.grad.any():
            torch.testing.assert_close(ours[name], weight.grad, rtol=1e-3, atol=1e-5)


def test_an_entropy_that_is_not_measured_is_estimated(autoencoder):
    policy, batch = random_policy("pointer"), random_batch(RAGGED)
    arguments = {"autoencoder": autoencoder, "network": policy, "batch": batch}
    nearest = Nearest(2)
    episodes, measured = rollout(**arguments, generator=generator(3), nearest=nearest)
    made, estimated = rollout(
        **arguments, generator=generator(3), nearest=nearest, measure_entropy=False
    )
    assert torch.equal(made.merges, episodes.merges)
    torch.testing.assert_close(estimated.log_prob, measured.log_prob, **CLOSE)
    share = -measured.log_prob / episodes.most_entropy(ordered=True)
    torch.testing.assert_close(estimated.entropy, share, **CLOSE)
    ones = torch.ones(made.steps.shape)
    policy.terms(autoencoder, batch, made).backward(
        estimated, ones, torch.zeros(len(ones), 1), ordered=False
    )
    assert any(weight.grad.any() for weight in policy.parameters() if weight.grad is not None)


def test_greedy_takes_the_best_candidate(autoencoder):
    policy, batch = random_policy("pointer"), random_batch(RAGGED)
    nearest = Nearest(2)
    first, _ = rollout(autoencoder, policy, batch, generator(0), greedy=True, nearest=nearest)
    other, _ = rollout(autoencoder, policy, batch, generator(1), greedy=True, nearest=nearest)
    assert torch.equal(first.merges, other.merges)
    seen = []
    policy.register_forward_hook(
        lambda module, given, found: seen.append(found[0].log_softmax(1).amax(1))
    )
    log_probs, _ = plain(autoencoder, policy, batch, first.merges, nearest)
    torch.testing.assert_close(torch.stack(seen, 1).where(first.steps, 0.0), log_probs, **CLOSE)


def test_merges_are_drawn_as_often_as_their_probability_says(autoencoder):
    """Of 4,000 draws in one population each pair's share, within five standard deviations."""
    policy, batch = random_policy("pointer"), random_batch([4]).rows(torch.zeros(4000).long())
    episodes, terms = rollout(
        autoencoder,
        policy,
        batch,
        generator(0),
        nearest=Nearest(2),
        num_merges=torch.ones(4000).long(),
    )
    drawn, probability = episodes.merges[:, 0], terms.log_prob[:, 0].exp()
    expected = 0.0
    for pair in drawn.unique(dim=0):
        here = (drawn == pair).all(1)
        share = float(probability[here][0])
        expected += share
        assert abs(int(here.sum()) - 4000 * share) < 5 * (4000 * share * (1 - share)) ** 0.5
    assert len(drawn.unique(dim=0)) == 8 and expected == pytest.approx(1, abs=1e-4)


def test_a_merge_that_is_no_candidate_teaches_nothing(autoencoder):
    """As a demonstrator's may be."""
    policy, batch = random_policy("pointer"), random_batch([6])
    close, _ = rollout(autoencoder, policy, batch, generator(0), nearest=Nearest(1))
    candidates = {
        tuple(pair)
        for pair, times in zip(
            close.candidates.nodes.tolist(), close.candidates.times.tolist(), strict=True
        )
        if times[0] == 0
    }
    far = next([i, j] for i in range(6) for j in range(6) if i != j and (i, j) not in candidates)
    merges = torch.full((1, 5, 2), -1)
    merges[0, 0] = torch.tensor(far)
    episodes = follow(autoencoder, batch, merges, Nearest(1))
    terms = policy.terms(autoencoder, batch, episodes)
    measured = terms.measured(ordered=True)
    assert measured.log_prob[0].tolist() == [IMPOSSIBLE, 0, 0, 0, 0]
    terms.backward(measured, torch.ones(1, 5), torch.zeros(1, 1), ordered=True)
    assert not any(w.grad.any() for w in policy.parameters() if w.grad is not None)


def test_some_rows_are_those_episodes(autoencoder):
    policy, batch = random_policy("pointer"), random_batch(RAGGED)
    episodes, terms = rollout(autoencoder, policy, batch, generator(3), nearest=Nearest(2))
    for index in (torch.tensor([4, 0, 4]), slice(1, 3), torch.arange(6) % 2 == 0):
        some: Episodes = episodes.rows(index)
        rows = batch.rows(torch.arange(6)[index])
        found = policy.terms(autoencoder, rows, some).measured(True)
        torch.testing.assert_close(found.log_prob, terms.log_prob[index], **CLOSE)


def test_partial_episodes_end_where_they_are_told(autoencoder):
    policy, batch = random_policy("pointer"), random_batch([6, 5, 3])
    num_merges = torch.tensor([2, 4, 0])
    episodes, terms = rollout(
        autoencoder, policy, batch, generator(3), num_merges=num_merges, nearest=Nearest(2)
    )
    assert torch.equal(episodes.steps.sum(1), num_merges)
    found = policy.terms(autoencoder, batch, episodes).measured(True)
    torch.testing.assert_close(found.log_prob, terms.log_prob, **CLOSE)


def test_pairs_grow_as_tokens_and_not_as_their_square(autoencoder):
    counts = []
    for tokens in (64, 256):
        batch = random_batch([tokens])
        episodes, _ = rollout(
            autoencoder, random_policy("pointer"), batch, generator(0), nearest=Nearest(4)
        )
        counts.append(len(episodes.candidates.row) / tokens)
    assert counts[1] < 2 * counts[0]  # of all pairs there are four times as many a token


@pytest.mark.parametrize("network", ["pointer", "pair_mlp"])
def test_what_is_kept_for_the_gradient_is_less_than_what_scores_are_made_of(autoencoder, network):
    policy, batch = random_policy(network), random_batch([40])
    episodes, _ = rollout(autoencoder, policy, batch, generator(3), nearest=Nearest(4))
    width = policy.terms(autoencoder, batch, episodes).nodes.first.shape[-1]
    made_of = len(episodes.candidates.row) * width
    kept = []
    for block in (CandidateTerms.at_a_time, 16):
        tensors = {}  # one entry for a storage, whoever keeps it

        def keep(tensor, tensors=tensors):
            tensors[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        terms = terms_of(policy, autoencoder, batch, episodes, block)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            assert terms.log_probs.requires_grad
        kept.append(sum(tensor.untyped_storage().nbytes() // 4 for tensor in tensors.values()))
    assert kept[1] < made_of < kept[0]


@EVERY
@pytest.mark.parametrize("nearest", [None, Nearest(4)])
@pytest.mark.parametrize("at_a_time", [16, 10**6])
def test_terms_are_gone_with_their_last_name(autoencoder, network, nearest, at_a_time):
    """Their graph, which is kept for other losses, must not hold them."""
    policy, batch = random_policy(network), random_batch([30])
    episodes, _ = rollout(autoencoder, policy, batch, generator(3), nearest=nearest)
    terms = terms_of(policy, autoencoder, batch, episodes, at_a_time)
    ones = torch.ones(episodes.steps.shape)
    terms.backward(terms.measured(True), ones, ones[:, :1] * 0, ordered=True)
    log_probs, alive = weakref.ref(terms.log_probs), weakref.ref(terms)
    del terms
    gc.collect()
    assert alive() is None and log_probs() is None
