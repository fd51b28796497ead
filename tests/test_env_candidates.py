"""The environment where every slot has a few candidates, against the one with all pairs."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from conftest import small_autoencoder
from hypothesis import given
from hypothesis import strategies as st
from memory import Largest

from htm_env import (
    action_to_pair,
    candidate_action,
    candidate_pair,
    pair_to_action,
)
from htm_env.candidates import Nearest, Neighbourhood, nearest_candidates
from htm_env.env import HTMEnv
from htm_env.vector_env import HTMVectorEnv

SLOTS = 7
every_space = pytest.mark.parametrize("neighbours", ["embeddings", "centroids"])


@functools.cache
def environment(**kwargs) -> HTMEnv:
    """Trees of three or seven tokens, in seven slots."""
    options = {"autoencoder": small_autoencoder(2), "heights": (2, 3), **kwargs}
    return HTMEnv("HTM-Trees-v0", **options)


def near(k: int, **kwargs) -> HTMEnv:
    return environment(candidates="knn", k=k, **kwargs)


def nearest(places: np.ndarray, slot: int, active: np.ndarray, k: int) -> set[int]:
    apart = np.square(places - places[slot]).sum(1)
    return set(sorted((s for s in np.flatnonzero(active) if s != slot), key=apart.__getitem__)[:k])


def listed(observation: dict, slot: int) -> set[int]:
    return {int(other) for other in observation["candidates"][slot] if other >= 0}


def random_legal(env: HTMEnv, choices: np.random.Generator) -> int:
    return int(choices.choice(np.flatnonzero(env.action_masks())))


# ---------------------------------------------------------------- who is listed


@given(
    st.integers(0, 1000),
    st.integers(SLOTS - 1, SLOTS + 2),
    st.sampled_from(["embeddings", "centroids"]),
)
def test_long_lists_are_all_pairs(seed, k, neighbours):
    """The same legal merges, and for the same merges the same rewards."""
    few, everyone = near(k, neighbours=neighbours), environment()
    observation, _ = few.reset(seed=seed)
    expected, info = everyone.reset(seed=seed)
    choices, done = np.random.default_rng(seed), False
    while not done:
        actions = np.flatnonzero(few.action_masks())
        pairs = {candidate_pair(int(a), observation["candidates"]) for a in actions}
        legal = np.flatnonzero(everyone.action_masks())
        assert pairs == {action_to_pair(int(action), SLOTS) for action in legal}
        assert len(pairs) == len(actions)
        first, second = sorted(pairs)[choices.integers(len(pairs))]
        action = candidate_action(first, second, observation["candidates"])
        observation, *mine, info = few.step(action)
        expected, *theirs, other = everyone.step(pair_to_action(first, second, SLOTS))
        assert mine == theirs and info["error"] == other["error"]
        assert all(np.array_equal(observation[key], expected[key]) for key in expected)
        done = mine[1]
    assert everyone.action_masks().all() and few.action_masks().all()  # nothing is left to choose


@pytest.mark.parametrize("k", [1, 2, 4])
@every_space
def test_parents_list_the_nearest_through_whole_episodes(k, neighbours):
    """And all slots do at the start. A centroid weighs all tokens under its slot the same."""
    env = near(k, neighbours=neighbours, observe=("centroids",))
    key = {"embeddings": "tokens", "centroids": "centroids"}[neighbours]
    choices = np.random.default_rng(0)
    for seed in range(5):
        observation, info = env.reset(seed=seed)
        active = observation["active"].astype(bool)
        for slot in np.flatnonzero(active):
            assert listed(observation, slot) == nearest(observation[key], slot, active, k)
        while info["num_active"] > 1:
            action = random_legal(env, choices)
            first, second = candidate_pair(action, observation["candidates"])
            observation, _, _, _, info = env.step(action)
            active = observation["active"].astype(bool)
            assert listed(observation, first) == nearest(observation[key], first, active, k)
            assert not (observation["candidates"] == second).any()
            assert not listed(observation, second)


def test_the_two_spaces_have_other_neighbours():
    envs = [near(2, neighbours=name) for name in ("embeddings", "centroids")]
    differ = 0
    for seed in range(20):
        by_embeddings, by_centroids = (env.reset(seed=seed)[0] for env in envs)
        assert np.array_equal(by_embeddings["tokens"], by_centroids["tokens"])
        differ += any(listed(by_embeddings, s) != listed(by_centroids, s) for s in range(SLOTS))
    assert differ > 5


@pytest.mark.parametrize(("neighbours", "moves"), [("embeddings", True), ("centroids", False)])
def test_only_neighbours_in_embedding_space_move_with_the_autoencoder(neighbours, moves):
    def episode(seed: int) -> list:
        env = HTMEnv(
            "HTM-Trees-v0",
            autoencoder=small_autoencoder(2, seed=seed),
            heights=(3,),
            candidates="knn",
            k=2,
            neighbours=neighbours,
        )
        lists = [env.reset(seed=0)[0]["candidates"]]
        for _ in range(4):
            slot = int(np.flatnonzero(env.action_masks())[0]) // 2
            place = int(lists[-1][slot].argmax())
            lists.append(env.step(slot * 2 + place)[0]["candidates"])
        return [row.tolist() for row in lists]

    assert (episode(0) != episode(1)) is moves


# ---------------------------------------------------------------- actions


def test_an_illegal_action_says_what_the_candidates_are():
    env = near(3, heights=(2,), invalid_action="raise")
    observation, _ = env.reset(seed=0)
    assert (observation["candidates"][:, 2] == -1).all()  # three tokens: two others each
    choices = observation["candidates"][1].tolist()
    reason = rf"action 5 merges slot 1 with its candidate 2, but .* slot 1 are \[{choices[0]}, "
    with pytest.raises(ValueError, match=reason):
        env.step(5)
    env.step(candidate_action(0, 1, observation["candidates"]))
    with pytest.raises(ValueError, match=r"of slot 1 are \[-1, -1, -1\] \(-1: none\)"):
        env.step(3)
    with pytest.raises(ValueError, match=r"action 9 is not in Discrete\(9\)"):
        env.step(9)


@every_space
def test_a_merge_changes_no_list_that_it_was_given(neighbours):
    drawn = torch.Generator().manual_seed(0)
    coordinates, embeddings = (torch.randn(2, SLOTS, d, generator=drawn) for d in (2, 4))
    counts = torch.ones(2, SLOTS, dtype=torch.int64)
    nearest = Nearest(2, by_centroids=neighbours == "centroids")
    before = Neighbourhood.of(nearest, coordinates, embeddings, counts > 0)
    tensors = [before.candidates.partners, before.candidates.distances]
    tensors += [before.sums] if before.sums is not None else []
    kept = [tensor.clone() for tensor in tensors]
    counts[1, :2] = torch.tensor([2, 0])
    after = before.merged(*torch.tensor([[1], [0], [1]]), embeddings, counts)
    assert not torch.equal(after.candidates.partners, before.candidates.partners)
    assert all(map(torch.equal, tensors, kept))


# ---------------------------------------------------------------- memory


@every_space
@pytest.mark.parametrize(("slots", "merges"), [(300, 155), (1000, 20)])
def test_nothing_of_the_size_of_all_pairs_is_ever_made(neighbours, slots, merges):
    """All pairs of as many tokens, in contrast, are that many at once.

    By centroids of two coordinates the first lists come from a tree, by embeddings from blocks;
    those of 150 tokens that are left of 300 are made anew.
    """
    data = np.random.default_rng(0).normal(size=(10, slots, 2)).astype(np.float32)
    sizes, choices = {}, np.random.default_rng(0)
    for pairs in ("knn", "all"):
        env = HTMVectorEnv(
            "HTM-v0",
            dataset=data,
            autoencoder=small_autoencoder(2, embedding_dim=8),
            k=2,
            candidates=pairs,
            neighbours=neighbours,
        )
        with Largest() as largest:
            env.reset(seed=0)
            for _ in range(merges if pairs == "knn" else 1):
                env.step(choices.choice(np.flatnonzero(env.action_masks()), size=1))
        sizes[pairs] = largest.size
    assert sizes["knn"] < slots**2 / 8 < slots * (slots - 1) <= sizes["all"]


@pytest.mark.parametrize("count", [256, 300, 1000, 1024, 5000])
def test_blocks_are_a_sixteenth_of_all_pairs_at_most(count):
    places = torch.randn(1, count, 5, generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        nearest_candidates(places, torch.ones(1, count, dtype=torch.bool), 3)
    assert largest.size <= max(count**2 / 16, places.numel() * 3)


def test_lists_of_few_coordinates_need_no_table_of_distances():
    places = torch.randn(1, 4096, 2, generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        nearest_candidates(places, torch.ones(1, 4096, dtype=torch.bool), 3)
    assert largest.size <= places.numel() * 3
