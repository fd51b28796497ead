"""Distances between token sets: by hand, against plain oracles, and what the measures mean."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from htm_env import make_dataset
from htm_env.generation.distances import (
    TokenSets,
    nearest_chamfer,
    set_measures,
    token_count_distance,
)


def token_sets(sets, slots=None) -> TokenSets:
    slots = max(len(rows) for rows in sets) if slots is None else slots
    tokens = torch.full((len(sets), slots, len(sets[0][0])), 99.0)  # padding must not count
    present = torch.zeros(len(sets), slots, dtype=torch.bool)
    for row, values in enumerate(sets):
        tokens[row, : len(values)] = torch.as_tensor(np.asarray(values), dtype=torch.float32)
        present[row, : len(values)] = True
    return TokenSets(tokens, present)


def random_sets(seed: int, count: int, sizes=(1, 2, 3, 5)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(rng.choice(sizes), 2)).astype(np.float32).astype(np.float64)
        for _ in range(count)
    ]


def plain_transport(first, second) -> float:
    """The transport problem as it stands in textbooks."""
    ways = np.linalg.norm(first[:, None] - second[None], axis=2)
    rows, columns = ways.shape
    sums = [np.kron(np.eye(rows), np.ones(columns)), np.kron(np.ones(rows), np.eye(columns))]
    mass = [np.full(rows, 1 / rows), np.full(columns, 1 / columns)]
    return linprog(ways.ravel(), A_eq=np.concatenate(sums), b_eq=np.concatenate(mass)).fun


def plain_chamfer(first, second) -> float:
    ways = np.square(first[:, None] - second[None]).sum(axis=2)
    return ways.min(axis=1).mean() + ways.min(axis=0).mean()


def plain_measures(real, generated, distance):
    """Every distance of the union, and the definitions word by word."""
    union = [*real, *generated]
    ways = np.array([[distance(one, two) for two in union] for one in union])
    split = len(real)
    mmd = ways[:split, split:].min(axis=1).mean()
    coverage = len(set(ways[split:, :split].argmin(axis=1))) / split
    np.fill_diagonal(ways, np.inf)
    nearest = ways.argmin(axis=1)
    own = (nearest >= split) == (np.arange(len(union)) >= split)
    return mmd, coverage, own.mean()


def distances(first, second) -> dict[str, float]:
    """Of two sets: between collections that hold nothing else."""
    found = set_measures(token_sets([first, first]), token_sets([second, second], slots=600))
    return {name: measures.minimum_matching_distance for name, measures in found.items()}


def earth_movers_distance(first, second) -> float:
    return distances(first, second)["earth_movers"]


def numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32).astype(np.float64)


# ---------------------------------------------------------------- distances


def test_distances_by_hand():
    first, second = [[0.0, 0.0], [3.0, 0.0]], [[0.0, 4.0]]
    # Squared ways to the only token: 16 and 25; back: the nearer one.
    assert distances(first, second)["chamfer"] == pytest.approx((16 + 25) / 2 + 16)
    assert earth_movers_distance(np.array(first), np.array(second)) == pytest.approx((4 + 5) / 2)
    # Two against three on a line: a third stays, a sixth each goes on, and so forth.
    two, three = np.array([[0.0], [1.0]]), np.array([[0.0], [0.5], [1.0]])
    assert earth_movers_distance(two, three) == pytest.approx(2 * 0.5 / 6)


def test_equal_sizes_are_matched_one_to_one():
    # Both tokens are nearest to the same one, which only one of them can have.
    first, second = np.array([[0.0], [1.0]]), np.array([[1.0], [11.0]])
    assert earth_movers_distance(first, second) == pytest.approx((1 + 10) / 2)


@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 7))
def test_earth_movers_distance_is_the_transport_problem(seed, rows, columns):
    rng = np.random.default_rng(seed)
    first, second = numbers(rng, rows, 3), numbers(rng, columns, 3)
    found = earth_movers_distance(first, second)
    assert found == pytest.approx(plain_transport(first, second), abs=1e-9)
    assert found == pytest.approx(earth_movers_distance(second, first), abs=1e-9)


def test_sizes_whose_copies_would_be_too_many_are_exact_too():
    rng = np.random.default_rng(0)
    first, second = numbers(rng, 17, 2), numbers(rng, 19, 2)
    assert earth_movers_distance(first, second) == pytest.approx(plain_transport(first, second))
    assert earth_movers_distance(first, np.repeat(first, 31, axis=0)) == pytest.approx(0.0)


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_chamfer_against_plain_loops(seed):
    for first, second in zip(random_sets(seed, 3), random_sets(seed + 1, 3), strict=True):
        expected = plain_chamfer(first, second)
        assert distances(first, second)["chamfer"] == pytest.approx(expected, rel=1e-6)


def test_the_nearest_of_many_is_the_least_of_all_distances():
    """In parts of a few others at a time, and of sets with other numbers of slots."""
    few, many = random_sets(0, 4), random_sets(1, 9)
    expected = [min(plain_chamfer(one, other) for other in many) for one in few]
    sets, others = token_sets(few, slots=7), token_sets(many)
    assert nearest_chamfer(sets, others) == pytest.approx(expected, rel=1e-6)
    assert nearest_chamfer(sets, others, most=1) == pytest.approx(expected, rel=1e-6)


def test_token_count_distance_by_hand():
    counts = np.array([3, 3, 7, 15])
    assert token_count_distance(counts, counts[::-1].copy()) == 0.0
    assert token_count_distance(counts, np.array([2])) == 1.0
    # Shares 1/2, 1/4, 1/4 against 1/4, 3/4, 0.
    assert token_count_distance(counts, np.array([3, 7, 7, 7])) == pytest.approx(0.5)


# ---------------------------------------------------------------- measures


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_measures_are_those_of_all_distances(seed, count):
    real, generated = random_sets(seed, count), random_sets(seed + 1, count)
    found = set_measures(token_sets(real), token_sets(generated))
    for name, distance in (("chamfer", plain_chamfer), ("earth_movers", plain_transport)):
        assert found[name] == pytest.approx(plain_measures(real, generated, distance), rel=1e-6)


def test_a_copy_covers_everything_and_is_nearest_to_the_other_kind():
    sets = token_sets(random_sets(0, 20))
    for measures in set_measures(sets, sets).values():
        assert measures == (0.0, 1.0, 0.0)


def test_one_sample_again_and_again_covers_one_and_is_told_apart():
    real = [[[10.0 * k, 0.0]] for k in range(8)]
    generated = [[[30.0, 0.1]]] * 8  # all near the fourth
    for measures in set_measures(token_sets(real), token_sets(generated)).values():
        assert measures.coverage == 1 / 8
        # Generated ones have each other; of the real ones only the fourth has them nearest.
        assert measures.nearest_neighbour_accuracy == (8 + 7) / 16


def test_a_tie_between_the_kinds_counts_half():
    # On a line: real 0 and 4, generated 2 and 6. For 2, both reals are as far as the other 6 is;
    # 4 has both generated ones at 2 and the real one at 4.
    found = set_measures(token_sets([[[0.0]], [[4.0]]]), token_sets([[[2.0]], [[6.0]]]))
    # 0: nearest is 2 (other). 4: nearest is 2 (other). 2: nearest is real. 6: nearest is real.
    assert found["earth_movers"].nearest_neighbour_accuracy == 0.0
    tied = set_measures(token_sets([[[0.0]], [[2.0]]]), token_sets([[[4.0]], [[6.0]]]))
    # 0: real. 2: real or generated, the same. 4 the same, 6: generated.
    assert tied["earth_movers"].nearest_neighbour_accuracy == (1 + 0.5 + 0.5 + 1) / 4


def test_two_halves_of_the_data_cannot_be_told_apart_and_it_does_not_take_long():
    dataset = make_dataset("HTM-Trees-v0", split="test")
    batch = dataset.fixed(400)
    tokens = (batch.tokens - dataset.mean) / dataset.std
    halves = [
        TokenSets(tokens[rows], batch.present[rows]) for rows in (slice(200), slice(200, 400))
    ]
    started = perf_counter()
    for measures in set_measures(*halves).values():
        assert 0.4 < measures.nearest_neighbour_accuracy < 0.6
        assert measures.coverage > 0.45
    assert perf_counter() - started < 10.0  # about 0.5 s


def test_what_cannot_be_compared_is_refused():
    sets = token_sets(random_sets(0, 3))
    with pytest.raises(ValueError, match="3 real and 2 generated"):
        set_measures(sets, token_sets(random_sets(0, 2)))
    with pytest.raises(ValueError, match="at least 2"):
        set_measures(token_sets([[[0.0]]]), token_sets([[[0.0]]]))
    bad = token_sets(random_sets(0, 3))
    bad.tokens[1, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        set_measures(sets, bad)
