"""Jets: the model's splittings and momenta, their likelihood, and what the tokens keep of them."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from test_datasets_generated import Sample, leaves

from htm_env import pair_to_action
from htm_env.datasets.jets import (
    JetsDataset,
    JetsModel,
    Splittings,
    node_momenta,
    splitting_log_likelihood,
    squared_mass,
    tree_log_likelihood,
)
from htm_env.rewards import EncodedEpisodes
from htm_env.simulator import EnvConfig, Simulator

ROOT = (math.sqrt(80**2 + 400**2), *[400 / math.sqrt(3)] * 3)


def jets(split: str = "test", **constants: Any) -> JetsDataset:
    return JetsDataset(split, JetsModel(**constants))


def plain_log_likelihood(parent: float, first: float, second: float, rate: float) -> float:
    """The published formulas as they are written, with a cut of 16 GeV^2."""
    heavier, lighter = max(first, second), min(first, second)

    def log_p(t: float, scale: np.float64) -> np.float64:
        if t > 0:
            found = np.log(rate) - np.log(scale) - rate * t / scale
        else:
            found = np.log(1 - np.exp(-16 * rate / scale))
        return found - np.log(1 - np.exp(-rate))

    with np.errstate(all="ignore"):
        scale = np.float64(np.sqrt(parent) - np.sqrt(heavier)) ** 2
        found = log_p(heavier, np.float64(parent)) + log_p(lighter, scale) - np.log(4 * np.pi)
    return -100.0 if parent < 16 or not np.isfinite(found) else max(-100.0, float(found))


# --- Likelihood ------------------------------------------------------------------------------

masses = st.one_of(st.just(0.0), st.floats(1e-3, 1e4))


@given(parent=st.floats(1e-3, 1e4), first=masses, second=masses, rate=st.floats(0.1, 10))
@example(parent=6400.0, first=900.0, second=400.0, rate=3.0)
@example(parent=400.0, first=0.0, second=0.0, rate=1.5)
@example(parent=400.0, first=400.0, second=0.0, rate=1.5)  # nothing left for a particle
@example(parent=400.0, first=400.0, second=20.0, rate=1.5)  # nor for anything else
@example(parent=15.999, first=0.0, second=0.0, rate=1.5)
@example(parent=16.0, first=0.0, second=0.0, rate=1.5)
def test_splittings_have_the_published_likelihood(
    parent: float, first: float, second: float, rate: float
) -> None:
    children = torch.tensor([[first, second], [second, first]], dtype=torch.float64)
    parents = torch.full((2,), parent, dtype=torch.float64)
    found = splitting_log_likelihood(parents, children[:, 0], children[:, 1], rate)
    wanted = plain_log_likelihood(parent, first, second, rate)
    assert found.tolist() == pytest.approx([wanted] * 2, rel=0, abs=1e-10)


def test_a_splitting_into_two_particles_by_hand() -> None:
    """Each is at or below the cut with probability (1 - e^(-16 r / 32)) / (1 - e^-r)."""
    parent, zero = torch.tensor(32.0), torch.tensor(0.0)
    for rate in (1.5, 3.0):
        likelihood = splitting_log_likelihood(parent, zero, zero, torch.tensor(rate)).exp()
        particle = (1 - math.exp(-rate / 2)) / (1 - math.exp(-rate))
        assert float(likelihood) == pytest.approx(particle**2 / (4 * math.pi), rel=1e-5)


def test_the_likelihoods_of_all_first_children_add_up_to_one() -> None:
    """Of one lighter particle, whose own probability is divided out."""
    parent, rate, cut = 900.0, 1.5, 16.0
    steps = torch.arange(200_000, dtype=torch.float64)
    heavier = cut + (parent - cut) * (steps + 0.5) / len(steps)
    zero = torch.zeros_like(heavier)
    found = splitting_log_likelihood(torch.full_like(heavier, parent), heavier, zero, rate)
    scale = (30 - heavier.sqrt()) ** 2
    norm = 1 - math.exp(-rate)
    lighter = (1 - (-cut * rate / scale).exp()) / norm / (4 * math.pi)
    heavy = float((found.exp() / lighter).mean()) * (parent - cut)
    assert heavy + (1 - math.exp(-cut * rate / parent)) / norm == pytest.approx(1, abs=1e-4)


def test_trees_have_the_sum_of_their_splittings() -> None:
    """The last merge has the root's rate; particles count as massless, whatever they weigh."""
    batch = jets().fixed(20)
    found = tree_log_likelihood(batch, batch.merges)
    but_the_last = batch.merges.clone()
    for row in range(20):
        sample = Sample(batch, row)
        nodes, mass, total = list(sample.tokens), [0.0] * sample.count, 0.0
        for time, (first, second) in enumerate(sample.merges[: sample.count - 1]):
            merged = nodes[first] + nodes[second]
            nodes.append(merged)
            mass.append(merged[0] ** 2 - (merged[1:] ** 2).sum())
            last = time == sample.count - 2
            before, rate = total, 3.0 if last else 1.5
            total += plain_log_likelihood(mass[-1], mass[first], mass[second], rate)
        assert float(found[row]) == pytest.approx(total, abs=1e-9)
        but_the_last[row, sample.count - 2] = -1
        only = slice(row, row + 1)
        partial = tree_log_likelihood(batch.rows(only), but_the_last[only])
        assert float(partial) == pytest.approx(before, abs=1e-9)


def test_the_truth_of_the_fixed_jets() -> None:
    """Another program of the same model found -104.0 for 500 other jets, and the paper -99.3."""
    batch = jets().fixed(500)
    found = tree_log_likelihood(batch, batch.merges)
    assert float(found.mean()) == pytest.approx(-103.1695, abs=1e-3)
    assert abs(float(found.mean()) + 104.0) < 3 * float(found.std()) / math.sqrt(500)
    assert float(found.min()) > -220  # a single impossible splitting would show


def test_masses_are_those_of_momenta() -> None:
    momenta = torch.tensor([[5.0, 0, 0, 4.0], [5.0, 3.0, 4.0, 0], [80.0, 0, 0, 0]])
    assert squared_mass(momenta).tolist() == [9.0, 0.0, 6400.0]


# --- Splittings and momenta ------------------------------------------------------------------


def drawn(count: int, seed: int, **constants: Any) -> tuple[JetsModel, Splittings, np.ndarray]:
    """Many jets, none of them too large, and the uniform numbers of their directions."""
    model = JetsModel(**constants)
    numbers = np.random.default_rng(seed).random((model.max_tokens - 1, count, 4))
    splittings = Splittings.draw(model, numbers[..., 0], numbers[..., 1])
    assert (splittings.number < model.max_tokens).all()
    return model, splittings, numbers[..., 2:]


@pytest.mark.parametrize("constants", [{}, {"momentum": 0, "cut": 1, "rate": 4}, {"mass": 1000}])
def test_every_splitting_conserves_momentum(constants: dict[str, Any]) -> None:
    model, splittings, directions = drawn(200, 0, max_tokens=200, **constants)
    momenta = node_momenta(model, splittings, directions)
    mass, scale = splittings.mass, momenta[0, 0].max()
    squared = momenta[:, 0] ** 2 - (momenta[:, 1:] ** 2).sum(axis=1)
    assert momenta[0, 1:] == pytest.approx(np.full((3, 200), model.momentum / math.sqrt(3)))
    for jet, number in enumerate(splittings.number.tolist()):
        splits = splittings.node[:number, jet].tolist()
        assert len(set(splits)) == number
        particles = set(range(2 * number + 1)) - set(splits)
        assert np.flatnonzero(splittings.particles[: 2 * number + 1, jet]).tolist() == sorted(
            particles
        )
        assert all(squared[node, jet] > model.cut for node in splits)
        assert all(squared[node, jet] <= model.cut + 1e-9 * scale for node in particles)
        nodes = slice(0, 2 * number + 1)
        assert squared[nodes, jet] == pytest.approx(mass[nodes, jet] ** 2, abs=1e-9 * scale**2)
        for step, parent in enumerate(splits):
            assert parent <= 2 * step  # it was made before
            children = momenta[2 * step + 1, :, jet] + momenta[2 * step + 2, :, jet]
            assert children == pytest.approx(momenta[parent, :, jet], abs=1e-9 * scale)


def test_a_splitting_by_hand() -> None:
    """Of 10 GeV into 4 and 2: energies 5.6 and 4.4, momenta sqrt(15.36) upwards and downwards."""
    splittings = Splittings(np.array([[10.0], [4.0], [2.0]]), np.array([[0]]), np.array([1]))
    up = np.array([[[1.0, 0.0]]])
    size = math.sqrt(5.6**2 - 16)
    found = node_momenta(JetsModel(mass=10, momentum=0), splittings, up)[:, :, 0]
    assert found[1] == pytest.approx(np.array([5.6, 0, 0, size]))
    assert found[2] == pytest.approx(np.array([4.4, 0, 0, -size]))
    # Moving: E' = (E Ep + p pp) / m, and the same along the way for the momentum.
    moving = node_momenta(JetsModel(mass=10, momentum=24), splittings, up)[1, :, 0]
    along = moving[1:].sum() / math.sqrt(3)
    assert moving[0] == pytest.approx((26 * 5.6 + 24 * size / math.sqrt(3)) / 10)
    assert along == pytest.approx((26 * size / math.sqrt(3) + 24 * 5.6) / 10)


def test_shares_are_exponential_and_below_one() -> None:
    """Mean 1 / r - 1 / (e^r - 1): 0.281 of the root's, 0.379 elsewhere."""
    _, splittings, _ = drawn(20_000, 1, max_tokens=60)
    root, first, second = splittings.mass[:3]
    shares = {
        3.0: [(first / root) ** 2, (second / (root - first)) ** 2],
        1.5: [(splittings.mass[3] / splittings.mass[splittings.node[1], range(20_000)]) ** 2],
    }
    for rate, found in shares.items():
        for share in found:
            assert share.max() < 1
            mean = 1 / rate - 1 / math.expm1(rate)
            assert share.mean() == pytest.approx(mean, abs=4 * share.std() / math.sqrt(20_000))
            half = -math.expm1(-rate / 2) / -math.expm1(-rate)
            assert (share < 0.5).mean() == pytest.approx(half, abs=4 * 0.5 / math.sqrt(20_000))
    # A particle at once: a share below 16 / 6400, e.g. of 0.8 %.
    likely = -math.expm1(-3 * 16 / 6400) / -math.expm1(-3)
    found = (first**2 <= 16).mean()
    assert found == pytest.approx(likely, abs=4 * math.sqrt(likely / 20_000))


def test_directions_are_uniform_on_the_sphere() -> None:
    model, splittings, directions = drawn(20_000, 2, max_tokens=60, momentum=0)
    momenta = node_momenta(model, splittings, directions)[1, 1:]
    directions = momenta / np.linalg.norm(momenta, axis=0)
    # Each coordinate is uniform on [-1, 1] (Archimedes): variance 1/3.
    assert np.abs(directions.mean(axis=1)).max() < 4 * math.sqrt(1 / 3 / 20_000)
    for coordinate in directions:
        assert np.histogram(coordinate, 4, (-1, 1))[0] == pytest.approx(5000, abs=4 * 62)


# --- Data ------------------------------------------------------------------------------------


def test_tokens_are_the_particles_and_merges_undo_the_splittings() -> None:
    batch = jets().fixed(300)
    assert batch.tokens.shape == (300, 20, 4)
    assert batch.clades.shape == (300, 18, 20)
    assert int(batch.num_tokens.min()) >= 2 and int(batch.num_tokens.max()) == 20
    for row in range(300):
        sample = Sample(batch, row)
        nodes = [frozenset(leaves(node)) for node in sample.nodes()]
        assert sample.clades == {node for node in nodes if 2 <= len(node) < sample.count}
        assert sample.tokens.sum(axis=0) == pytest.approx(np.array(ROOT), abs=1e-3)
        momenta = torch.tensor(np.stack([sample.tokens[list(node)].sum(axis=0) for node in nodes]))
        mass = squared_mass(momenta).numpy()  # rounded to float32: 400^2 * 1e-7 is 0.02
        assert (mass[: sample.count] < 16.05).all()
        assert (mass[sample.count :] > 15.95).all()


def test_the_most_energetic_particle_may_be_in_any_slot() -> None:
    batch = jets("train").fixed(6000)
    ten = batch.rows(batch.num_tokens == 10)
    slots = Counter(ten.tokens[..., 0].argmax(dim=1).tolist())
    count = len(ten.tokens)
    assert count > 200 and set(slots) == set(range(10))
    assert max(abs(slots[slot] - count / 10) for slot in range(10)) < 4 * math.sqrt(count * 0.09)


@pytest.mark.parametrize("most", [3, 8])
def test_larger_jets_are_drawn_again(most: int) -> None:
    """What is left has the shares of sizes that it has among all jets."""
    batch = jets(max_tokens=most).fixed(1000)
    sizes = batch.num_tokens
    assert batch.tokens.shape == (1000, most, 4)
    assert int(sizes.min()) >= 2 and int(sizes.max()) == most
    assert batch.tokens[0].abs().sum() > 0
    if most == 8:
        _, splittings, _ = drawn(100_000, 3, max_tokens=60)
        small = splittings.number[splittings.number < most]
        share = (small == 7).mean()
        found = float((sizes == 8).double().mean())
        assert found == pytest.approx(share, abs=4 * 0.5 * math.sqrt(1 / 1000 + 1 / len(small)))


def test_a_model_of_too_large_jets_is_told() -> None:
    with pytest.raises(ValueError, match=r"none of \d+ jets has 3 particles or fewer"):
        jets(cut=1e-9, max_tokens=3).fixed(1)


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"mass": 0}, "mass is 0: expected a number above 0"),
        ({"mass": 4}, "mass 4 with cut 16 allows no splitting"),
        ({"momentum": -1}, "momentum is -1: expected a finite number from 0 to "),
        ({"root_rate": 0}, "root_rate is 0: expected a number above 0"),
        ({"rate": "fast"}, "rate is 'fast': expected a number"),
        ({"cut": float("nan")}, "cut is nan: expected a finite number"),
        ({"max_tokens": 2}, "max_tokens is 2: expected a whole number from 3 to 1024"),
        ({"max_tokens": 20.0}, "max_tokens is 20.0: expected a whole number"),
        ({"least_log_likelihood": 1}, "least_log_likelihood is 1: .* from -1e.09 to 0"),
    ],
)
def test_impossible_constants_are_named(constants: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JetsModel(**constants)


# ---------------------------------------------------------------- the environment


def test_an_episode_of_the_true_merges_earns_the_log_likelihood_of_the_true_tree():
    world = Simulator(EnvConfig("HTM-Jets-v0", split="test"))
    batch = world.dataset.fixed(40)
    nodes = world.autoencoder.encode(batch.tokens, batch.present, batch.merges).nodes
    earned = world.reward.episode(
        EncodedEpisodes(world.autoencoder, batch, batch.merges, nodes, world.std)
    )
    expected = tree_log_likelihood(batch, batch.merges)
    assert earned.sum(1).tolist() == pytest.approx(expected.tolist(), abs=0.01)  # of float32 sums


def test_an_embedding_holds_the_momentum_and_the_squared_mass_of_a_part():
    env = gym.make("htm_env:HTM-Jets-v0", split="test")
    observation, _ = env.reset(seed=0)
    first, second = np.flatnonzero(observation["active"])[:2]
    before = observation["tokens"].astype(np.float64)
    action = pair_to_action(first, second, env.unwrapped.simulator.num_slots)
    observation, *_ = env.step(action)
    merged = observation["tokens"][first].astype(np.float64)
    momentum = before[first, :4] + before[second, :4]
    assert merged[:4] == pytest.approx(momentum, abs=1e-5)
    squared = momentum[0] ** 2 - (momentum[1:] ** 2).sum()  # in units of 100 GeV
    assert merged[8] == pytest.approx(np.log(squared * 1e4 / 16), abs=1e-3)
    assert before[first, -1] == 1 and merged[-1] == 0  # a particle, and a part of two
