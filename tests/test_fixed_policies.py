"""Fixed policies against plain loops, scipy, and brute force over the autoencoder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_autoencoder
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import PlainForest, batched, nmse
from oracle import encode as plain_encode
from oracle import random_tree as plain_random_tree
from scipy.cluster.hierarchy import linkage
from scipy.stats import chisquare

from agents.fixed import (
    FIXED_POLICIES,
    Beam,
    FixedPolicy,
    FixedRule,
    all_merge_sequences,
    fixed_policy,
    fixed_rule,
)
from agents.fixed.order import given_order, sorted_order
from agents.fixed.search import TOKENS_A_CALL, candidate_errors
from agents.search.exhaustive import best_of_all
from htm_env.autoencoder import HTMAutoencoder
from htm_env.datasets import make_dataset
from htm_env.forest import check_merges, leaf_sets, legal_pairs
from htm_env.population import merge_pairs, start_population
from htm_env.types import TokenBatch

AUTOENCODER = small_autoencoder(token_dim=3)
LEARNED = HTMAutoencoder(2, 2, 8)
NAMES = sorted(
    name for name, rule in FIXED_POLICIES.items() if rule.need is None or rule.need.is_met(LEARNED)
)
OF_KNOWN_MERGERS = ["cambridge_aachen", "exact", "kt"]
VECTORS = make_dataset(np.random.default_rng(0).normal(1, 2, (20, 4, 3)).astype(np.float32))
NO_SCALE = small_autoencoder(token_dim=2)
NO_SCALE.set_statistics(torch.zeros(2), torch.ones(2))
DRAWN_ORDER = {
    "chain",
    "balanced",
    "even",
    "nearest",
    "average",
    "ward",
    "closest",
    "closest_single",
    "recurrent",
    "structure",
}  # the tree is not drawn
WITHOUT_DRAWN_TREES = sorted(set(NAMES) - {"random", "cosine"})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def token_batch(sizes: list[int], seed: int, slots: int | None = None) -> TokenBatch:
    """Random tokens of three coordinates, and a random hierarchy over them."""
    drawn = generator(seed)
    slots = max(2, *sizes) if slots is None else slots
    forests = batched([plain_random_tree(n, drawn) for n in sizes], slots)
    tokens = torch.randn(len(sizes), max(sizes), 3, generator=drawn) * 2 + 1
    padded = torch.zeros(len(sizes), slots, 3)
    padded[:, : max(sizes)] = tokens
    clades = torch.zeros(len(sizes), 0, slots, dtype=torch.bool)
    return TokenBatch(padded * forests.present[..., None], forests.present, clades, forests.merges)


def with_empty_slots(batch: TokenBatch, extra: int) -> TokenBatch:
    def padded(values: torch.Tensor, dim: int, fill) -> torch.Tensor:
        shape = list(values.shape)
        shape[dim] = extra
        return torch.cat([values, torch.full(shape, fill, dtype=values.dtype)], dim)

    return TokenBatch(
        padded(batch.tokens, 1, 7.0),  # an empty slot may hold anything
        padded(batch.present, 1, False),
        padded(batch.clades, 2, False),
        padded(batch.merges, 1, -1),
    )


def points(coordinates: list[list[float]]) -> TokenBatch:
    """One sample of points of the plane."""
    tokens = torch.tensor(coordinates)[None]
    n = tokens.shape[1]
    empty = torch.zeros(1, 0, n, dtype=torch.bool)
    return TokenBatch(
        tokens, torch.ones(1, n, dtype=torch.bool), empty, torch.full((1, n - 1, 2), -1)
    )


def clades_of(merges: torch.Tensor, num_leaves: int) -> list[frozenset[int]]:
    """The leaves under each merge of one sample, in the order of the merges."""
    sets = [frozenset([leaf]) for leaf in range(num_leaves)]
    for first, second in merges[: num_leaves - 1].tolist():
        sets.append(sets[first] | sets[second])
    return sets[num_leaves:]


def unordered(merges: torch.Tensor) -> list[list[int]]:
    return merges.sort(dim=-1).values.tolist()


def plain_forest(merges: torch.Tensor, num_leaves: int) -> PlainForest:
    forest = PlainForest(num_leaves)
    for first, second in merges[: num_leaves - 1].tolist():
        slot_of = {node: slot for slot, node in forest.slots.items()}
        forest.merge(slot_of[first], slot_of[second])
    return forest


sizes_of_batches = st.lists(st.integers(1, 8), min_size=1, max_size=4)
seeds = st.integers(0, 2**16)


# ---------------------------------------------------------------- what every policy promises


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12)
@given(sizes=sizes_of_batches, seed=seeds, extra=st.integers(1, 4))
def test_every_policy_makes_complete_trees_that_padding_does_not_change(name, sizes, seed, extra):
    batch, policy = token_batch(sizes, seed), fixed_policy(name, AUTOENCODER, VECTORS)
    merges = policy.plan(batch, generator(seed))
    assert merges.shape == batch.merges.shape
    check_merges(merges, batch.num_tokens)
    assert ((merges[..., 0] >= 0).sum(1) == batch.num_tokens - 1).all()
    assert torch.equal(policy.plan(batch, generator(seed)), merges)
    padded = policy.plan(with_empty_slots(batch, extra), generator(seed))
    assert torch.equal(padded[:, : merges.shape[1]], merges)
    assert (padded[:, merges.shape[1] :] == -1).all()


@pytest.mark.parametrize("name", WITHOUT_DRAWN_TREES)
@settings(max_examples=8)
@given(sizes=sizes_of_batches, seed=seeds)
def test_a_sample_gets_the_same_tree_alone_and_in_a_batch(name, sizes, seed):
    batch, policy = token_batch(sizes, seed), fixed_policy(name, AUTOENCODER, VECTORS)
    together = policy.plan(batch, generator())
    for row, n in enumerate(sizes):
        alone = policy.plan(batch.rows(slice(row, row + 1)), generator())
        assert clades_of(alone[0], n) == clades_of(together[row], n)
        if name not in DRAWN_ORDER:
            assert torch.equal(alone[0], together[row, : alone.shape[1]])


def test_the_names_are_those_of_the_command_line():
    assert set(NAMES) == {
        "random",
        "chain",
        "balanced",
        "balanced_sorted",
        "even",
        "nearest",
        "average",
        "ward",
        "cosine",
        "greedy",
        "beam",
        "structure",
        "nearest_sorted",
        "even_sorted",
        "structure_sorted",
        "structure_canonical",
        "spans",
        "closest",
        "closest_single",
        "recurrent",
        "recurrent_sorted",
        "recurrent_hilbert",
        "closest_sorted",
        "closest_single_sorted",
        "closest_hilbert",
        "nearest_hilbert",
        "even_hilbert",
        "balanced_hilbert",
        "structure_hilbert",
    }
    assert sorted(FIXED_POLICIES) == sorted([*NAMES, *OF_KNOWN_MERGERS])
    assert all(fixed_rule(name).name == name for name in FIXED_POLICIES)
    with pytest.raises(ValueError, match=r"'nearby'; choose from \['average', .*'ward'\], beam_N"):
        fixed_rule("nearby")
    assert fixed_rule("beam_20") == replace(FIXED_POLICIES["beam"], name="beam_20", shape=Beam(20))
    for name in ("beam_0", "beam_", "beam_-3", "beam_2.5"):
        with pytest.raises(ValueError, match=f"unknown fixed policy '{name}'"):
            fixed_rule(name)


@pytest.mark.parametrize("name", OF_KNOWN_MERGERS)
def test_what_only_a_known_merger_has_is_not_asked_of_an_autoencoder(name):
    with pytest.raises(
        ValueError, match=f"{name} cannot plan with HTMAutoencoder; expected a known"
    ):
        fixed_policy(name, AUTOENCODER).plan(token_batch([4], seed=0), generator())


@pytest.mark.parametrize("name", sorted(DRAWN_ORDER | {"cosine"}))
def test_the_order_within_a_pair_is_a_fair_coin(name):
    batch = token_batch([9] * 200, seed=1)
    policy = fixed_policy(name, AUTOENCODER, VECTORS)
    merges = policy.plan(batch, generator(3))
    rising = (merges[..., 0] < merges[..., 1]).flatten().float()
    # 1600 fair coins: the mean is 1/2 with a standard deviation of 1/80
    assert abs(float(rising.mean()) - 0.5) < 4 / 80
    other = policy.plan(batch, generator(4))
    assert not torch.equal(other, merges)


# ---------------------------------------------------------------- trees without coordinates


def test_random_is_uniform_over_all_ordered_merge_sequences():
    count = 14400
    batch = token_batch([4], seed=0)
    batch = batch.each(lambda values: values.expand(count, *values.shape[1:]))
    merges = fixed_policy("random", AUTOENCODER).plan(batch, generator(0))
    found = Counter(map(str, merges.tolist()))
    assert set(found) == set(map(str, all_merge_sequences(4).tolist()))
    assert chisquare(list(found.values())).pvalue > 0.01


def test_chain_and_balanced_follow_the_slots():
    batch = token_batch([5, 2, 7], seed=0)
    chain = fixed_policy("chain", AUTOENCODER).plan(batch, generator())
    assert unordered(chain[0])[:4] == [[0, 1], [2, 5], [3, 6], [4, 7]]
    assert unordered(chain[1])[:1] == [[0, 1]]
    balanced = fixed_policy("balanced", AUTOENCODER).plan(batch, generator())
    # 01 23 4 -> 0123 4 -> 01234, and 01 23 45 6 -> 0123 456 -> 0123456
    assert unordered(balanced[0])[:4] == [[0, 1], [2, 3], [5, 6], [4, 7]]
    assert unordered(balanced[1])[:1] == [[0, 1]]
    assert unordered(balanced[2]) == [[0, 1], [2, 3], [4, 5], [7, 8], [6, 9], [10, 11]]


@given(n=st.integers(1, 40))
def test_balanced_is_as_low_as_a_tree_can_be(n):
    batch = token_batch([n], seed=0)
    merges = fixed_policy("balanced", AUTOENCODER).plan(batch, generator())
    forest = plain_forest(merges[0], n)
    assert forest.height(2 * n - 2) == math.ceil(math.log2(n))


def test_balanced_sorted_pairs_neighbours_in_sorted_order():
    # By the first coordinate, then the second: slots 2, 3, 0, 4, 1.
    batch = points([[1.0, 5.0], [2.0, 0.0], [0.0, 9.0], [1.0, 4.0], [1.0, 6.0]])
    merges = fixed_policy("balanced_sorted", NO_SCALE).plan(batch, generator())
    assert merges[0].tolist() == [[2, 3], [0, 4], [5, 6], [7, 1]]


def test_balanced_sorted_merges_the_patches_of_every_image_alike():
    """Columns first, each from top to bottom: (((0, 4), (8, 12)), ...) by place in the image."""
    batch = make_dataset("HTM-Digits-v0").sample(50, generator(0))
    merges = fixed_policy("balanced_sorted", small_autoencoder(token_dim=6)).plan(
        batch, generator()
    )
    x, y = batch.tokens[..., 0], batch.tokens[..., 1]
    place = (4 * x + y).long()  # down the columns, from left to right
    for row in range(50):
        by_place = [
            place[row, slot].item() if slot < 16 else slot
            for slot in merges[row].flatten().tolist()
        ]
        assert by_place == list(range(30))


# ---------------------------------------------------------------- trees from coordinates


def by_loops(coordinates: np.ndarray, cost: Callable[[int, float], Any]) -> list[list[int]]:
    """At each step the two nodes of the least cost, by their tokens and their means' distance."""
    n = len(coordinates)
    clusters, merges = {leaf: [leaf] for leaf in range(n)}, []
    while len(clusters) > 1:
        means = {node: coordinates[leaves].mean(0) for node, leaves in clusters.items()}
        costs = {
            (a, b): cost(len(clusters[a]) + len(clusters[b]), np.linalg.norm(means[a] - means[b]))
            for a in clusters
            for b in clusters
            if a < b
        }
        a, b = min(costs, key=costs.__getitem__)
        clusters[n + len(merges)] = clusters.pop(a) + clusters.pop(b)
        merges.append([a, b])
    return merges


def nearest_by_loops(coordinates: np.ndarray) -> list[list[int]]:
    """At each step the two nodes whose means are nearest."""
    return by_loops(coordinates, lambda tokens, distance: distance)


@given(sizes=st.lists(st.integers(2, 12), min_size=1, max_size=4), seed=seeds)
def test_nearest_average_and_ward_equal_the_plain_loop_and_scipy(sizes, seed):
    batch = token_batch(sizes, seed)
    standardised = ((batch.tokens - AUTOENCODER.token_mean) / AUTOENCODER.token_std).double()
    for name, method in [("nearest", "centroid"), ("average", "average"), ("ward", "ward")]:
        merges = fixed_policy(name, AUTOENCODER).plan(batch, generator())
        for row, n in enumerate(sizes):
            coordinates = standardised[row, :n].numpy()
            expected = linkage(coordinates, method)[:, :2].astype(int).tolist()
            assert unordered(merges[row, : n - 1]) == expected
            if name == "nearest":
                assert expected == nearest_by_loops(coordinates)


def even_by_loops(coordinates: np.ndarray) -> list[list[int]]:
    """At each step the two nodes with the fewest tokens, the nearest means where these tie."""
    return by_loops(coordinates, lambda tokens, distance: (tokens, distance))


@given(sizes=st.lists(st.integers(2, 12), min_size=1, max_size=4), seed=seeds)
def test_even_equals_the_plain_loop(sizes, seed):
    batch = token_batch(sizes, seed)
    standardised = ((batch.tokens - AUTOENCODER.token_mean) / AUTOENCODER.token_std).double()
    merges = fixed_policy("even", AUTOENCODER).plan(batch, generator())
    for row, n in enumerate(sizes):
        expected = even_by_loops(standardised[row, :n].numpy())
        assert unordered(merges[row, : n - 1]) == expected


def test_even_gives_samples_of_one_size_trees_of_one_shape():
    batch = token_batch([11] * 30, seed=0)
    merges = fixed_policy("even_sorted", AUTOENCODER).plan(batch, generator())
    sizes = leaf_sets(merges, batch.num_tokens).sum(2)[:, 11:].sort(1).values
    assert sizes.tolist() == [[2, 2, 2, 2, 2, 3, 4, 4, 7, 11]] * 30


CONVENTIONS = [f"convention_{seed}" for seed in range(6)]


def convention_by_loops(coordinates: np.ndarray, seed: int) -> list[list[int]]:
    """At each step the two nodes whose weighted means are nearest, where each of their tokens costs
    something; the one whose mean lies first along the direction comes first."""
    weights, direction, price = fixed_rule(f"convention_{seed}").shape.drawn(coordinates.shape[1])
    weighted = coordinates * weights.double().numpy()
    merges = by_loops(weighted, lambda tokens, distance: distance**2 + price * tokens)
    places = coordinates @ direction.double().numpy()
    members = [[leaf] for leaf in range(len(coordinates))]
    for pair in merges:
        pair.sort(key=lambda node: places[members[node]].mean())
        members.append(members[pair[0]] + members[pair[1]])
    return merges


@pytest.mark.parametrize("name", CONVENTIONS)
@settings(max_examples=12)
@given(sizes=st.lists(st.integers(2, 9), min_size=1, max_size=3), seed=seeds)
def test_a_convention_equals_the_plain_loop(name, sizes, seed):
    batch = token_batch(sizes, seed)
    standardised = ((batch.tokens - AUTOENCODER.token_mean) / AUTOENCODER.token_std).double()
    merges = fixed_policy(name, AUTOENCODER).plan(batch, generator())
    for row, n in enumerate(sizes):
        expected = convention_by_loops(standardised[row, :n].numpy(), int(name.split("_")[1]))
        assert merges[row, : n - 1].tolist() == expected


def test_conventions_differ_among_themselves_and_not_among_samples_of_a_grid():
    digits = make_dataset("HTM-Digits-v0")
    autoencoder = small_autoencoder(token_dim=digits.token_dim)
    autoencoder.set_statistics(digits.mean, digits.std)
    batch = digits.fixed(1)
    turned = batch.rows(torch.zeros(8, dtype=torch.long))
    order = torch.stack([torch.randperm(16, generator=generator(row)) for row in range(8)])
    shuffled = turned._replace(
        tokens=turned.tokens.gather(1, order[..., None].expand_as(turned.tokens))
    )
    found = set()
    for name in CONVENTIONS:
        merges = fixed_policy(name, autoencoder).plan(shuffled, generator())
        alike = {
            tuple(tuple(sorted(order[row, leaf].item() for leaf in clade)) for clade in clades)
            for row, clades in enumerate(clades_of(tree, 16) for tree in merges)
        }
        assert len(alike) == 1  # whatever slots the tokens are in
        found |= alike
    assert len(found) == len(CONVENTIONS)


def test_nearest_works_on_standardised_coordinates():
    # In raw units 0 and 1 are nearest; with the second coordinate a hundredth, 0 and 2 are.
    batch = points([[0.0, 0.0], [3.0, 0.0], [0.0, 50.0]])
    autoencoder = small_autoencoder(token_dim=2)
    autoencoder.set_statistics(torch.zeros(2), torch.tensor([1.0, 100.0]))
    assert unordered(fixed_policy("nearest", NO_SCALE).plan(batch, generator())[0])[0] == [0, 1]
    merges = fixed_policy("nearest", autoencoder).plan(batch, generator())
    assert unordered(merges[0])[0] == [0, 2]


def test_average_and_ward_and_nearest_disagree_where_they_should():
    # A pair at 0 and 1 (centroid 0.5), singles at 3.1 and 5.8: 3.1 is 2.6 from the centroid and
    # from the mean, 2.7 from 5.8. Ward weighs 2.6^2 * 2/3 * 2 = 9.01 against 2.7^2 = 7.29.
    batch = points([[0.0, 0.0], [1.0, 0.0], [3.1, 0.0], [5.8, 0.0]])
    second = {
        name: unordered(fixed_policy(name, NO_SCALE).plan(batch, generator())[0])[1]
        for name in ("nearest", "average", "ward")
    }
    assert second == {"nearest": [2, 4], "average": [2, 4], "ward": [2, 3]}


@pytest.mark.parametrize(
    "name", ["nearest_sorted", "even_sorted", "structure_sorted", "closest_sorted"]
)
@given(sizes=st.lists(st.integers(2, 9), min_size=1, max_size=3), seed=seeds)
def test_sorted_puts_the_smaller_centroid_first(name, sizes, seed):
    batch = token_batch(sizes, seed)
    merges = fixed_policy(name, AUTOENCODER, VECTORS).plan(batch, generator())
    unturned = fixed_policy(name.removesuffix("_sorted"), AUTOENCODER, VECTORS)
    shape = unturned.plan(batch, generator())
    assert unordered(merges) == unordered(shape)
    for row, n in enumerate(sizes):
        forest = plain_forest(merges[row], n)
        means = [
            batch.tokens[row, sorted(forest.leaves(node))].mean(0) for node in range(2 * n - 1)
        ]
        for first, second in forest.merges:
            assert means[first][0] < means[second][0]


def test_sorted_goes_on_to_the_next_coordinate_where_the_first_ties():
    # 0.1 + 0.2 and 0.3 differ in the last bit only; the second coordinate decides.
    batch = points([[0.1 + 0.2, 5.0], [0.3 + 1e-7, 4.0]])
    for pair in ([0, 1], [1, 0]):
        merges = sorted_order(torch.tensor([[pair]]), batch, NO_SCALE, generator())
        assert merges.tolist() == [[[1, 0]]]


def test_sorted_tosses_a_coin_where_all_coordinates_tie():
    batch = points([[1.0, 2.0], [1.0, 2.0]])
    batch = batch.each(lambda values: values.expand(400, *values.shape[1:]))
    given_pairs = torch.tensor([[[0, 1]]]).repeat(400, 1, 1)
    turned = sorted_order(given_pairs, batch, NO_SCALE, generator(0))[:, 0, 0]
    assert abs(float(turned.float().mean()) - 0.5) < 4 * 0.5 / 20


@pytest.mark.parametrize("env_id", ["HTM-Trees-v0", "HTM-Crosses-v0"])
def test_structure_policies_make_the_clades_of_the_data(env_id):
    dataset = make_dataset(env_id)
    batch = dataset.sample(6, generator(0))
    autoencoder = small_autoencoder(dataset.token_dim)
    canonical = fixed_policy("structure_canonical", autoencoder).plan(batch, generator())
    assert torch.equal(canonical, batch.merges)
    for name in ("structure", "structure_sorted"):
        merges = fixed_policy(name, autoencoder).plan(batch, generator())
        assert unordered(merges) == unordered(batch.merges)
        assert not torch.equal(merges, batch.merges)
        made = leaf_sets(merges, batch.num_tokens)
        for row in range(6):
            own = {tuple(clade) for clade in batch.clades[row].tolist() if any(clade)}
            assert own <= {tuple(leaves) for leaves in made[row].tolist()}


def test_structure_names_the_sample_without_a_hierarchy():
    batch = token_batch([4, 3], seed=0)
    batch.merges[1] = -1
    for name in ("structure", "structure_sorted", "structure_canonical"):
        with pytest.raises(
            ValueError, match="sample 1 of this data comes with 0 merges over its 3"
        ):
            fixed_policy(name, AUTOENCODER).plan(batch, generator())


# ---------------------------------------------------------------- trees from the autoencoder


@torch.no_grad()
@settings(max_examples=10)
@given(sizes=st.lists(st.integers(2, 6), min_size=1, max_size=3), seed=seeds)
def test_cosine_merges_the_most_similar_embeddings(sizes, seed):
    batch = token_batch(sizes, seed)
    merges = fixed_policy("cosine", AUTOENCODER).plan(batch, generator(seed))
    for row, n in enumerate(sizes):
        done = plain_forest(merges[row], n)
        nodes = plain_encode(AUTOENCODER, batch.tokens[row, :n], done)
        partial = PlainForest(n)
        for first, second in done.merges:
            active = list(partial.slots.values())
            similarity = {
                pair: float(torch.cosine_similarity(nodes[pair[0]], nodes[pair[1]], dim=0))
                for pair in permutations(active, 2)
            }
            assert similarity[first, second] == pytest.approx(max(similarity.values()), abs=1e-5)
            slot_of = {node: slot for slot, node in partial.slots.items()}
            partial.merge(slot_of[first], slot_of[second])


@torch.no_grad()
@settings(max_examples=10)
@given(sizes=st.lists(st.integers(2, 5), min_size=1, max_size=3), seed=seeds)
def test_greedy_takes_the_merge_that_decodes_best(sizes, seed):
    batch = token_batch(sizes, seed)
    merges = fixed_policy("greedy", AUTOENCODER).plan(batch, generator())
    for row, n in enumerate(sizes):
        tokens, present = batch.tokens[row : row + 1, :n], batch.present[row : row + 1, :n]
        for step in range(n - 1):
            before = merges[row, :step].tolist()
            used = {node for pair in before for node in pair}
            active = [node for node in range(n + step) if node not in used]
            errors = {}
            for pair in permutations(active, 2):
                candidate = torch.tensor([[*before, list(pair)]])
                population = AUTOENCODER.encode(tokens, present, candidate).population
                decoded = AUTOENCODER.decode(population, candidate, present)
                residual = (decoded - tokens) / AUTOENCODER.token_std
                errors[pair] = float(residual.square().mean())
            chosen = errors[tuple(merges[row, step].tolist())]
            assert chosen == pytest.approx(min(errors.values()), rel=1e-5)


def test_candidate_errors_are_those_of_the_merged_population():
    # So many samples that the candidates come in several parts.
    batch, std = token_batch([5, 4] * 450, seed=2), AUTOENCODER.token_std
    population = start_population(AUTOENCODER, batch, std)
    pair = torch.tensor([[3, 0], [1, 2]] * 450)
    population = merge_pairs(AUTOENCODER, population, pair[:, 0], pair[:, 1], std)
    pairs = legal_pairs(population.forest.active)
    assert 3 * pairs.sum() > TOKENS_A_CALL  # of the largest parents, three tokens each
    errors = candidate_errors(AUTOENCODER, population, pairs)
    assert (errors[~pairs] == 0).all()
    for first, second in permutations(range(5), 2):
        here = pairs[:, first, second]
        slots = torch.full((900,), first), torch.full((900,), second)
        after = merge_pairs(AUTOENCODER, population, *slots, std, here)
        expected = after.squared_errors[here, first]
        torch.testing.assert_close(errors[here, first, second], expected)


def final_errors(batch: TokenBatch, merges: torch.Tensor) -> list[float]:
    return [
        nmse(
            AUTOENCODER, batch.tokens[row, :n], plain_forest(merges[row], n), AUTOENCODER.token_std
        )
        for row, n in enumerate(batch.num_tokens.tolist())
    ]


def test_a_wide_beam_finds_the_optimum_and_a_narrow_one_loses_something():
    batch = token_batch([4] * 12 + [3, 2, 1], seed=5)
    optimum = final_errors(batch, best_of_all(AUTOENCODER, batch, AUTOENCODER.token_std))
    # Four tokens have 60 forests of two trees: a beam of 60 drops none.
    wide = FixedPolicy(FixedRule("wide", Beam(width=60), given_order), AUTOENCODER)
    narrow = fixed_policy("greedy", AUTOENCODER)
    wide_errors = final_errors(batch, wide.plan(batch, generator()))
    narrow_errors = final_errors(batch, narrow.plan(batch, generator()))
    assert wide_errors == pytest.approx(optimum, rel=1e-5)
    assert all(n >= o * (1 - 1e-5) for n, o in zip(narrow_errors, optimum, strict=True))
    assert sum(narrow_errors) > sum(optimum) * 1.001


def beam_by_loops(tokens: torch.Tensor, width: int) -> float:
    """The best final error of a beam search whose forests are sets of nested tuples."""
    n, std = len(tokens), AUTOENCODER.token_std

    def nested(forest: PlainForest, node: int):
        pair = forest.children(node)
        return node if pair is None else tuple(nested(forest, child) for child in pair)

    beam = [PlainForest(n)]
    for _ in range(n - 1):
        outcomes = {}
        for forest in beam:
            for first, second in permutations(forest.slots, 2):
                after = PlainForest(n)
                after.slots, after.merges = dict(forest.slots), list(forest.merges)
                after.merge(first, second)
                trees = frozenset(nested(after, node) for node in after.slots.values())
                outcomes.setdefault(trees, after)
        errors = {trees: nmse(AUTOENCODER, tokens, f, std) for trees, f in outcomes.items()}
        beam = [outcomes[trees] for trees in sorted(errors, key=errors.__getitem__)[:width]]
    return nmse(AUTOENCODER, tokens, beam[0], std)


@pytest.mark.parametrize("width", [1, 2, 4, 7])
def test_beam_equals_the_plain_loop(width):
    batch = token_batch([5, 4, 5, 2, 3], seed=7)
    policy = FixedPolicy(FixedRule("beam", Beam(width), given_order), AUTOENCODER)
    found = final_errors(batch, policy.plan(batch, generator()))
    sizes = batch.num_tokens.tolist()
    expected = [beam_by_loops(batch.tokens[row, :n], width) for row, n in enumerate(sizes)]
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_beams_width_is_checked():
    with pytest.raises(ValueError, match="width is 0; expected at least 1"):
        Beam(width=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_diverged_autoencoder_still_gets_legal_trees(name):
    autoencoder = small_autoencoder(token_dim=3)
    for parameter in autoencoder.parameters():
        parameter.data.fill_(torch.nan)
    batch = token_batch([6, 3], seed=0)
    policy = fixed_policy(name, autoencoder, VECTORS)
    check_merges(policy.plan(batch, generator()), batch.num_tokens)


# ---------------------------------------------------------------- all sequences


@pytest.mark.parametrize(("n", "count"), [(1, 1), (2, 2), (3, 12), (4, 144)])
def test_all_merge_sequences_are_different_and_legal(n, count):
    sequences = all_merge_sequences(n)
    assert sequences.shape == (count, n - 1, 2)
    assert len(set(map(str, sequences.tolist()))) == count
    if n > 1:
        check_merges(sequences, torch.full((count,), n))


def test_the_best_of_all_trees_is_the_minimum_over_all_sequences():
    batch = token_batch([4, 3, 4, 2], seed=11)
    found = final_errors(batch, best_of_all(AUTOENCODER, batch, AUTOENCODER.token_std))
    for row, n in enumerate(batch.num_tokens.tolist()):
        tokens = batch.tokens[row, :n]
        errors = [
            nmse(AUTOENCODER, tokens, plain_forest(merges, n), AUTOENCODER.token_std)
            for merges in all_merge_sequences(n)
        ]
        assert found[row] == pytest.approx(min(errors), rel=1e-5)


def test_there_are_no_sequences_over_no_tokens():
    with pytest.raises(ValueError, match="num_leaves is 0"):
        all_merge_sequences(0)
