"""Stochastic versions of fixed policies: their probabilities by hand, in loops, by enumeration."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import small_autoencoder
from oracle import batched, random_tree
from scipy.stats import chisquare
from tabular import ROWS, SEQUENCES, STEPS, TREES, prefix

from agents.demonstrations import Demonstrator
from agents.demonstrations.behaviour import Behaviour, PlanMixture, SoftNearest
from agents.fixed import FIXED_POLICIES, fixed_policy
from htm_env.datasets import make_dataset
from htm_env.forest import check_merges, same_trees
from htm_env.types import TokenBatch
from replay.tree_probability import all_sequences

AUTOENCODER = small_autoencoder(token_dim=3)
VECTORS = make_dataset(np.arange(240.0).reshape(20, 4, 3))
NAMES = sorted(name for name, rule in FIXED_POLICIES.items() if rule.need is None)
SIZES = [5, 2, 7, 4, 1, 7]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def token_batch(sizes: list[int], seed: int = 0, slots: int | None = None) -> TokenBatch:
    """Random tokens of three coordinates, and a random hierarchy over them."""
    drawn = generator(seed)
    slots = max(2, *sizes) if slots is None else slots
    forest = batched([random_tree(n, drawn) for n in sizes], slots)
    tokens = torch.randn(len(sizes), max(sizes), 3, generator=drawn) * 2 + 1
    padded = torch.zeros(len(sizes), slots, 3)
    padded[:, : max(sizes)] = tokens
    clades = torch.zeros(len(sizes), 0, slots, dtype=torch.bool)
    return TokenBatch(padded * forest.present[..., None], forest.present, clades, forest.merges)


def copies(count: int, seed: int = 0) -> TokenBatch:
    """The same sample of four tokens so many times."""
    batch = token_batch([4], seed)
    return batch.each(lambda values: values.expand(count, *values.shape[1:]))


def of_policy(name: str, **options: float) -> Demonstrator:
    """The stochastic version of a fixed policy."""
    return Demonstrator(fixed_policy(name, AUTOENCODER, VECTORS), **options)


def drawn(demonstrator: Demonstrator, batch: TokenBatch, seed: int) -> tuple:
    """One episode of every sample, and the log-probability of its merges."""
    stream = generator(seed)
    return demonstrator.behaviour(batch, stream).episodes(stream)


def behaviour_on_copies(demonstrator: Demonstrator, count: int) -> Behaviour:
    behaviour = demonstrator.behaviour(copies(count), generator(2))
    if isinstance(behaviour, PlanMixture):  # the same plan for all, whatever it draws
        one = demonstrator.behaviour(copies(1), generator(2))
        behaviour = replace(behaviour, plan=one.plan.expand(count, -1, -1))
    return behaviour


@pytest.mark.parametrize("name", NAMES)
def test_probabilities_sum_to_one_over_all_sequences_and_in_every_state(name):
    demonstrator = of_policy(name, epsilon=0.3, temperature=0.7, order_epsilon=0.2)
    log_prob = behaviour_on_copies(demonstrator, ROWS).log_prob(SEQUENCES).double()
    assert float(log_prob.sum(1).exp().sum()) == pytest.approx(1, abs=1e-6)
    in_state: dict = {}
    for row in range(ROWS):
        for step in range(STEPS):
            actions = in_state.setdefault(prefix(row, step), {})
            actions[prefix(row, step + 1)] = math.exp(log_prob[row, step])
    assert all(sum(actions.values()) == pytest.approx(1, abs=1e-6) for actions in in_state.values())


@pytest.mark.parametrize("name", NAMES)
def test_episodes_come_as_often_as_they_are_said_to(name):
    count = 6000
    demonstrator = of_policy(name, epsilon=0.3, temperature=0.7, order_epsilon=0.2)
    exact = behaviour_on_copies(demonstrator, ROWS).log_prob(SEQUENCES).double().sum(1).exp()
    merges, _ = behaviour_on_copies(demonstrator, count).episodes(generator(5))
    drawn = Counter(map(str, merges.tolist()))
    found = torch.tensor([drawn[str(sequence)] for sequence in SEQUENCES.tolist()]).double()
    assert found.sum() == count  # nothing else
    often = exact * count >= 5
    cells = [
        (float(found[often][i]), float(exact[often][i] * count)) for i in range(int(often.sum()))
    ]
    if not often.all():
        cells.append((float(found[~often].sum()), float(exact[~often].sum() * count)))
    observed, expected = zip(*cells, strict=True)
    total = sum(expected)
    assert chisquare(observed, [value * count / total for value in expected]).pvalue > 0.005


@pytest.mark.parametrize("name", NAMES)
def test_the_probability_of_a_tree_is_the_sum_over_its_sequences(name):
    demonstrator = of_policy(name, epsilon=0.3, temperature=0.7, order_epsilon=0.2)
    behaviour = behaviour_on_copies(demonstrator, ROWS)
    chances = behaviour.log_prob(SEQUENCES).double().sum(1).exp()
    by_tree: Counter = Counter()
    for tree, chance in zip(TREES, chances.tolist(), strict=True):
        by_tree[tree] += chance
    found = behaviour.tree_log_prob(SEQUENCES, generator()).exp().tolist()
    assert found == pytest.approx([by_tree[tree] for tree in TREES], rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_reported_is_what_the_same_policy_says_of_these_merges(name):
    batch = token_batch(SIZES, seed=1)
    behaviour = of_policy(name).behaviour(batch, generator(1))
    merges, log_prob = behaviour.episodes(generator(3))
    check_merges(merges, batch.num_tokens)
    steps = merges[..., 0] >= 0
    assert (steps.sum(1) == batch.num_tokens - 1).all()
    assert (log_prob <= 0).all() and log_prob.isfinite().all() and (log_prob[~steps] == 0).all()
    torch.testing.assert_close(behaviour.log_prob(merges), log_prob, rtol=1e-4, atol=1e-5)
    first, again = (drawn(of_policy(name), batch, 4) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


# ---------------------------------------------------------------- following a plan


def test_a_plan_by_hand():
    """Three tokens, the plan {0, 1} and then {3, 2}, either order of both."""
    batch = token_batch([3, 3, 3, 3])
    behaviour = of_policy("chain", epsilon=0.4).behaviour(batch, generator())
    assert behaviour.turned
    merges = torch.tensor([[[0, 1], [2, 3]], [[1, 0], [3, 2]], [[0, 2], [3, 1]], [[2, 0], [1, 3]]])
    # First: 0.6 / 2 + 0.4 / 6 on the plan, 0.4 / 6 beside it. All four together:
    # 0.6 / 4 + 0.4 / 12 on the plan, 0.4 / 12 beside it.
    planned, other = 0.3 + 0.4 / 6, 0.4 / 6
    expected = [[planned, (0.15 + 0.4 / 12) / planned]] * 2 + [[other, (0.4 / 12) / other]] * 2
    torch.testing.assert_close(behaviour.log_prob(merges).exp(), torch.tensor(expected))


def test_a_plan_in_a_given_order_by_hand():
    batch = token_batch([3, 3, 3])
    behaviour = of_policy("structure_canonical", epsilon=0.4).behaviour(
        batch._replace(merges=torch.tensor([[[1, 0], [3, 2]]] * 3)), generator()
    )
    merges = torch.tensor([[[1, 0], [3, 2]], [[1, 0], [2, 3]], [[0, 1], [3, 2]]])
    first = 0.6 + 0.4 / 6
    expected = [
        [first, (0.6 + 0.4 / 12) / first],
        [first, (0.4 / 12) / first],
        [0.4 / 6, 0.5],
    ]
    torch.testing.assert_close(behaviour.log_prob(merges).exp(), torch.tensor(expected))


def test_random_is_its_own_stochastic_version():
    log_prob = behaviour_on_copies(of_policy("random", epsilon=0.1), ROWS).log_prob(SEQUENCES)
    expected = -torch.tensor([12.0, 6.0, 2.0]).log().expand(ROWS, -1)
    torch.testing.assert_close(log_prob, expected)


def test_nearly_every_episode_follows_the_plan():
    batch = token_batch([6] * 500)
    for name in ("ward", "structure_sorted"):
        merges, _ = drawn(of_policy(name, epsilon=0.2), batch, 3)
        plan = fixed_policy(name, AUTOENCODER).plan(batch, generator(4))
        followed = (merges.sort(-1).values == plan.sort(-1).values).all(-1).all(-1).float()
        assert abs(float(followed.mean()) - 0.8) < 4 * math.sqrt(0.16 / 500)


def test_the_same_trees_in_another_sequence_and_order():
    batch = token_batch(SIZES, seed=3)
    listed, owner = all_sequences(batch.merges, batch.num_tokens)
    num_leaves, plan = batch.num_tokens[owner], batch.merges[owner]
    assert len(listed) > len(SIZES)
    assert same_trees(plan, listed, num_leaves, either_order=False).all()
    turned = listed.clone()
    turned[:, 0] = turned[:, 0].flip(-1)
    large = num_leaves > 1
    assert not same_trees(plan, turned, num_leaves, either_order=False)[large].any()
    assert same_trees(plan, turned, num_leaves, either_order=True).all()
    other = token_batch(SIZES, seed=4).merges[owner]
    same = same_trees(plan, other, num_leaves, either_order=True)
    assert same.tolist() == [n <= 2 for n in num_leaves.tolist()]


# ---------------------------------------------------------------- softmax over distances


def by_loops(batch: TokenBatch, row: int, merges: list, temperature: float, turn: float) -> list:
    """The log-probability of every merge, centroids from the tokens of each node anew."""
    n = int(batch.num_tokens[row])
    tokens = (batch.tokens[row, :n] - AUTOENCODER.token_mean) / AUTOENCODER.token_std
    leaves = {leaf: [leaf] for leaf in range(n)}
    found = []
    for step, pair in enumerate(merges):
        means = {node: tokens[under].double().mean(0) for node, under in leaves.items()}
        weights = {}
        for a in leaves:
            for b in leaves:
                if a != b:
                    distance = float((means[a] - means[b]).square().sum().sqrt())
                    first_is_smaller = means[a].tolist() < means[b].tolist()
                    share = 1 - turn if first_is_smaller else turn
                    weights[a, b] = share * math.exp(-distance / temperature)
        found.append(math.log(weights[tuple(pair)] / sum(weights.values())))
        leaves[n + step] = leaves.pop(pair[0]) + leaves.pop(pair[1])
    return found


@pytest.mark.parametrize("name", ["nearest", "nearest_sorted"])
def test_the_softmax_equals_the_plain_loop(name):
    batch = token_batch(SIZES, seed=2, slots=9)
    turn = 0.15 if name == "nearest_sorted" else 0.5
    demonstrator = of_policy(name, temperature=0.4, order_epsilon=0.15)
    merges, log_prob = drawn(demonstrator, batch, 1)
    for row, n in enumerate(SIZES):
        expected = by_loops(batch, row, merges[row, : n - 1].tolist(), 0.4, turn)
        assert log_prob[row, : n - 1].tolist() == pytest.approx(expected, abs=1e-4)


def test_without_noise_it_is_the_fixed_policy():
    batch = token_batch(SIZES, seed=2)
    for name, turned in (("nearest_sorted", False), ("nearest", True)):
        cold = of_policy(name, temperature=1e-7, order_epsilon=1e-9)
        merges, log_prob = drawn(cold, batch, 0)
        expected = fixed_policy(name, AUTOENCODER).plan(batch, generator())
        steps = merges[..., 0] >= 0
        if turned:
            merges, expected = merges.sort(-1).values, expected.sort(-1).values
        assert torch.equal(merges, expected)
        each = math.log(0.5) if turned else 0.0
        assert log_prob[steps].tolist() == pytest.approx([each] * int(steps.sum()), abs=1e-6)


def test_equal_centroids_leave_the_order_to_a_coin():
    batch = copies(2)
    batch = batch._replace(tokens=torch.zeros_like(batch.tokens))
    behaviour = of_policy("nearest_sorted").behaviour(batch, generator())
    found = behaviour.log_prob(SEQUENCES[[0, 100]])
    torch.testing.assert_close(found, -torch.tensor([12.0, 6.0, 2.0]).log().expand(2, -1))


def test_trees_with_too_many_ways_to_them_are_estimated():
    """Of four tokens from all sequences, so that it stays exact; of 32 from some of them."""
    batch = copies(8)
    behaviour = of_policy("nearest", temperature=5.0).behaviour(batch, generator())
    exact = behaviour.tree_log_prob(SEQUENCES[:8], generator())
    estimating = SoftNearest(batch, AUTOENCODER, 5.0, 0.5, most_states=0)
    estimated = estimating.tree_log_prob(SEQUENCES[:8], generator())
    torch.testing.assert_close(estimated, exact, rtol=1e-4, atol=1e-4)
    # Pairs of 32 tokens, balanced: 677^2 + 1 forests on the way
    large = token_batch([32, 4], seed=0)
    balanced = fixed_policy("balanced", AUTOENCODER).plan(large, generator())
    behaviour = of_policy("nearest").behaviour(large, generator())
    found = behaviour.tree_log_prob(balanced, generator())
    assert found.isfinite().all() and (found <= 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0.0}, "epsilon is 0.0; expected more than 0 and at most 1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"order_epsilon": 1.0}, "order_epsilon is 1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        of_policy("nearest", **changes)
