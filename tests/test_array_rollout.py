"""Rollouts on arrays and compiled: the episodes of rollouts on tensors, from the same numbers."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from episodes import (
    COPIES,
    EITHER_WAY,
    RAGGED,
    SCORERS,
    generator,
    random_batch,
    random_policy,
    replayed_log_probs,
    several_trees,
)
from scipy.stats import chisquare
from torch import nn

from agents.fixed import all_merge_sequences
from agents.learners.reinforce import Reinforce
from agents.networks.scorers import Placed, PointerPolicy
from agents.rollouts.rollout import compiled as compiled_step
from agents.rollouts.rollout import rollout
from benchmarks.rollout_speed import OnArrays, OnTensors
from htm_env.autoencoder import HTMAutoencoder
from htm_env.forest import check_merges

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
compiled = pytest.param(lambda policy: policy, id="compiled", marks=numba)
"""Pointer policies only; others are on arrays then too."""
WAYS = [pytest.param(OnArrays, id="arrays"), compiled]


def both(way, autoencoder, policy, batch, seed, **options):
    """The same rollout on tensors and another way."""
    on_tensors = rollout(autoencoder, OnTensors(policy), batch, generator(seed), **options)
    return on_tensors, rollout(autoencoder, way(policy), batch, generator(seed), **options)


def check_equal(on_tensors, another):
    (expected, expected_terms), (made, terms) = on_tensors, another
    assert torch.equal(made.merges, expected.merges)
    assert torch.equal(made.leaf_counts, expected.leaf_counts)
    assert torch.equal(made.active, expected.active)
    torch.testing.assert_close(made.nodes, expected.nodes, **CLOSE)
    for name in ("log_prob", "log_total", "entropy"):
        torch.testing.assert_close(getattr(terms, name), getattr(expected_terms, name), **CLOSE)


@pytest.mark.parametrize(
    ("way", "network"),
    [
        *((OnArrays, name) for name in (*SCORERS, EITHER_WAY)),
        pytest.param(*compiled.values, "pointer", id="compiled", marks=numba),
    ],
)
@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_merges_and_terms_are_those_on_tensors(
    autoencoder, way, network, greedy, measured, ordered
):
    batch = several_trees(random_batch(RAGGED, slots=7))
    options = {"measure_entropy": measured, "ordered_entropy": ordered, "greedy": greedy}
    for seed in range(3):
        check_equal(*both(way, autoencoder, random_policy(network), batch, seed, **options))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_many_tokens_are_merged_as_on_tensors(autoencoder, way, greedy, ordered):
    """More episodes than are merged together, and so many merges that all scores are replaced."""
    batch = random_batch([40, 33, 17] * 4)
    options = {"ordered_entropy": ordered, "greedy": greedy}
    check_equal(*both(way, autoencoder, random_policy("pointer"), batch, 0, **options))


@pytest.mark.parametrize("way", WAYS)
def test_merges_are_those_on_tensors_where_episodes_end_early(autoencoder, way):
    batch, limit = several_trees(random_batch(RAGGED)), torch.tensor(RAGGED) // 2
    limit = limit.repeat_interleave(torch.tensor(COPIES))
    policy = random_policy("pointer")
    check_equal(*both(way, autoencoder, policy, batch, 1, num_merges=limit))
    check_equal(*both(way, autoencoder, policy, batch, 1, num_merges=0 * limit))
    everything, _ = both(way, autoencoder, policy, batch, 1)
    check_equal(everything, both(way, autoencoder, policy, batch, 1, num_merges=100 * limit)[1])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("greedy", [False, True])
def test_coordinates_beside_embeddings_are_those_on_tensors(autoencoder, way, greedy):
    seen, batch = Placed(autoencoder), several_trees(random_batch(RAGGED))
    policy = random_policy("pointer", seen.embedding_dim)
    check_equal(*both(way, seen, policy, batch, 2, greedy=greedy))


@pytest.mark.parametrize("way", WAYS)
def test_a_subclass_with_scores_of_its_own_keeps_them(autoencoder, way):
    class Turned(PointerPolicy):
        def scores(self, first, second):
            return -super().scores(first, second)

    torch.manual_seed(0)
    policy, batch = Turned(5, 12), random_batch([5] * 10)
    check_equal(*both(way, autoencoder, policy, batch, 0, greedy=True))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layer", ["body", "residual", "head", "distance_skip"])
def test_a_subclass_with_layers_of_its_own_keeps_them(autoencoder, layer, way):
    torch.manual_seed(0)
    policy = PointerPolicy(5, 12)
    usual = getattr(policy, layer)
    linear = usual if isinstance(usual, nn.Linear) else usual[0]
    policy.register_module(layer, nn.Sequential(linear, nn.Tanh()))
    check_equal(*both(way, autoencoder, policy, random_batch([5] * 10), 0, greedy=True))


@pytest.mark.parametrize("way", WAYS)
def test_a_merger_that_is_no_gated_network_merges_as_on_tensors(way):
    plain = HTMAutoencoder(3, 5, 16, "mlp", generator=generator(1))
    check_equal(*both(way, plain, random_policy("pointer"), random_batch(RAGGED), 0))


def sure_policy(factor):
    """A pointer whose scores are so many times as large, distances and orders aside."""
    torch.manual_seed(0)
    policy = PointerPolicy(5, 12)
    with torch.no_grad():
        policy.head.weight.mul_(10)
        policy.head.weight[: policy.key_dim] *= factor
    return policy


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("factor", [30.0, 1e3, 1e6])
@pytest.mark.parametrize("greedy", [False, True])
def test_scores_may_lie_far_apart(autoencoder, way, factor, greedy):
    """After the likeliest pairs are gone the others are as unlikely as exp(-1e6) beside them."""
    policy, batch = sure_policy(factor), random_batch([9, 7] * 10)
    on_tensors, (made, terms) = both(way, autoencoder, policy, batch, 0, greedy=greedy)
    assert torch.equal(made.merges, on_tensors[0].merges)
    assert terms.log_prob.isfinite().all() and terms.log_total.isfinite().all()
    if factor == 30.0:  # beyond, float32 tells the scores themselves no more exactly
        check_equal(on_tensors, (made, terms))


@pytest.mark.parametrize("distance", [-7e8, 7e8, -1e30, float("nan")])
def test_scores_beyond_those_of_illegal_pairs_are_legal(autoencoder, distance):
    """As those of an autoencoder that diverges: bounded, so that all pairs are alike."""

    class Away(PointerPolicy):
        def scores(self, first, second):
            return super().scores(first, second) + distance

    torch.manual_seed(0)
    batch = random_batch(RAGGED)
    check_equal(*both(OnArrays, autoencoder, Away(5, 12), batch, 0))
    (_, _), (made, terms) = both(OnArrays, autoencoder, Away(5, 12), batch, 1)
    check_alike(made, terms)


def check_alike(made, terms):
    """All pairs are equally likely at every step."""
    number = made.num_active * (made.num_active - 1)
    expected = torch.where(made.steps, -number.clamp(min=1).log(), 0.0)
    torch.testing.assert_close(terms.log_prob, expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("damage", [float("nan"), float("inf"), 1e15])
@pytest.mark.parametrize("greedy", [False, True])
def test_a_diverged_policy_gives_legal_merges(autoencoder, way, damage, greedy):
    policy, batch = random_policy("pointer"), random_batch([*RAGGED, 30])
    with torch.no_grad():
        policy.distance_skip.weight.fill_(damage)
    made, terms = rollout(autoencoder, way(policy), batch, generator(), greedy=greedy)
    check_merges(made.merges, batch.num_tokens)
    assert made.steps.sum(1).tolist() == [n - 1 for n in [*RAGGED, 30]]
    assert terms.log_prob.isfinite().all() and terms.entropy.isfinite().all()
    if damage != damage:
        check_alike(made, terms)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_number_in_a_merger_shows_in_the_nodes(way):
    broken = HTMAutoencoder(3, 5, 16, generator=generator(1))
    with torch.no_grad():
        broken.merger.gate.bias[0] = float("nan")
    batch = random_batch(RAGGED)
    (expected, _), (made, _) = both(way, broken, random_policy("pointer"), batch, 0)
    assert expected.nodes.isnan().any()
    assert torch.equal(made.nodes.isnan(), expected.nodes.isnan())
    check_merges(made.merges, batch.num_tokens)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_numbers_are_drawn_whatever_the_precision(autoencoder, way):
    """Of 64 bits nothing is compiled."""
    batch, policy = random_batch(RAGGED), random_policy("pointer")
    single, _ = rollout(autoencoder, way(policy), batch, generator(3))
    batch = batch._replace(tokens=batch.tokens.double())
    double, _ = rollout(autoencoder.double(), way(policy.double()), batch, generator(3))
    assert double.nodes.dtype == torch.float64
    assert torch.equal(double.merges, single.merges)


@numba
def test_rollouts_of_reinforce_are_compiled():
    learner = Reinforce("HTM-Trees-v0", env_kwargs={"heights": (3,)}, embedding_dim=6)
    assert compiled_step(learner.seen.merger, learner.policy.on_arrays()) is not None


def test_without_numba_nothing_is_said():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from agents import Reinforce\n"
        "agent = Reinforce('HTM-Trees-v0', env_kwargs={'heights': (3,)}, embedding_dim=6)\n"
        "agent.update(0.5)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "network"),
    [
        pytest.param(OnTensors, "pointer", id="tensors"),
        pytest.param(OnArrays, "pointer", id="arrays"),
        pytest.param(OnArrays, EITHER_WAY, id="arrays, either way"),
        pytest.param(*compiled.values, "pointer", id="compiled", marks=numba),
    ],
)
def test_all_sequences_of_four_tokens_come_as_often_as_they_are_likely(autoencoder, way, network):
    sequences, policy = all_merge_sequences(4), random_policy(network, seed=1)
    assert len(sequences) == 144  # 12 ordered pairs, then 6, then 2
    one = random_batch([4])
    expected = replayed_log_probs(
        autoencoder, policy, one.rows(torch.zeros(144, dtype=torch.int64)), sequences
    )
    expected = expected.sum(1).double().exp().detach()
    assert expected.max() > 2 * expected.min()  # else every sampler passes
    count = 50_000
    many = one.rows(torch.zeros(count, dtype=torch.int64))
    made, _ = rollout(autoencoder, way(policy), many, generator(3))
    observed = (made.merges[:, None] == sequences).all(3).all(2).sum(0)
    chances = expected / expected.sum() * count
    cell = torch.arange(144).where(chances > 5, chances.argmax())  # rare ones join the likeliest
    compared = [
        torch.zeros(144, dtype=torch.float64).index_add(0, cell, values.double())[cell.unique()]
        for values in (observed, chances)
    ]
    assert chisquare(*(values.numpy() for values in compared)).pvalue > 0.001
