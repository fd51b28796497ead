"""Local search: failures, the deviations that are tried on them, and what is imitated."""

from __future__ import annotations

import math

import pytest
import torch
from episodes import NETWORKS, generator, random_batch, random_policy, replayed

from agents.config.dataclasses_json import config_from_dict
from agents.learners.imitation import (
    MOST_TREES,
    RANKS,
    LocalSearch,
    deviations,
    failures,
)
from agents.learners.reinforce import Reinforce, ReinforceConfig
from agents.rollouts.rollout import Deviation, rollout
from htm_env.autoencoder import HTMAutoencoder
from htm_env.candidates import Nearest
from htm_env.forest import merges_to_actions
from htm_env.observation import observe_population


@pytest.fixture
def autoencoder() -> HTMAutoencoder:
    return HTMAutoencoder(3, 5, 16, generator=generator(1))


def test_failures_are_far_above_the_median():
    errors = torch.tensor([1.0, 1.2, 0.9, 101.0, 1.1, 99.0, 500.0])
    assert failures(errors, 83.0).tolist() == [6, 3]  # the median is 1.2
    assert failures(errors, 80.0).tolist() == [6, 3, 5]
    assert failures(errors, 0.9).tolist() == [6, 3, 5, 1]  # four at most
    assert failures(errors, 1000.0).tolist() == []
    assert failures(torch.tensor([1.0, math.inf, math.nan, 1.0, 1.0]), 2.0).tolist() == []


def test_every_merge_and_rank_is_tried():
    sample, deviation = deviations(torch.tensor([4, 2]), generator())
    tried = list(
        zip(sample.tolist(), deviation.step.tolist(), deviation.rank.tolist(), strict=True)
    )
    ranks = range(1, RANKS + 1)
    assert tried == [(0, s, r) for s in range(3) for r in ranks] + [(1, 0, r) for r in ranks]


def test_of_many_so_many_are_drawn():
    count = torch.tensor([100, 3])
    sample, deviation = deviations(count, generator())
    assert len(sample) == MOST_TREES
    assert (deviation.step < count[sample] - 1).all()
    assert not torch.equal(deviations(count, generator(1))[1].step, deviation.step)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("nearest", [None, Nearest(9)], ids=["all", "knn"])
def test_a_deviation_takes_another_pair_once(autoencoder, network, nearest):
    """The same merges before it, the pair of that rank, and the best pairs after it."""
    policy, batch = random_policy(network), random_batch([6, 4, 5, 6])
    step, rank = torch.tensor([0, 2, 1, 4]), torch.tensor([3, 0, 5, 9])
    episodes, _ = rollout(
        autoencoder,
        policy,
        batch,
        generator(),
        greedy=True,
        nearest=nearest,
        deviation=Deviation(step, rank),
    )
    made = episodes.merges
    actions = merges_to_actions(made, batch.num_tokens)
    for time, (population, action) in enumerate(replayed(autoencoder, batch, made)):
        logits, _ = policy(observe_population(autoencoder, population, policy.observes))
        order = logits.argsort(1, descending=True)
        choices = population.forest.num_active * (population.forest.num_active - 1)
        for row in (action >= 0).nonzero()[:, 0].tolist():
            place = 0
            if time == int(step[row]):
                place = min(int(rank[row]), int(choices[row]) - 1)  # two are left: one other
            assert int(actions[row, time]) == int(order[row, place]), (row, time)


def test_the_best_tree_of_a_sample_is_imitated_if_it_is_much_better(autoencoder):
    policy, batch = random_policy("pointer"), random_batch([4, 4])
    seen = []

    def roll(tried, deviation):
        seen.append(deviation)
        made = rollout(autoencoder, policy, tried, generator(), greedy=True, deviation=deviation)
        return made[0]

    def errors_of(tried, episodes):
        return torch.arange(len(tried.tokens), 0, -1).float()  # the last is the best, with 1.0

    search = LocalSearch(1.0, roll, errors_of, lambda *_: None, generator(), much_better=0.1)
    found = search.improvements(batch, torch.tensor([30.0, 30.0]))
    assert found.step.tolist() == [2]  # 16 is the least of the first sample, too much
    assert torch.equal(found.batch.tokens[0], batch.tokens[1])
    (deviation,) = seen
    assert (int(deviation.step[-1]), int(deviation.rank[-1])) == (2, RANKS)
    assert search.improvements(batch, torch.tensor([5.0, 9.0])) is None
    both = search.improvements(batch, torch.tensor([160.0, 10.0]))
    assert both.step.tolist() == [2, 2]


def learner(**changes) -> Reinforce:
    options = {
        "autoencoder": {"hidden_dim": 16},
        "policy_hidden_dim": 16,
        "batch_size": 8,
        "demonstration_share": [[0.0, 0.0]],
        **changes,
    }
    return Reinforce(
        "HTM-Trees-v0",
        config_from_dict(ReinforceConfig, options),
        embedding_dim=4,
        env_kwargs={"heights": (3,)},
    )


def test_a_choice_that_is_sure_and_wrong_becomes_less_sure():
    """Without any policy gradient, which could not do it."""
    one = learner(failure=1.0)
    one.search.much_better = math.inf
    with torch.no_grad():
        one.policy.head.weight.mul_(300)  # sure of itself
    batch = one.dataset.fixed(8)
    errors = one.errors_of(batch, one.greedy_episodes(batch))
    failed = failures(errors, 1.0)
    found = one.search.improvements(batch.rows(failed), errors[failed])

    def surprise() -> float:
        """Of the imitated choices, in nats."""
        log_probs = one.policy.terms(one.autoencoder, found.batch, found.episodes).log_probs
        return float(-log_probs.detach().gather(1, found.step[:, None]).mean())

    before = surprise()
    for _ in range(3):
        one.optimizer.zero()
        scalars = one.optimizer.step(one.search.learn(batch, errors), 0.5)
    assert before > 1.0 and scalars["loss/failures"] > 1.0
    assert surprise() < before


def test_its_merges_count_and_no_failure_costs_none():
    with_search, without = learner(failure=1.0), learner(failure=0.0)
    for one in (with_search, without):
        one.update(0.5)
    assert without.merges_made == 8 * 2 * 6
    assert with_search.merges_made == 8 * 2 * 6 + 4 * 6 * RANKS * 6
    assert "loss/failures" not in without.update(0.6)


def test_errors_are_no_failures_where_something_else_is_rewarded():
    one = learner(failure=1.0, reward="right_merges")
    one.update(0.5)
    assert one.merges_made == 8 * 2 * 6
