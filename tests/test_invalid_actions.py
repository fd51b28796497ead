"""Illegal actions: remapped, penalised, and the masks that tell of them."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from htm_env import pair_to_action
from htm_env.actions import action_masks, remapped_actions
from htm_env.env import HTMEnv
from htm_env.vector_env import HTMVectorEnv

KNN = {"candidates": "knn", "k": 2}
with_and_without_candidates = pytest.mark.parametrize("pairs", [{}, KNN], ids=["all", "knn"])


def sets(*sizes: int) -> list[np.ndarray]:
    """Twenty sets of so many tokens in turn."""
    generator = np.random.default_rng(0)
    return [generator.normal(size=(sizes[row % len(sizes)], 2)) for row in range(20)]


def single(*sizes: int, **kwargs) -> HTMEnv:
    """Three tokens, unless ``sizes`` says otherwise."""
    return HTMEnv("HTM-v0", dataset=sets(*sizes or (3,)), **kwargs)


def batched(num_envs: int, *sizes: int, **kwargs) -> HTMVectorEnv:
    return HTMVectorEnv("HTM-v0", num_envs=num_envs, dataset=sets(*sizes), **kwargs)


# ---------------------------------------------------------------- remap


def test_the_illegal_actions_in_turn_are_the_legal_ones_in_turn():
    """Of six actions 1 and 4 are legal: the illegal 0, 2, 3, 5 are 1, 4, 1, 4."""
    legal = torch.tensor([False, True, False, False, True, False]).expand(4, 6)
    assert remapped_actions(torch.tensor([0, 2, 3, 5]), legal).tolist() == [1, 4, 1, 4]


@given(st.lists(st.booleans(), min_size=2, max_size=40).filter(any))
def test_legal_actions_have_as_many_preimages_as_each_other_up_to_one(mask):
    legal = torch.tensor(mask)
    illegal = (~legal).nonzero()[:, 0]
    made = remapped_actions(illegal, legal.expand(len(illegal), -1))
    assert legal[made].all()
    preimages = torch.bincount(made, minlength=len(mask))[legal]
    assert preimages.sum() == len(illegal)
    assert preimages.max() - preimages.min() <= 1


@with_and_without_candidates
def test_every_action_merges_a_pair_under_remap(pairs):
    """The chosen action where it is legal, and else the one that ``executed_action`` names."""
    env, other = (single(7, invalid_action=how, **pairs) for how in ("remap", "raise"))
    choices, remapped = np.random.default_rng(0), 0
    for seed in range(5):
        _, info = env.reset(seed=seed)
        other.reset(seed=seed)
        assert (info["invalid"], info["executed_action"]) == (False, -1)
        for merges in range(1, 7):
            mask, action = env.action_masks(), int(choices.integers(env.action_space.n))
            step = env.step(action)
            info = step[-1]
            made = int(info["executed_action"])
            assert bool(info["invalid"]) == (not mask[action]) == (made != action)
            assert mask[made]
            assert info["num_active"] == 7 - merges
            remapped += made != action
            same = other.step(made)
            assert same[1:4] == step[1:4]
            assert same[2:4] == (merges == 6, False)
            np.testing.assert_array_equal(step[0]["tokens"], same[0]["tokens"])
    assert remapped > 10


@with_and_without_candidates
def test_remap_does_not_truncate(pairs):
    env = single(7, invalid_action="remap", max_invalid_actions=1, **pairs)
    env.reset(seed=0)
    while not (step := env.step(int(np.argmin(env.action_masks()))))[2]:
        assert not step[3]


@with_and_without_candidates
@pytest.mark.parametrize("how", ["remap", "penalize"])
def test_copies_are_remapped_and_penalised_as_the_single_environment(how, pairs):
    options = {"invalid_action": how, "max_invalid_actions": 4, **pairs}
    batch, singles = batched(3, 3, 7, **options), [single(3, 7, **options) for _ in range(3)]
    batch.reset(seed=5)
    ended = [False] * 3
    for copy, env in enumerate(singles):
        env.reset(seed=5 + copy)
    choices, wrong = np.random.default_rng(1), 0
    for _ in range(30):
        actions = choices.integers(batch.single_action_space.n, size=3)
        _, rewards, terminated, truncated, infos = batch.step(actions)
        wrong += infos["invalid"].sum()
        for copy, env in enumerate(singles):
            reward, ends, info = 0.0, (False, False), None
            if ended[copy]:
                _, info = env.reset()
            else:
                _, reward, *ends, info = env.step(actions[copy])
            assert rewards[copy] == pytest.approx(reward, abs=1e-5)
            assert (terminated[copy], truncated[copy]) == tuple(ends)
            assert infos["executed_action"][copy] == info["executed_action"]
            assert infos["invalid"][copy] == info["invalid"]
            ended[copy] = any(ends)
    assert wrong > 20


# ---------------------------------------------------------------- penalties


def test_an_episode_of_illegal_actions_earns_the_penalty():
    """A hundredth of -1 each: as much in all as an error of 1, which predicts the mean."""
    env = single()
    env.reset(seed=0)
    env.step(pair_to_action(0, 1, 3))
    rewards, truncated = [], False
    while not truncated:
        _, reward, terminated, truncated, info = env.step(pair_to_action(1, 2, 3))
        rewards.append(reward)
        assert not terminated
        assert (info["invalid"], info["executed_action"]) == (True, -1)
    assert len(rewards) == 100
    assert sum(rewards) == pytest.approx(-1.0)


# ---------------------------------------------------------------- masks


@with_and_without_candidates
def test_the_mask_can_be_observed(pairs):
    env = gym.make("HTM-v0", dataset=sets(3), observe=("action_mask",), **pairs)
    observation, info = env.reset(seed=0)
    for action in (0, None):
        assert observation in env.observation_space
        assert observation["action_mask"].dtype == np.int8
        np.testing.assert_array_equal(observation["action_mask"], info["action_mask"])
        if action is not None:
            observation, _, _, _, info = env.step(action)


@with_and_without_candidates
def test_a_mask_is_never_all_zeros(pairs):
    """One root is left after two merges: nothing is legal, and the mask is all ones."""
    env = single(observe=("action_mask",), **pairs)
    env.reset(seed=0)
    for _ in range(2):
        observation, _, terminated, _, info = env.step(int(np.argmax(env.action_masks())))
    assert terminated
    assert observation["action_mask"].all() and info["action_mask"].all()
    assert env.action_masks().all()
    none = torch.zeros(1, 4, dtype=torch.bool)
    none[0, 2] = True
    assert action_masks(none, None).all()


def test_copies_that_a_reset_leaves_alone_keep_their_masks():
    batch = batched(3, 3, 7, autoreset_mode="Disabled")
    _, infos = batch.reset(seed=2)
    ended = np.zeros(3, bool)
    while not ended.any():
        _, _, terminated, _, infos = batch.step(infos["action_mask"].argmax(1))
        ended |= terminated
    assert not ended.all()
    before = infos["action_mask"]
    assert before[ended].all()
    _, infos = batch.reset(options={"reset_mask": ended})
    assert infos["_action_mask"].tolist() == ended.tolist()
    np.testing.assert_array_equal(infos["action_mask"][~ended], before[~ended])
    assert infos["action_mask"][ended].sum() > 0


def test_a_policy_observes_the_mask_in_a_reconstruction():
    env = single()
    batch = env.simulator.dataset.fixed(4)
    seen = []

    def policy(observation, generator):
        seen.append(observation["action_mask"])
        return observation["action_mask"].float().argmax(1)

    env.autoencoder.reconstruct(batch.tokens, batch.present, policy, observe=("action_mask",))
    assert [mask.sum(1).tolist() for mask in seen] == [[6] * 4, [2] * 4]
