"""``closest``: distances between points, segments and strokes, and the trees that they make."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import small_autoencoder
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage
from scipy.optimize import minimize
from scipy.spatial.distance import squareform

from agents.fixed import fixed_policy
from htm_env.datasets import Dataset, make_dataset
from htm_env.datasets.kinds import polyline_distances
from htm_env.forest import leaf_sets
from htm_env.types import TokenBatch

METHODS = {"closest": "average", "closest_single": "single"}
seeds = st.integers(0, 2**16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def own_data(token_dim: int, kind: str) -> Dataset:
    """Sets of three to nine tokens, so that there is padding."""
    drawn = np.random.default_rng(token_dim)
    sets = [drawn.normal(0, 1, (3 + row % 7, token_dim)) for row in range(40)]
    return make_dataset([tokens.astype(np.float32) for tokens in sets], kind=kind)


def plain_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The least distance of two polylines: over the pieces, by a bounded minimisation."""

    def of_pieces(a: np.ndarray, b: np.ndarray) -> float:
        def squared(share: np.ndarray) -> float:
            apart = a[0] + share[0] * (a[1] - a[0]) - b[0] - share[1] * (b[1] - b[0])
            return float(apart @ apart)

        starts = [(0.5, 0.5), (0.0, 0.0), (1.0, 1.0)]
        bounds = [(0, 1), (0, 1)]
        return min(minimize(squared, start, bounds=bounds).fun for start in starts) ** 0.5

    return min(
        of_pieces(first[i : i + 2], second[j : j + 2])
        for i in range(len(first) - 1)
        for j in range(len(second) - 1)
    )


# ---------------------------------------------------------------- distances


def test_distances_of_segments_by_hand():
    lines = torch.tensor(
        [
            [[0.0, 0.0], [4.0, 0.0]],
            [[1.0, -1.0], [1.0, 1.0]],  # crosses the first
            [[2.0, 3.0], [2.0, 5.0]],  # above its middle: 3
            [[7.0, 4.0], [9.0, 4.0]],  # its end (4, 0) is nearest: a triangle of 3, 4 and 5
            [[4.0, 0.0], [4.0, -2.0]],  # touches its end
            [[1.0, 1.0], [3.0, 1.0]],  # parallel, one above
            [[9.0, 0.0], [9.0, 0.0]],  # a point
        ]
    )[None].double()
    assert polyline_distances(lines)[0, 0].tolist() == [0, 0, 3, 5, 0, 1, 5]


def test_a_stroke_may_cross_with_any_of_its_pieces():
    lines = torch.tensor(
        [
            [[0.0, 0.0], [1.0, 0.0], [1.0, 9.0]],
            [[0.0, 5.0], [2.0, 5.0], [2.0, 6.0]],  # crosses the second piece
            [[1.5, 2.0], [1.5, 1.0], [8.0, 1.0]],  # half beside it
        ]
    )[None].double()
    assert polyline_distances(lines)[0].tolist() == [[0, 0, 0.5], [0, 0, 3], [0.5, 3, 0]]


@settings(max_examples=30)
@given(corners=st.integers(2, 5), seed=seeds)
def test_distances_of_polylines_equal_a_minimisation(corners, seed):
    lines = torch.rand(1, 3, corners, 2, generator=generator(seed)).double()
    distances = polyline_distances(lines)[0]
    assert torch.equal(distances, distances.T)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        expected = plain_distance(lines[0, i].numpy(), lines[0, j].numpy())
        assert float(distances[i, j]) == pytest.approx(expected, abs=1e-3)


@given(seed=seeds)
def test_points_of_any_dimension_have_their_own_distances(seed):
    points = torch.randn(2, 6, 1, 5, generator=generator(seed)).double()
    expected = (points[:, :, None, 0] - points[:, None, :, 0]).norm(dim=-1)
    torch.testing.assert_close(polyline_distances(points), expected)


# ---------------------------------------------------------------- the thing of a token


def test_every_kind_says_where_its_things_are():
    tokens = torch.arange(6.0)[None]
    lines = {
        kind: own_data(dim, kind).polylines(tokens[:, :dim]).tolist()[0]
        for kind, dim in {"points": 3, "segments": 4, "strokes": 6, "patches": 6}.items()
    }
    assert lines == {
        "points": [[0, 1, 2]],
        "segments": [[0, 1], [2, 3]],
        "strokes": [[0, 1], [2, 3], [4, 5]],
        "patches": [[0, 1]],
    }


def test_vectors_are_points_at_their_standardised_coordinates():
    data = own_data(3, "vectors")
    tokens = data.fixed(2).tokens
    torch.testing.assert_close(data.polylines(tokens)[:, :, 0], (tokens - data.mean) / data.std)


# ---------------------------------------------------------------- trees


def clades(merges: torch.Tensor, batch: TokenBatch) -> list[set[tuple[int, ...]]]:
    """The leaf sets of the merges of every sample."""
    sets = leaf_sets(merges, batch.num_tokens)
    return [
        {tuple(nodes.nonzero().flatten().tolist()) for nodes in row[int(n) : 2 * int(n) - 1]}
        for row, n in zip(sets, batch.num_tokens, strict=True)
    ]


def scipy_clades(tree: np.ndarray) -> set[tuple[int, ...]]:
    n = len(tree) + 1
    sets = [(leaf,) for leaf in range(n)]
    for first, second in tree[:, :2].astype(int):
        sets.append(tuple(sorted(sets[first] + sets[second])))
    return set(sets[n:])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("dim", "kind"), [(2, "points"), (4, "segments"), (8, "strokes")])
def test_closest_is_scipys_linkage_of_those_distances(name, dim, kind):
    data = own_data(dim, kind)
    batch = data.fixed(20)
    merges = fixed_policy(name, small_autoencoder(dim), data).plan(batch, generator())
    for row, n in enumerate(batch.num_tokens.tolist()):
        lines = data.polylines(batch.tokens[row : row + 1, :n].double())
        # Crossing things tie at 0: there, the nearer centres come first.
        centres = lines.mean(2)[0].numpy()
        distances = polyline_distances(lines)[0].numpy() + 1e-9 * np.linalg.norm(
            centres[:, None] - centres, axis=2
        )
        expected = linkage(squareform(distances, checks=False), METHODS[name])
        assert clades(merges, batch)[row] == scipy_clades(expected)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("env_id", ["HTM-Crosses-v0", "HTM-Digits-v0", "HTM-Keys-v0"])
def test_the_trees_do_not_depend_on_the_slots(name, env_id):
    """Even where many distances are equal, as on a grid of patches."""
    data = make_dataset(env_id)
    batch = data.sample(8, generator())
    policy = fixed_policy(name, small_autoencoder(data.token_dim), data)
    slots = batch.present.shape[1]
    order = torch.stack(
        [
            torch.cat([torch.randperm(int(n), generator=generator(1)), torch.arange(n, slots)])
            for n in batch.num_tokens
        ]
    )
    moved = batch._replace(tokens=batch.tokens[torch.arange(8)[:, None], order])
    here, there = (clades(policy.plan(each, generator()), each) for each in (batch, moved))
    for row in range(8):
        assert here[row] == {
            tuple(sorted(order[row, slot].item() for slot in nodes)) for nodes in there[row]
        }


def test_crossing_segments_are_joined_first():
    data = make_dataset("HTM-Crosses-v0", num_crosses=(3,))
    batch = data.fixed(200)
    merges = fixed_policy("closest", small_autoencoder(4), data).plan(batch, generator())
    found = clades(merges, batch)
    own = [{tuple(nodes.nonzero().flatten().tolist()) for nodes in row} for row in batch.clades]
    # Segments of different crosses may cross too, but not as often in their middle.
    shares = [len(a & b) / len(b) for a, b in zip(found, own, strict=True)]
    assert sum(shares) / len(shares) > 0.9


def test_closest_asks_for_the_data():
    batch = make_dataset("HTM-Trees-v0").fixed(1)
    with pytest.raises(ValueError, match="expected the dataset, which says what its tokens are"):
        fixed_policy("closest", small_autoencoder(2)).plan(batch, generator())
