"""The environment behind Stable-Baselines3's ``VecEnv``: the same episodes as one at a time."""

from __future__ import annotations

from dataclasses import fields

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import small_autoencoder
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from agents.ppo import HTMVecEnv
from agents.ppo.vector_env import FinishedEpisodes
from agents.runs.checkpoint import load_state, save_state
from htm_env.forest import action_to_pair, merges_to_actions
from htm_env.population import Population, merge_pairs

TREES = {"heights": (2, 3)}
"""Three or seven tokens, so that copies end at different times."""


NEAR = {"candidates": "knn", "k": 2}
kinds_of_pairs = pytest.mark.parametrize(
    "pairs", [{}, NEAR, {**NEAR, "neighbours": "centroids"}], ids=["all", "knn", "centroids"]
)


def make(num_envs: int = 3, **kwargs) -> HTMVecEnv:
    return HTMVecEnv(
        "HTM-Trees-v0", num_envs, **{"autoencoder": small_autoencoder(2), **TREES, **kwargs}
    )


def legal_actions(env: HTMVecEnv, random: np.random.Generator) -> np.ndarray:
    return np.array([random.choice(np.flatnonzero(mask)) for mask in env.action_masks()])


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_allclose(one[key], other[key], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- the contract


def test_what_comes_back_is_as_declared():
    env = make()
    assert isinstance(env, VecEnv)
    env.seed(0)
    observation = env.reset()
    random = np.random.default_rng(0)
    for _ in range(15):
        for copy in range(3):
            row = {key: value[copy] for key, value in observation.items()}
            assert env.observation_space.contains(row)
        observation, rewards, dones, infos = env.step(legal_actions(env, random))
        assert rewards.dtype == np.float32 and rewards.shape == (3,)
        assert dones.dtype == bool and dones.shape == (3,)
        assert len(infos) == 3
        for done, info in zip(dones, infos, strict=True):
            assert info["TimeLimit.truncated"] is False
            assert ("terminal_observation" in info) == done


@kinds_of_pairs
def test_stable_baselines_own_check_of_one_environment(pairs):
    check_env(gym.make("HTM-Trees-v0", autoencoder="untrained", **pairs), warn=False)


@pytest.mark.parametrize("illegal", [0.0, 0.3], ids=["legal", "some-illegal"])
@kinds_of_pairs
def test_copies_are_the_single_environment_step_by_step(illegal, pairs):
    kwargs = {"max_invalid_actions": 2, "mask_in_info": True, **pairs}
    env = make(**kwargs)
    singles = [
        gym.make("HTM-Trees-v0", autoencoder=small_autoencoder(2), **TREES, **kwargs)
        for _ in range(3)
    ]
    assert env.seed(7) == [7, 8, 9]
    observation = env.reset()
    starts = [single.reset(seed=7 + copy) for copy, single in enumerate(singles)]
    random = np.random.default_rng(0)
    ended, cut = 0, 0
    for _ in range(25):
        for copy, (expected, info) in enumerate(starts):
            assert_same({key: value[copy] for key, value in observation.items()}, expected)
            np.testing.assert_array_equal(env.action_masks()[copy], info["action_mask"])
        actions = legal_actions(env, random)
        wild = random.integers(env.action_space.n, size=3)
        actions = np.where(random.random(3) < illegal, wild, actions)
        observation, rewards, dones, infos = env.step(actions)
        for copy, single in enumerate(singles):
            last, reward, terminated, truncated, info = single.step(actions[copy])
            assert rewards[copy] == pytest.approx(reward, rel=1e-4, abs=1e-6)
            assert dones[copy] == (terminated or truncated)
            assert infos[copy]["TimeLimit.truncated"] == (truncated and not terminated)
            assert infos[copy]["invalid"] == info["invalid"]
            assert infos[copy]["num_active"] == info["num_active"]
            assert infos[copy]["error"] == pytest.approx(info["error"], rel=1e-4)
            np.testing.assert_array_equal(infos[copy]["action_mask"], info["action_mask"])
            if terminated or truncated:
                assert_same(infos[copy]["terminal_observation"], last)
                ended, cut = ended + 1, cut + truncated
                last, info = single.reset()
                assert env.reset_infos[copy]["num_active"] == info["num_active"]
            starts[copy] = last, info
    assert ended > 5
    assert (cut > 0) == (illegal > 0)


def test_seeds_are_used_once_and_options_give_keys():
    env = make()
    env.seed(3)
    first, second = env.reset(), env.reset()
    assert not np.array_equal(first["tokens"], second["tokens"])
    env.set_options({"key": 5})
    same = env.reset()
    assert np.array_equal(same["tokens"][0], same["tokens"][1])
    env.set_options([{"key": 5}, {}, {}])
    with pytest.raises(ValueError, match="expected a 'key' for all or none"):
        env.reset()


def test_methods_and_attributes_of_copies():
    env = make()
    env.seed(0)
    env.reset()
    env.step(legal_actions(env, np.random.default_rng(0)))
    masks = env.env_method("action_masks")
    np.testing.assert_array_equal(np.stack(masks), env.action_masks())
    (one,) = env.env_method("action_masks", indices=2)
    np.testing.assert_array_equal(one, masks[2])
    trees = env.env_method("merge_tree", indices=[0, 2])
    assert [len(tree.merges) for tree in trees] == [1, 1]
    assert env.env_method("fixed_keys", 2, indices=0)[0].tolist() == [0, 1]
    with pytest.raises(AttributeError, match="no method 'step'; choose from"):
        env.env_method("step", 0)
    assert env.has_attr("action_masks") and not env.has_attr("no_such_thing")
    assert env.get_attr("render_mode", indices=[0, 1]) == [None, None]
    env.set_attr("mask_in_info", True)
    assert env.get_attr("mask_in_info") == [True] * 3
    assert "action_mask" in env.step(legal_actions(env, np.random.default_rng(1)))[3][0]
    with pytest.raises(ValueError, match="one batch"):
        env.set_attr("mask_in_info", False, indices=0)
    assert env.env_is_wrapped(Monitor) == [False] * 3


def test_frames_of_all_copies_are_tiled():
    env = make(2, render_mode="rgb_array")
    env.seed(0)
    env.reset()
    frames = env.get_images()
    height, width, _ = frames[0].shape
    assert env.render().shape == (2 * height, width, 3)
    assert [frame.shape for frame in env.env_method("render", indices=[1])] == [frames[1].shape]
    env.close()


def test_vec_monitor_counts_its_episodes():
    env = VecMonitor(make())
    env.seed(0)
    env.reset()
    random = np.random.default_rng(0)
    returns, lengths, seen = np.zeros(3), np.zeros(3), 0
    for _ in range(20):
        _, rewards, dones, infos = env.step(legal_actions(env.unwrapped, random))
        returns, lengths = returns + rewards, lengths + 1
        for copy in np.flatnonzero(dones):
            assert infos[copy]["episode"]["r"] == pytest.approx(returns[copy], rel=1e-5)
            assert infos[copy]["episode"]["l"] == lengths[copy]
            returns[copy], lengths[copy], seen = 0.0, 0, seen + 1
    assert seen > 5


@pytest.mark.parametrize("env_id", ["HTM-v0", "htm_env:HTM-v0"])
def test_defaults_are_those_of_the_registered_environment(env_id, own_data):
    assert HTMVecEnv(env_id, 2, dataset=own_data).autoencoder.embedding_dim == 8
    with pytest.raises(ValueError, match="unknown id"):
        HTMVecEnv("HTM-Nothing-v0")


# ---------------------------------------------------------------- what joint training needs


def play(env: HTMVecEnv, steps: int, seed: int = 0) -> list[np.ndarray]:
    """Random legal actions; returns them."""
    random, actions = np.random.default_rng(seed), []
    for _ in range(steps):
        actions.append(legal_actions(env, random))
        env.step(actions[-1])
    return actions


def test_finished_episodes_are_kept_from_the_call_of_record_on():
    env = make()
    env.seed(0)
    env.reset()
    play(env, 12)
    assert env.take_finished() is None
    env.record()
    env.reset()
    starts = env.copies.population.initial_error
    play(env, 6)  # the first episode of every copy ends, and perhaps more
    finished = env.take_finished()
    assert finished is not None and env.take_finished() is None
    sizes = finished.batch.num_tokens
    assert torch.equal((finished.merges[..., 0] >= 0).sum(1), sizes - 1)
    assert (finished.merges.amax((1, 2)) == 2 * sizes - 3).all()  # the last child of the root
    first = finished.returns[0] + finished.error[0]  # E_0 of the first that ended
    assert float((starts - first).abs().min()) < 1e-5


def test_joining_keeps_rows_and_order():
    env, together = make(), make()
    for one in (env, together):
        one.seed(0)
        one.record()
        one.reset()
    parts = []
    for step in range(12):
        play(env, 1, seed=step)
        play(together, 1, seed=step)
        parts += [part for part in [env.take_finished()] if part is not None]
    assert len(parts) > 1
    joined, expected = FinishedEpisodes.joined(parts), together.take_finished()
    assert torch.equal(joined.error, expected.error)
    assert torch.equal(joined.merges, expected.merges)
    assert torch.equal(joined.batch.tokens, expected.batch.tokens)
    assert torch.equal(joined.batch.tokens[: len(parts[0].error)], parts[0].batch.tokens)


def assert_populations(one: Population, other: Population) -> None:
    for name in ("embeddings", "squared_errors", "initial_error", "leaf_counts"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-5)
    for field in fields(one.forest):
        assert torch.equal(getattr(one.forest, field.name), getattr(other.forest, field.name))
    assert (one.candidates is None) == (other.candidates is None)
    if one.candidates is not None:
        assert torch.equal(one.candidates, other.candidates)


@pytest.mark.parametrize("steps", [0, 1, 4])
@kinds_of_pairs
def test_a_refresh_is_as_if_the_weights_had_always_been_so(steps, pairs):
    """The oracle: the same merges made from the start under the new weights, whoever is listed."""
    env, oracle = (
        make(heights=(3,), autoencoder=small_autoencoder(2, seed=s), **pairs) for s in (0, 1)
    )
    for one in (env, oracle):
        one.seed(0)
        one.reset()
    play(env, steps)
    merges = env.copies.population.forest.merges
    actions = merges_to_actions(merges, env.copies.population.forest.num_leaves)
    population, simulator = oracle.copies.population, oracle.copies.simulator
    for step in range(steps):
        first, second = action_to_pair(actions[:, step], 7)
        population = merge_pairs(oracle.autoencoder, population, first, second, simulator.std)
    env.autoencoder.load_state_dict(oracle.autoencoder.state_dict())
    observation = env.refresh()
    assert_populations(env.copies.population, population)
    np.testing.assert_allclose(observation["tokens"], population.embeddings, rtol=1e-4, atol=1e-5)
    actions = legal_actions(env, np.random.default_rng(9))
    everyone = torch.ones(len(actions), dtype=torch.bool)
    _, reward, _, _ = env.step(actions)
    expected = simulator.step(population, torch.as_tensor(actions), everyone).reward
    np.testing.assert_allclose(reward, expected, rtol=1e-3, atol=1e-6)


@kinds_of_pairs
def test_a_restored_state_goes_on_bit_for_bit(tmp_path, pairs):
    def course(env: HTMVecEnv) -> list[np.ndarray]:
        random = np.random.default_rng(1)
        seen = []
        for _ in range(15):
            observation, rewards, dones, _ = env.step(legal_actions(env, random))
            seen += [*observation.values(), rewards, dones]
        seen.append(env.take_finished().returns.numpy())
        return seen

    env = make(max_invalid_actions=2, **pairs)
    env.record()
    env.seed(0)
    env.reset()
    play(env, 3)
    env.take_finished()
    state = env.state()
    save_state(tmp_path / "state", state)
    env.refresh()
    expected = course(env)
    for saved in (state, load_state(tmp_path / "state")):
        other = make(max_invalid_actions=2, **pairs)
        other.record()
        other.restore(saved)
        for here, there in zip(course(other), expected, strict=True):
            np.testing.assert_array_equal(here, there)
    with pytest.raises(ValueError, match="the state has 3 copies; expected 2"):
        make(2).restore(state)


def test_invalid_actions_are_counted_across_a_restore():
    env = make(1, max_invalid_actions=2, heights=(3,))
    env.reset()
    env.step(np.array([0]))
    assert not env.action_masks()[0, 0]  # slots 0 and 1 were merged into slot 0
    env.step(np.array([0]))
    other = make(1, max_invalid_actions=2, heights=(3,))
    other.restore(env.state())
    _, _, dones, infos = other.step(np.array([0]))
    assert dones[0] and infos[0]["TimeLimit.truncated"]
