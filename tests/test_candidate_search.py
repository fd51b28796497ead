"""Inference among candidates: against rollouts, and matchings against a plain loop."""

from __future__ import annotations

import pytest
import torch
from episodes import NETWORKS, RAGGED, SCORERS, generator, random_batch, random_policy, replayed
from hypothesis import given
from hypothesis import strategies as st

from agents.learners.fixed_order import FixedOrder, FixedOrderConfig
from agents.learners.reinforce import Reinforce, ReinforceConfig
from agents.networks.scorers import MANY, PointerPolicy
from agents.rollouts.greedy_search import (
    matching,
    matching_rounds,
    merge_greedily,
    merge_matchings,
)
from agents.rollouts.pair_scores import ILLEGAL
from agents.rollouts.rollout import compiled, rollout
from benchmarks.rollout_speed import Uncompiled
from htm_env.autoencoder import HTMAutoencoder
from htm_env.candidates import Nearest
from htm_env.forest import check_merges, tree_height
from htm_env.observation import observe_population
from htm_env.types import TokenBatch


@pytest.fixture(scope="module")
def autoencoder() -> HTMAutoencoder:
    return HTMAutoencoder(3, 5, 16, generator=generator(1))


@pytest.mark.parametrize("network", SCORERS)
@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("by_centroids", [False, True])
def test_greedy_merges_are_those_of_a_greedy_rollout(autoencoder, network, k, by_centroids):
    nearest = Nearest(k, by_centroids)
    policy, batch = random_policy(network), random_batch([*RAGGED, 23], seed=2)
    expected, _ = rollout(autoencoder, policy, batch, generator(), greedy=True, nearest=nearest)
    found = merge_greedily(autoencoder, policy, batch, nearest)
    assert torch.equal(found, expected.merges)


class StepByStep(PointerPolicy):
    """A pointer that gives no weights to what is compiled."""

    def on_arrays(self):
        return Uncompiled(super().on_arrays())


@pytest.mark.parametrize("tokens", [15, 255, 1023])
@pytest.mark.parametrize("by_centroids", [False, True])
def test_compiled_merges_are_those_made_one_at_a_time(autoencoder, tokens, by_centroids):
    pytest.importorskip("numba")
    policy, step_by_step = random_policy("pointer"), StepByStep(5, 12)
    step_by_step.load_state_dict(policy.state_dict())
    batch, nearest = random_batch([tokens]), Nearest(8, by_centroids)
    assert compiled(autoencoder.merger, policy.on_arrays()) is not None
    assert compiled(autoencoder.merger, step_by_step.on_arrays()) is None
    merges = merge_greedily(autoencoder, policy, batch, nearest)
    assert torch.equal(merges, merge_greedily(autoencoder, step_by_step, batch, nearest))
    check_merges(merges, batch.num_tokens)


def test_tokens_too_far_for_a_distance_are_merged_too(autoencoder):
    policy, batch = random_policy("pointer"), random_batch([12] * 30)
    batch.tokens[:, 4] = 1e25  # whose square is no number
    nearest = Nearest(2, by_centroids=True)
    expected, _ = rollout(autoencoder, policy, batch, generator(), greedy=True, nearest=nearest)
    assert torch.equal(merge_greedily(autoencoder, policy, batch, nearest), expected.merges)


@given(seed=st.integers(0, 10_000), count=st.integers(2, 12), k=st.integers(1, 4))
def test_a_matching_is_what_is_best_for_both(seed, count, k):
    drawn = generator(seed)
    scores = torch.randint(0, 6, (count, k), generator=drawn).float()  # many are equal
    partners = torch.randint(-1, count, (count, k), generator=drawn)
    partners[partners == torch.arange(count)[:, None]] = -1
    if (partners < 0).all():
        partners[0, 0] = 1
    first, second = matching(scores, partners)
    listed = [
        (-float(scores[i, c]), i * k + c, i, int(partners[i, c]))
        for i in range(count)
        for c in range(k)
        if partners[i, c] >= 0
    ]
    best = {
        token: min(edge for edge in listed if token in edge[2:])
        for token in range(count)
        if any(token in edge[2:] for edge in listed)
    }
    expected = [edge[2:] for edge in sorted(listed) if best[edge[2]] == best[edge[3]] == edge]
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == expected
    assert min(listed)[2:] in expected
    together = [*first.tolist(), *second.tolist()]
    assert len(set(together)) == len(together)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("nearest", [None, Nearest(2), Nearest(2, True)], ids=str)
def test_rounds_make_whole_trees_that_begin_with_the_best_pair(autoencoder, network, nearest):
    policy, batch = random_policy(network), random_batch([*RAGGED, 30], seed=2)
    merges = merge_matchings(autoencoder, policy, batch, nearest)
    check_merges(merges, batch.num_tokens)
    assert torch.equal((merges[..., 0] >= 0).sum(1), batch.num_tokens - 1)
    greedy = policy.plan(autoencoder, batch, generator(), greedy=True, nearest=nearest)
    assert torch.equal(merges[:, 0], greedy[:, 0])
    few = batch.num_tokens <= 3  # then a round is a merge
    assert few.sum() == 3
    assert torch.equal(merges[few], greedy[few])
    assert int(tree_height(merges, batch.num_tokens)[-1]) < 20


@pytest.mark.parametrize("network", NETWORKS)
def test_every_round_begins_with_the_best_pair(autoencoder, network):
    """Of the population that the rounds before it left, as the environment would show it."""
    policy, batch = random_policy(network), random_batch([12])
    rounds = list(matching_rounds(autoencoder, policy, batch.tokens[0], Nearest(11)))
    begins = {sum(map(len, rounds[:number])) for number in range(len(rounds))}
    for time, (seen, action) in enumerate(replayed(autoencoder, batch, torch.cat(rounds)[None])):
        if time in begins:
            logits, _ = policy(observe_population(autoencoder, seen, policy.observes))
            assert int(action) == int(logits.argmax())


def test_scores_of_illegal_places_never_win():
    scores = torch.tensor([[5.0, ILLEGAL], [1.0, 9.0], [2.0, 0.0]])
    first, second = matching(scores, torch.tensor([[1, -1], [0, -1], [0, 1]]))
    assert (first.tolist(), second.tolist()) == ([0], [1])


# ---------------------------------------------------------------- learners


def test_plans_of_many_tokens_are_those_of_few(autoencoder):
    """From so many slots on they are made one sample after the other; the trees are the same."""
    policy, wide = random_policy("pointer"), random_batch([7, 5, 6], slots=MANY)
    narrow = TokenBatch(
        wide.tokens[:, :7], wide.present[:, :7], wide.clades[:, :, :7], wide.merges[:, :6]
    )
    few, many = (
        policy.plan(autoencoder, batch, generator(), greedy=True, nearest=Nearest(3))
        for batch in (narrow, wide)
    )
    assert torch.equal(few, many[:, :6]) and (many[:, 6:] < 0).all()


@pytest.mark.parametrize("candidates", ["all", "knn"])
def test_greedy_plans_can_be_made_in_rounds(candidates):
    config = ReinforceConfig(candidates=candidates, k=3)
    learner = Reinforce("HTM-Trees-v0", config, env_kwargs={"heights": (4,)}, embedding_dim=4)
    sample = learner.dataset.fixed(9)
    learner.merge_in_rounds()
    rounds = learner.plan(sample, generator(), greedy=True)
    rule = Nearest(3) if candidates == "knn" else None
    expected = merge_matchings(learner.seen, learner.policy, sample, rule)
    assert torch.equal(rounds, expected)
    drawn = learner.plan(sample, generator(), greedy=False)
    assert not torch.equal(drawn, rounds)


def test_fixed_orders_have_no_rounds():
    learner = FixedOrder("HTM-Trees-v0", FixedOrderConfig(policy="nearest"))
    with pytest.raises(ValueError, match="nearest has no policy network"):
        learner.merge_in_rounds()
