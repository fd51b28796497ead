"""Flat and masked observations, and the flat ids."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
from conftest import every
from gymnasium.utils.env_checker import check_env

import htm_env
from htm_env import wrappers
from htm_env.registration import FLAT_IDS
from htm_env.wrappers.masked import FORMS

UNTRAINED = {"autoencoder": "untrained", "heights": (2, 3)}
"""Trees of three or seven tokens in seven slots, with embeddings of eight numbers."""


def trees(**kwargs) -> gym.Env:
    return gym.make("HTM-Trees-v0", **UNTRAINED, **kwargs)


def random_action(mask: np.ndarray, choices: np.random.Generator) -> int:
    return int(choices.choice(np.flatnonzero(mask)))


# ---------------------------------------------------------------- flat


@pytest.mark.parametrize("flat_id", every(FLAT_IDS))
def test_flat_ids_keep_the_contract(flat_id, env_kwargs):
    """The vectors of the copies, and of the single environment, are those of the ``Dict``."""
    env_id = FLAT_IDS[flat_id]
    kwargs = env_kwargs(env_id)
    env, other = gym.make(flat_id, **kwargs), gym.make(env_id, **kwargs)
    copies = gym.make_vec(flat_id, num_envs=2, **kwargs)
    assert isinstance(env.observation_space, gym.spaces.Box)
    assert env.observation_space.dtype == np.float32
    assert np.abs([env.observation_space.low, env.observation_space.high]).max() <= 100
    assert copies.single_observation_space == env.observation_space
    slots = len(other.observation_space["active"].low)
    vector, (observation, info) = env.reset(seed=3)[0], other.reset(seed=3)
    batch, choices, done = copies.reset(seed=3)[0], np.random.default_rng(0), False
    while not done:
        assert vector in env.observation_space
        assert np.allclose(batch[0], vector, atol=1e-5)
        assert batch in copies.observation_space
        tokens, active, counts = np.split(vector, [-2 * slots, -slots])
        assert np.array_equal(tokens.reshape(slots, -1), observation["tokens"])
        assert np.array_equal(active, observation["active"])
        assert np.allclose(counts * slots, observation["leaf_counts"])
        action = random_action(info["action_mask"], choices)
        vector = env.step(action)[0]
        batch = copies.step(np.array([action, action]))[0]
        observation, _, done, _, info = other.step(action)


@pytest.mark.parametrize("made", ["HTM-Trees-Flat-v0", *sorted({*FORMS} - {"pettingzoo"})])
def test_the_checker_of_gymnasium_passes_without_another_warning(made):
    env = wrappers.Masked(trees(), made) if made in FORMS else gym.make(made, **UNTRAINED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")
        check_env(env, skip_render_check=True)


def test_flat_copies_are_called_as_others_are():
    flat = gym.make_vec("HTM-Trees-Flat-v0", num_envs=2, **UNTRAINED)
    flat.reset(seed=0)
    assert np.array_equal(flat.call("action_masks"), flat.unwrapped.action_masks())
    assert flat.get_attr("observation_space") == (flat.single_observation_space,) * 2
    flat.set_attr("mask_in_info", False)
    assert flat.get_attr("mask_in_info") == (False, False)
    assert "action_mask" not in flat.reset(seed=0)[1]


def test_a_flat_id_can_be_made_from_its_specification():
    env = gym.make("HTM-Trees-Flat-v0", **UNTRAINED)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert np.array_equal(env.reset(seed=0)[0], again.reset(seed=0)[0])


def test_other_keys_follow_in_alphabetical_order_and_ranks_are_shares_of_the_slots():
    env = trees(observe=("order", "leaves", "centroids"), candidates="knn", k=2)
    flat = wrappers.Flat(trees(observe=("order", "leaves", "centroids"), candidates="knn", k=2))
    observation, vector = env.reset(seed=0)[0], flat.reset(seed=0)[0]
    sizes = {"tokens": 56, "active": 7, "leaf_counts": 7}
    sizes |= {"candidates": 14, "centroids": 14, "leaves": 14, "order": 7}
    parts = np.split(vector, np.cumsum([*sizes.values()])[:-1])
    for (key, size), part in zip(sizes.items(), parts, strict=True):
        assert len(part) == size
        scale = 7 if key in ("leaf_counts", "candidates", "order") else 1
        assert np.allclose(part * scale, observation[key].ravel(), atol=1e-6)


def test_the_mask_comes_last_where_it_is_observed():
    env = gym.make("HTM-Trees-Flat-v0", observe=("action_mask", "order"), **UNTRAINED)
    vector, info = env.reset(seed=0)
    assert np.array_equal(vector[-42:], info["action_mask"])
    assert len(vector) == 7 * (8 + 1 + 1 + 1) + 42
    masked = wrappers.Masked(trees(observe=("action_mask",)), "rllib")
    assert len(masked.reset(seed=0)[0]["observations"]) == 7 * (8 + 1 + 1)


def test_large_numbers_are_clipped():
    env = trees()
    env.unwrapped.autoencoder.set_statistics(
        *(env.unwrapped.autoencoder.token_mean, 1e-6 * env.unwrapped.autoencoder.token_std)
    )
    vector = wrappers.Flat(env).reset(seed=0)[0]
    assert np.abs(vector).max() == 100


def test_the_last_vectors_of_ended_copies_are_flat():
    copies = gym.make_vec(
        "HTM-Trees-Flat-v0", num_envs=2, autoreset_mode="SameStep", **UNTRAINED | {"heights": (2,)}
    )
    single = gym.make("HTM-Trees-Flat-v0", **UNTRAINED | {"heights": (2,)})
    _, info = copies.reset(seed=0)
    single.reset(seed=0)
    for _ in range(2):
        actions = info["action_mask"].argmax(1)
        vectors, _, ended, _, info = copies.step(actions)
        last = single.step(int(actions[0]))[0]
    assert ended.all()
    assert np.allclose(info["final_obs"][0], last, atol=1e-5)
    assert not np.allclose(vectors[0], last, atol=1e-5)


def test_what_is_flat_already_is_refused():
    with pytest.raises(ValueError, match="the observation space is a Box; expected the Dict"):
        wrappers.Flat(gym.make("HTM-Trees-Flat-v0", **UNTRAINED))


# ---------------------------------------------------------------- masked


@pytest.mark.parametrize("form", ["rllib", "tianshou", "torchrl"])
def test_a_masked_observation_has_the_vector_and_the_mask(form):
    env, flat = wrappers.Masked(trees(), form), wrappers.Flat(trees())
    names, choices, done = FORMS[form], np.random.default_rng(0), False
    (observation, info), vector = env.reset(seed=5), flat.reset(seed=5)[0]
    assert list(observation) == [names.vector, names.mask]
    while not done:
        assert observation in env.observation_space
        assert observation[names.mask].dtype == names.dtype
        assert np.array_equal(observation[names.vector], vector)
        assert np.array_equal(observation[names.mask], info["action_mask"])
        action = random_action(observation[names.mask], choices)
        observation, _, done, _, info = env.step(action)
        vector = flat.step(action)[0]
    assert observation[names.mask].all()


def test_an_unknown_form_lists_the_choices():
    message = r"unknown form 'keras'; choose from \['rllib', 'tianshou', 'pettingzoo', 'torchrl'\]"
    with pytest.raises(ValueError, match=message):
        wrappers.Masked(trees(), "keras")


def test_one_agent_passes_the_test_of_pettingzoo():
    from pettingzoo import test

    env = wrappers.Masked(trees(), "pettingzoo")
    test.api_test(env, num_cycles=16)
    single = trees()
    env.reset(seed=4)
    single.reset(seed=4)
    choices, rewards, expected = np.random.default_rng(0), [], []
    for _ in env.agent_iter():
        observation, reward, terminated, truncated, _ = env.last()
        rewards.append(reward)
        if terminated or truncated:
            env.step(None)
            continue
        action = random_action(observation["action_mask"], choices)
        expected.append(single.step(action)[1])
        env.step(action)
    assert rewards == [0.0, *expected]
    assert env.agents == []


# ---------------------------------------------------------------- cloned states


def test_a_cloned_state_is_restored_however_often():
    """Also after the episode's end, and with the episodes that follow."""
    env = wrappers.CheapClone(wrappers.Flat(trees()))
    env.reset(seed=1)
    root = env.clone_state()
    endings = []
    for choice in (0, -1, 0):
        env.restore_state(root)
        seen, done = [env.unwrapped.action_masks()], False
        while not done:
            legal = np.flatnonzero(env.unwrapped.action_masks())
            *step, done, _, _ = env.step(int(legal[choice]))
            seen += step
        seen.append(env.reset()[0])
        endings.append(seen)
    first, other, again = endings
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
    assert not np.array_equal(first[1], other[1])
    assert np.array_equal(first[-1], other[-1])


# ---------------------------------------------------------------- sorted slots


SORTED = ("order", "centroids", "action_mask")


def test_sorted_slots_are_a_permutation_under_which_everything_agrees():
    """The same merges as in the environment itself, chosen by the numbers of the sorted one."""
    env, other = wrappers.Sorted(trees(observe=SORTED)), trees(observe=SORTED)
    choices, done = np.random.default_rng(0), False
    (seen, info), (observation, _) = env.reset(seed=5), other.reset(seed=5)
    while not done:
        count = observation["active"].sum()
        slots = np.argsort(observation["order"])[7 - count :]  # -1, of empty slots, comes first
        assert seen in env.observation_space
        assert seen["order"].tolist() == [*range(count), *[-1] * (7 - count)]
        for key in ("tokens", "active", "leaf_counts", "centroids"):
            assert np.array_equal(seen[key][:count], observation[key][slots])
            assert not seen[key][count:].any()
        first, second = htm_env.action_to_pair(np.arange(42), 7)
        assert np.array_equal(env.action_masks(), (first < count) & (second < count))
        assert np.array_equal(info["action_mask"], env.action_masks())
        assert np.array_equal(seen["action_mask"], env.action_masks())
        action = random_action(info["action_mask"], choices)
        pair = slots[[first[action], second[action]]]
        seen, reward, done, _, info = env.step(action)
        observation, expected, _, _, _ = other.step(int(htm_env.pair_to_action(*pair, 7)))
        assert reward == expected
        assert info["executed_action"] == action
        assert not info["invalid"]
    assert env.action_masks().all()


def test_illegal_actions_of_sorted_slots_are_remapped_in_their_order():
    """Of three active slots out of seven, six pairs are legal: 0, 1, 6, 7, 12, 13. The illegal ones
    are executed as these in turn; action 2 is the first of them, 3 the second, 8 the fifth."""
    for chosen, executed in ((2, 0), (3, 1), (8, 12), (13, 13)):
        env = wrappers.Sorted(
            gym.make(
                "HTM-Trees-v0",
                **UNTRAINED | {"heights": (2, 3), "invalid_action": "remap", "observe": ("order",)},
            )
        )
        seed = 0
        while env.reset(seed=seed)[1]["num_active"] != 3:
            seed += 1
        _, _, _, _, info = env.step(chosen)
        assert info["executed_action"] == executed
        assert info["invalid"] == (chosen != executed)


def test_an_illegal_action_of_sorted_slots_is_penalized_as_ever():
    env = wrappers.Sorted(trees(observe=("order",)))
    seed = 0
    while env.reset(seed=seed)[1]["num_active"] != 3:
        seed += 1
    _, reward, _, _, info = env.step(41)
    assert reward == pytest.approx(-0.01)
    assert info["invalid"]
    assert info["executed_action"] == -1


@pytest.mark.parametrize("observe", [(), ("order", "owners")])
def test_sorting_needs_the_order_and_refuses_keys_about_other_slots(observe):
    with pytest.raises(ValueError, match=r"the observation is .*; expected a Dict of tokens"):
        wrappers.Sorted(trees(observe=observe))


def test_sorted_slots_can_be_flat_and_pass_the_checker():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")
        check_env(wrappers.Flat(wrappers.Sorted(trees(observe=SORTED))), skip_render_check=True)
