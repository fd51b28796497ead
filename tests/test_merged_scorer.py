"""The scorer that reads what pairs become: greedy by the reward at first, symmetric where the
merger is, and able to tell pairs apart by what the features of two tokens do not show."""

from __future__ import annotations

import pytest
import torch
from episodes import (
    EITHER_WAY,
    RAGGED,
    generator,
    plain_policy,
    random_batch,
    random_policy,
    scores_of,
)
from torch.nn.functional import cross_entropy

from agents.fixed import fixed_policy
from agents.networks.context import make_policy
from agents.rollouts.rollout import follow, rollout
from htm_env.autoencoder import HTMAutoencoder, MergeCosts
from htm_env.datasets.jets import JetsDataset, tree_log_likelihood
from htm_env.forest import legal_pairs
from htm_env.jets import FourMomenta
from htm_env.known import KnownMerger
from htm_env.rewards import CountedReward, reward_on

JETS = JetsDataset("validation")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def lifted_five() -> HTMAutoencoder:
    return HTMAutoencoder(3, 5, 16, generator=generator(1))


def jets_model(costs: MergeCosts | None) -> KnownMerger:
    return KnownMerger(4, FourMomenta(JETS), costs)


def test_untrained_it_takes_the_merges_that_earn_most():
    policy, batch = plain_policy(EITHER_WAY, 5, 12), random_batch(RAGGED)
    autoencoder = lifted_five()
    made, _ = rollout(autoencoder, policy, batch, generator(), greedy=True)
    for row, leaves in enumerate(batch.num_tokens.tolist()):
        active = list(range(leaves))
        for step in range(leaves - 1):
            first, second = made.merges[row, step].tolist()
            cost = {
                (i, j): float((made.nodes[row, i] + made.nodes[row, j])[0] ** 2) / 4
                for i in active
                for j in active
                if i < j
            }
            assert cost[min(first, second), max(first, second)] <= min(cost.values()) + 1e-6
            active = [node for node in active if node not in (first, second)] + [leaves + step]


def test_under_a_commutative_merger_the_order_within_a_pair_changes_nothing():
    autoencoder, batch = lifted_five(), random_batch(RAGGED)
    for network, same in ((EITHER_WAY, True), ("merged_in_order", False)):
        policy = random_policy(network)
        episodes, _ = rollout(autoencoder, policy, batch, generator(), greedy=False)
        scores = scores_of(policy, episodes).detach() * episodes.coactive
        assert torch.equal(scores, scores.transpose(1, 2)) == same
        assert policy.symmetric == same


def test_scores_that_are_kept_from_step_to_step_are_those_of_fresh_populations():
    autoencoder, batch, policy = lifted_five(), random_batch(RAGGED), random_policy(EITHER_WAY)
    made, terms = rollout(autoencoder, policy, batch, generator(3))
    fresh = policy.terms(autoencoder, batch, follow(autoencoder, batch, made.merges))
    torch.testing.assert_close(terms.log_prob, fresh.log_probs.detach().float(), **CLOSE)
    for row, leaves in enumerate(batch.num_tokens.tolist()):
        active = list(range(leaves))
        for step in range(leaves - 1):
            nodes, counts = made.nodes[row, active], made.leaf_counts[row, active]
            seen = {
                "tokens": nodes[None],
                "active": torch.ones(1, len(active), dtype=torch.int8),
                "leaf_counts": counts[None],
            }
            scores = policy.state_scores(seen)[0][0]
            scores = scores.masked_fill(~legal_pairs(seen["active"].bool())[0], -torch.inf)
            first, second = made.merges[row, step].tolist()
            expected = scores[active.index(first), active.index(second)] - scores.logsumexp((0, 1))
            torch.testing.assert_close(terms.log_prob[row, step], expected.detach(), **CLOSE)
            active = [node for node in active if node not in (first, second)] + [leaves + step]


def test_untrained_it_makes_the_trees_of_greedy_search_of_jets():
    batch, model = JETS.fixed(40), jets_model(reward_on(JETS).merge_costs)
    policy = make_policy("merged", 10, 16, model=model)
    found = policy.plan(model, batch, generator(), greedy=True)
    expected = fixed_policy("greedy", model, JETS).plan(batch, generator())
    found, expected = (tree_log_likelihood(batch, merges) for merges in (found, expected))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_a_tree_of_n_particles_takes_n_less_one_squared_evaluations():
    """Every pair once: ``n (n - 1) / 2`` at first, and of every merge with what is left."""
    counted = CountedReward(reward_on(JETS))
    batch, model = JETS.fixed(8), jets_model(counted.merge_costs)
    policy = make_policy("merged", 10, 16, model=model)
    policy.plan(model, batch, generator(), greedy=True)
    assert counted.count == int((batch.num_tokens - 1).square().sum())


def test_it_learns_to_choose_by_the_squared_mass_of_a_pair():
    """Where merges earn nothing, so that the mass has to be read from what pairs become."""
    batch, model = JETS.fixed(60), jets_model(lambda *pairs: torch.zeros(len(pairs[-1])))
    tokens = model.lifter(model.standardise(batch.tokens))
    momenta = tokens[:, :, None, :4] + tokens[:, None, :, :4]
    mass = momenta[..., 0].square() - momenta[..., 1:].square().sum(-1)
    pairs = legal_pairs(batch.present).triu()
    lightest = mass.masked_fill(~pairs, torch.inf).flatten(1).argmin(1)
    torch.manual_seed(0)
    policy = make_policy("merged", 10, 32, model=model)
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    seen = {"tokens": tokens, "active": batch.present, "leaf_counts": batch.present.int()}
    for _ in range(50):
        scores = policy.state_scores(seen)[0].masked_fill(~pairs, -1e9).flatten(1)
        optimizer.zero_grad()
        cross_entropy(scores, lightest).backward()
        optimizer.step()
    assert float((scores.argmax(1) == lightest).float().mean()) > 0.9


def test_a_merger_that_is_learned_is_refused():
    with pytest.raises(ValueError, match=r"has to learn first; choose from \['pair_mlp', 'poin"):
        make_policy("merged", 5, 12, model=lifted_five())
    with pytest.raises(ValueError, match="reads what pairs become"):
        make_policy("merged", 5, 12)
