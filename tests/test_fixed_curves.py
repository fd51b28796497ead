"""Orders along a Hilbert curve: the curve itself, trees over it, and pairs turned by it."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from conftest import small_autoencoder
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.fixed import fixed_policy
from agents.fixed.order import curve_index, hilbert_index, hilbert_order
from htm_env.datasets import make_dataset
from htm_env.types import TokenBatch

PLANE = small_autoencoder(token_dim=2)
PLANE.set_statistics(torch.zeros(2), torch.ones(2))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(*coordinates: list[float]) -> TokenBatch:
    """One sample of tokens."""
    tokens = torch.tensor(coordinates)[None]
    n = tokens.shape[1]
    clades = torch.zeros(1, 0, n, dtype=torch.bool)
    present, merges = torch.ones(1, n, dtype=torch.bool), torch.full((1, n - 1, 2), -1)
    return TokenBatch(tokens, present, clades, merges)


# ---------------------------------------------------------------- the curve


@pytest.mark.parametrize(
    ("dims", "bits"), [(1, 5), (2, 1), (2, 2), (2, 5), (3, 1), (3, 4), (4, 3), (6, 2)]
)
def test_the_curve_visits_every_cell_and_goes_from_neighbour_to_neighbour(dims, bits):
    cells = torch.tensor(list(product(range(2**bits), repeat=dims)))
    index = curve_index(cells, bits)
    assert sorted(index.tolist()) == list(range(2 ** (dims * bits)))
    walk = cells[index.argsort()]
    steps = (walk[1:] - walk[:-1]).abs()
    assert (steps.sum(dim=1) == 1).all()  # one cell on, along one axis


def test_the_curve_of_the_plane_is_that_of_hilbert():
    """Three sides of a square; with two bits, four of them, the first and the last turned."""
    cells = torch.tensor(list(product(range(4), repeat=2)))
    walk = cells[curve_index(cells, 2).argsort()].tolist()
    first, last = [[0, 0], [1, 0], [1, 1], [0, 1]], [[3, 1], [2, 1], [2, 0], [3, 0]]
    assert walk == [*first, [0, 2], [0, 3], [1, 3], [1, 2], [2, 2], [2, 3], [3, 3], [3, 2], *last]


def skilling(cell: list[int], bits: int) -> int:
    """The index of one cell: AxestoTranspose of Skilling (2004), line by line."""
    x, n, most = list(cell), len(cell), 1 << (bits - 1)
    q = most
    while q > 1:
        for i in range(n):
            if x[i] & q:
                x[0] ^= q - 1
            else:
                t = (x[0] ^ x[i]) & (q - 1)
                x[0] ^= t
                x[i] ^= t
        q >>= 1
    for i in range(1, n):
        x[i] ^= x[i - 1]
    t, q = 0, most
    while q > 1:
        if x[n - 1] & q:
            t ^= q - 1
        q >>= 1
    transposed = [own ^ t for own in x]
    digits = [str(own >> level & 1) for level in range(bits - 1, -1, -1) for own in transposed]
    return int("".join(digits), 2)


def test_the_index_is_that_of_skilling():
    """The example beside its program is (5, 10, 20) of five bits each, at 7865."""
    assert curve_index(torch.tensor([5, 10, 20]), 5).item() == skilling([5, 10, 20], 5) == 7865
    # One bit: the index is decoded from a Gray code, so 101100 is at 110111.
    assert curve_index(torch.tensor([1, 0, 1, 1, 0, 0]), 1).item() == 0b110111
    for dims, bits in ((3, 5), (3, 20), (6, 2), (6, 10)):
        cells = torch.randint(2**bits, (20, dims), generator=generator(dims))
        assert curve_index(cells, bits).tolist() == [skilling(c, bits) for c in cells.tolist()]
    # The eight corners of a cube along a Gray code, first coordinate first.
    corners = torch.tensor(
        [[0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 1, 0], [1, 1, 0], [1, 1, 1], [1, 0, 1], [1, 0, 0]]
    )
    assert curve_index(corners, 1).tolist() == list(range(8))


@settings(max_examples=20)
@given(dims=st.integers(1, 20), seed=st.integers(0, 2**16))
def test_coarser_cells_are_visited_in_the_same_order(dims, seed):
    """All cells of a cube come one after another, whatever its size."""
    bits = 62 // dims
    cells = torch.randint(2**bits, (50, dims), generator=generator(seed))
    index = curve_index(cells, bits)
    for level in range(1, bits):
        assert torch.equal(curve_index(cells >> level, bits - level), index >> (dims * level))


# ---------------------------------------------------------------- where points are on it


def test_a_point_has_the_index_of_its_cell_in_a_cube_of_eight_standard_deviations():
    """Four coordinates of 15 bits: the unit of a cell is 8 / 2**15, and the corner is at -4."""
    cells = torch.randint(2**15, (30, 4), generator=generator())
    points = (cells + 0.5) * 8 / 2**15 - 4
    assert torch.equal(hilbert_index(points.double()), curve_index(cells, 15))
    outside = torch.tensor([[-9.0, 7.0, -torch.inf, torch.inf]], dtype=torch.float64)
    assert hilbert_index(outside).item() == curve_index(torch.tensor([[0, 2**15 - 1] * 2]), 15)


def test_of_many_coordinates_the_first_62_have_a_bit_each():
    signs = torch.randint(2, (40, 70), generator=generator())
    points = (2.0 * signs - 1).double()
    assert torch.equal(hilbert_index(points), curve_index(signs[:, :62], 1))
    points[:, 62:] *= -1
    assert torch.equal(hilbert_index(points), curve_index(signs[:, :62], 1))


def test_neighbours_on_the_curve_are_near_each_other():
    """Of 1000 points in the unit square neighbours along a good tour are 0.7 / sqrt(1000) = 0.02
    apart; in sorted order a third of its side."""
    drawn = torch.rand(1000, 2, generator=generator()).double()
    walk = drawn[hilbert_index(drawn).argsort()]
    assert float((walk[1:] - walk[:-1]).norm(dim=1).mean()) < 0.04
    by_first = drawn[drawn[:, 0].argsort()]
    assert float((by_first[1:] - by_first[:-1]).norm(dim=1).mean()) > 0.3


# ---------------------------------------------------------------- orders and trees


def test_balanced_hilbert_pairs_neighbours_on_the_curve():
    """The curve starts in the lower left corner, goes up on the left and comes down on the right:
    in the four quarters of the plane are the slots 4, 3; 2; 0, 1."""
    batch = points([1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -0.5], [-1.0, -1.0])
    index = hilbert_index(batch.tokens[0].double())
    assert index.argsort().tolist() == [4, 3, 2, 0, 1]
    merges = fixed_policy("balanced_hilbert", PLANE).plan(batch, generator())
    assert merges[0].tolist() == [[4, 3], [2, 0], [5, 6], [7, 1]]


@pytest.mark.parametrize("name", ["nearest", "even", "structure"])
@settings(max_examples=6)
@given(seed=st.integers(0, 2**16))
def test_the_child_that_comes_first_on_the_curve_is_first(name, seed):
    dataset = make_dataset("HTM-Trees-v0", heights=(3,))
    batch = dataset.sample(3, generator(seed))
    autoencoder = small_autoencoder(token_dim=2)
    autoencoder.set_statistics(dataset.mean, dataset.std)
    merges = fixed_policy(f"{name}_hilbert", autoencoder).plan(batch, generator(seed))
    shape = fixed_policy(name, autoencoder).plan(batch, generator(seed))
    assert merges.sort(-1).values.tolist() == shape.sort(-1).values.tolist()
    standardised = autoencoder.standardise(batch.tokens).double()
    for row in range(3):
        means = [[token] for token in standardised[row]]
        for first, second in merges[row].tolist():
            index = hilbert_index(
                torch.stack([torch.stack(means[node]).mean(0) for node in (first, second)])
            )
            assert index[0] < index[1]
            means.append(means[first] + means[second])


def test_one_cell_is_in_sorted_order_and_a_coin_is_last():
    """With 1 bit a coordinate, all of the positive corner is one cell."""
    autoencoder = small_autoencoder(token_dim=40)
    autoencoder.set_statistics(torch.zeros(40), torch.ones(40))
    batch = points([2.0] * 40, [1.0] * 40)
    for pair in ([0, 1], [1, 0]):
        merges = hilbert_order(torch.tensor([[pair]]), batch, autoencoder, generator())
        assert merges.tolist() == [[[1, 0]]]
    batch = points([1.0] * 40, [1.0] * 40)
    batch = batch.each(lambda values: values.expand(400, *values.shape[1:]))
    pairs = torch.tensor([[[0, 1]]]).repeat(400, 1, 1)
    turned = hilbert_order(pairs, batch, autoencoder, generator())[:, 0, 0]
    assert abs(float(turned.float().mean()) - 0.5) < 4 * 0.5 / 20


def test_a_centroid_in_the_middle_is_on_one_side_of_it_whatever_the_rounding():
    middle = torch.tensor([[1e-16, 0.3], [-1e-16, 0.3], [0.0, 0.3]], dtype=torch.float64)
    assert len(set(hilbert_index(middle).tolist())) == 1
