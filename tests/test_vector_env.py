"""The batched environment against the single one, and against Gymnasium's loop over copies."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from conftest import every, small_autoencoder
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from htm_env.env import HTMEnv
from htm_env.vector_env import HTMVectorEnv

KWARGS = {"autoencoder": "untrained", "heights": (2, 3), "max_invalid_actions": 2}
"""Three or seven tokens: copies end at different times."""
IDS = every(
    (
        "HTM-Trees-v0",
        "HTM-Crosses-v0",
        "HTM-Digits-v0",
        "HTM-Keys-v0",
        "HTM-Jets-v0",
        "HTM-Kanji-v0",
        "HTM-v0",
    )
)

with_and_without_candidates = pytest.mark.parametrize(
    "pairs", [{}, {"candidates": "knn", "k": 2}], ids=["all", "knn"]
)
every_mode = pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.value)


def batched(num_envs: int = 3, mode=AutoresetMode.NEXT_STEP, **kwargs) -> HTMVectorEnv:
    return HTMVectorEnv(
        "HTM-Trees-v0", num_envs=num_envs, autoreset_mode=mode, **{**KWARGS, **kwargs}
    )


def looped(num_envs: int = 3, mode=AutoresetMode.NEXT_STEP, **kwargs) -> SyncVectorEnv:
    def single() -> HTMEnv:
        return HTMEnv("HTM-Trees-v0", **{**KWARGS, **kwargs})

    return SyncVectorEnv([single] * num_envs, autoreset_mode=mode)


def choose(masks: np.ndarray, choices: np.random.Generator, illegal: float = 0.0) -> np.ndarray:
    """A random legal action a copy, or with probability ``illegal`` one that is not."""
    actions = []
    for mask in masks.astype(bool):
        wanted = ~mask if choices.random() < illegal and not mask.all() else mask
        actions.append(choices.choice(np.flatnonzero(wanted)))
    return np.array(actions)


def assert_same(left, right, path: str = "") -> None:
    """Equal to float32 rounding, with the same keys, types, shapes and gaps.

    But for the masks of the copies that an info is not about: ours are the true ones."""
    if isinstance(right, dict):
        if "_action_mask" in right:
            here = right["_action_mask"]
            assert left["action_mask"].any(1).all()
            left, right = (
                {**info, "action_mask": info["action_mask"] * here[:, None]}
                for info in (left, right)
            )
        assert set(left) == set(right), path
        for key in right:
            assert_same(left[key], right[key], f"{path}/{key}")
    elif isinstance(right, tuple | list):
        assert len(left) == len(right), path
        for position, (mine, theirs) in enumerate(zip(left, right, strict=True)):
            assert_same(mine, theirs, f"{path}/{position}")
    elif isinstance(right, np.ndarray) and right.dtype == object:
        assert (left.dtype, left.shape) == (right.dtype, right.shape), path
        assert_same(list(left), list(right), path)
    elif isinstance(right, np.ndarray):
        assert (left.dtype, left.shape) == (right.dtype, right.shape), path
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5, err_msg=path)
    elif right is None:
        assert left is None, path
    else:
        assert left == pytest.approx(right, rel=1e-4, abs=1e-5), path


# ---------------------------------------------------------------- copy m = the single environment


@pytest.mark.parametrize("env_id", IDS)
@with_and_without_candidates
def test_copy_m_is_the_single_environment_with_seed_s_plus_m(env_id, env_kwargs, pairs):
    """Over several episodes each: the single one resets where the batch does, a step later."""
    vector = gym.make_vec(env_id, num_envs=3, **env_kwargs(env_id), **pairs)
    singles = [gym.make(env_id, **env_kwargs(env_id), **pairs) for _ in range(3)]
    observations, infos = vector.reset(seed=11)
    last = [single.reset(seed=11 + copy) for copy, single in enumerate(singles)]
    for copy, (observation, info) in enumerate(last):
        assert_same({key: value[copy] for key, value in observations.items()}, observation)
        assert_same({key: infos[key][copy] for key in info}, info)
    choices, ended, episodes = np.random.default_rng(0), [False] * 3, np.zeros(3)
    for _ in range(40):
        actions = choose(infos["action_mask"], choices)
        observations, rewards, terminations, truncations, infos = vector.step(actions)
        for copy, single in enumerate(singles):
            if ended[copy]:
                observation, info = single.reset()
                reward, terminated, truncated = 0.0, False, False
                episodes[copy] += 1
            else:
                observation, reward, terminated, truncated, info = single.step(actions[copy])
            ended[copy] = terminated or truncated
            assert_same({key: value[copy] for key, value in observations.items()}, observation)
            assert_same({key: infos[key][copy] for key in info}, info)
            assert rewards[copy] == pytest.approx(reward, abs=1e-5)
            assert (terminations[copy], truncations[copy]) == (terminated, truncated)
    assert (episodes >= 2).all()
    vector.close()


@every_mode
@with_and_without_candidates
def test_every_autoreset_mode_equals_gymnasiums_loop(mode, pairs):
    """Observations, rewards, flags, and every key of ``info``, with illegal actions among them."""
    batch, loop = batched(4, mode, **pairs), looped(4, mode, **pairs)
    assert batch.metadata["autoreset_mode"] is mode
    mine, theirs = batch.reset(seed=3), loop.reset(seed=3)
    assert_same(mine, theirs)
    choices = np.random.default_rng(1)
    ends = np.zeros(2, int)
    for _ in range(60):
        actions = choose(mine[-1]["action_mask"], choices, illegal=0.15)
        mine, theirs = batch.step(actions), loop.step(actions)
        assert_same(mine, theirs)
        _, _, terminations, truncations, _ = mine
        ends += terminations.sum(), truncations.sum()
        ended = terminations | truncations
        if mode is AutoresetMode.DISABLED and ended.any():
            mine = batch.reset(options={"reset_mask": ended})
            theirs = loop.reset(options={"reset_mask": ended.copy()})
            assert_same(mine, theirs)
            np.testing.assert_array_equal(mine[-1]["action_mask"], batch.action_masks())
    assert (ends >= 5).all()  # both kinds of ends were met


@pytest.mark.parametrize("reward", ["terminal", "one_step"])
def test_other_rewards_equal_gymnasiums_loop(reward):
    batch, loop = batched(reward=reward), looped(reward=reward)
    mine, theirs = batch.reset(seed=3), loop.reset(seed=3)
    choices = np.random.default_rng(1)
    for _ in range(25):
        actions = choose(mine[-1]["action_mask"], choices, illegal=0.1)
        mine, theirs = batch.step(actions), loop.step(actions)
        assert_same(mine, theirs)


@pytest.mark.parametrize("candidates", ["all", "knn"])
def test_extra_observations_and_no_mask_equal_gymnasiums_loop(candidates):
    options = {
        "candidates": candidates,
        "neighbours": "centroids",
        "observe": ("centroids", "order", "leaf_order", "leaves", "owners"),
        "mask_in_info": False,
    }
    batch, loop = batched(**options), looped(**options)
    mine, theirs = batch.reset(seed=3), loop.reset(seed=3)
    assert_same(mine, theirs)
    choices = np.random.default_rng(1)
    for _ in range(20):
        actions = choose(batch.action_masks(), choices)
        mine, theirs = batch.step(actions), loop.step(actions)
        assert_same(mine, theirs)
        assert mine[0] in batch.observation_space
    assert "action_mask" not in mine[-1]


def test_final_observations_in_same_step_mode():
    """What the last merge led to, not what the next episode starts with."""
    batch = batched(2, AutoresetMode.SAME_STEP, heights=(2,))
    _, infos = batch.reset(seed=0)
    _, _, terminations, _, infos = batch.step(choose(infos["action_mask"], np.random.default_rng()))
    assert not terminations.any()
    assert "final_obs" not in infos
    observations, _, terminations, _, infos = batch.step(
        choose(infos["action_mask"], np.random.default_rng(0))
    )
    assert terminations.all()
    for copy in range(2):
        final = infos["final_obs"][copy]
        assert final["active"].sum() == 1
        assert final["leaf_counts"].max() == 3
        assert final in batch.single_observation_space
        assert observations["active"][copy].sum() == 3
    assert infos["final_info"]["num_active"].tolist() == [1, 1]
    assert infos["num_active"].tolist() == [3, 3]


# ---------------------------------------------------------------- resets


@every_mode
@with_and_without_candidates
def test_a_reset_with_the_same_seed_plays_the_same_again(mode, pairs):
    batch = batched(3, mode, **pairs)

    def starts() -> list:
        return [batch.reset(seed=5), *(batch.reset() for _ in range(3))]

    first = starts()
    batch.step(choose(batch.action_masks(), np.random.default_rng(0)))
    again = starts()
    for left, right in zip(first, again, strict=True):
        assert all(np.array_equal(left[0][key], right[0][key]) for key in left[0])
    assert not np.array_equal(first[0][0]["tokens"], first[1][0]["tokens"])


def test_a_reset_with_a_list_of_seeds():
    batch = batched(3)
    listed = batch.reset(seed=[7, 3, 7])[0]["tokens"]
    counted = batch.reset(seed=2)[0]["tokens"]
    assert np.array_equal(listed[0], listed[2])
    assert np.array_equal(listed[1], counted[1])
    kept = batch.reset(seed=[7, None, 7])[0]["tokens"]
    assert np.array_equal(kept[0], listed[0])
    assert not np.array_equal(kept[1], listed[1])
    with pytest.raises(ValueError, match="2 seeds for 3 copies; expected one a copy"):
        batch.reset(seed=[1, 2])


@pytest.mark.parametrize("neighbours", ["embeddings", "centroids"])
@with_and_without_candidates
def test_a_reset_mask_starts_those_copies_and_leaves_the_others(pairs, neighbours):
    batch = batched(3, AutoresetMode.DISABLED, **pairs, neighbours=neighbours)
    _, infos = batch.reset(seed=0)
    before = batch.step(choose(infos["action_mask"], np.random.default_rng(0)))[0]
    trees = [batch.merge_tree(copy) for copy in range(3)]
    mask = np.array([False, True, False])
    options = {"reset_mask": mask}
    after, infos = batch.reset(options=options)
    assert options == {"reset_mask": mask}  # the caller's options are not changed
    for key in before:
        assert np.array_equal(after[key][[0, 2]], before[key][[0, 2]])
        assert not np.array_equal(after[key][1], before[key][1])
    assert batch.merge_tree(0) == trees[0]
    assert len(batch.merge_tree(1).merges) == 0
    assert infos["_num_active"].tolist() == mask.tolist()
    assert infos["num_active"][[0, 2]].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([True, False, False], "expected a bool array"),
        (np.array([1, 0, 0]), "expected a bool array"),
        (np.zeros(3, bool), "with a True value"),
        (np.ones(2, bool), r"reset_mask has shape \(2,\); expected \(3,\)"),
    ],
)
def test_wrong_reset_masks(mask, message):
    batch = batched(3, AutoresetMode.DISABLED)
    batch.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        batch.reset(options={"reset_mask": mask})


def test_without_autoreset_an_ended_copy_has_to_be_reset_first():
    batch = batched(2, AutoresetMode.DISABLED, heights=(2,))
    batch.reset(seed=0)
    for _ in range(2):
        actions = choose(batch.action_masks(), np.random.default_rng(0))
        terminations = batch.step(actions)[2]
    assert terminations.all()
    with pytest.raises(ResetNeeded, match="copy 0 has ended; autoreset is disabled"):
        batch.step(np.zeros(2, np.int64))
    batch.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ResetNeeded, match="copy 1 has ended"):
        batch.step(np.zeros(2, np.int64))
    batch.reset()
    batch.step(choose(batch.action_masks(), np.random.default_rng(0)))


def test_keys_name_episodes():
    batch = batched(3, split="test")
    single = HTMEnv("HTM-Trees-v0", split="test", **KWARGS)
    keys = batch.fixed_keys(3)
    observations, _ = batch.reset(options={"key": keys})
    for copy, key in enumerate(keys):
        observation, _ = single.reset(options={"key": int(key)})
        assert_same({name: value[copy] for name, value in observations.items()}, observation)
    same = batch.reset(options={"key": 2})[0]["tokens"]
    assert all(np.array_equal(row, observations["tokens"][2]) for row in same)
    with pytest.raises(ValueError, match="2 keys for 3 copies"):
        batch.reset(options={"key": [0, 1]})
    with pytest.raises(ValueError, match="the key of an episode is -1"):
        batch.reset(options={"key": -1})


def test_nothing_works_before_the_first_reset():
    batch = batched(2)
    with pytest.raises(ResetNeeded, match="call reset first"):
        batch.step(np.zeros(2, np.int64))
    with pytest.raises(ResetNeeded, match="call reset first"):
        batch.reset(options={"reset_mask": np.array([True, False])})


# ---------------------------------------------------------------- actions


@with_and_without_candidates
def test_an_illegal_action_in_some_copies_leaves_the_others_alone(pairs):
    batch = batched(3, heights=(3,), invalid_penalty=-0.5, **pairs)
    _, infos = batch.reset(seed=0)
    before, _, _, _, infos = batch.step(choose(infos["action_mask"], np.random.default_rng(0)))
    actions = choose(infos["action_mask"], np.random.default_rng(0))
    actions[1] = np.flatnonzero(infos["action_mask"][1] == 0)[0]
    after, rewards, terminations, truncations, after_infos = batch.step(actions)
    assert rewards[1] == -0.25  # two of them are an episode
    assert after_infos["invalid"].tolist() == [False, True, False]
    assert after_infos["num_active"].tolist() == [5, 6, 5]
    for key in before:
        assert np.array_equal(after[key][1], before[key][1])
    assert not terminations.any()
    assert not truncations.any()
    actions = choose(after_infos["action_mask"], np.random.default_rng(0))
    actions[1] = np.flatnonzero(after_infos["action_mask"][1] == 0)[0]
    truncations = batch.step(actions)[3]
    assert truncations.tolist() == [False, True, False]


def test_an_illegal_action_can_raise_and_then_nothing_has_happened():
    batch = batched(2, heights=(2,), invalid_action="raise")
    batch.reset(seed=0)
    batch.step(np.array([0, 0]))  # slots (0, 1)
    with pytest.raises(ValueError, match="but the active slots are"):
        batch.step(np.array([1, 0]))
    assert len(batch.merge_tree(0).merges) == 1


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0], r"actions have shape \(1,\); expected \(2,\)"),
        ([[0, 0]], r"actions have shape \(1, 2\)"),
        ([0, 42], r"action 42 is not in Discrete\(42\)"),
        ([-1, 0], r"action -1 is not in Discrete\(42\)"),
    ],
)
def test_wrong_actions(actions, message):
    batch = batched(2)
    batch.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        batch.step(np.array(actions))


@with_and_without_candidates
def test_what_a_copy_that_is_being_reset_is_told_to_do_is_ignored(pairs):
    batch = batched(2, heights=(2,), invalid_action="raise", **pairs)
    batch.reset(seed=0)
    for _ in range(2):
        batch.step(choose(batch.action_masks(), np.random.default_rng(0)))
    observations, rewards, terminations, _, _ = batch.step(np.array([-5, 10**6]))
    assert observations["active"].sum(1).tolist() == [3, 3]
    assert rewards.tolist() == [0.0, 0.0]
    assert not terminations.any()


# ---------------------------------------------------------------- names, wrappers, pictures


@pytest.mark.parametrize("env_id", IDS)
@with_and_without_candidates
def test_spaces(env_id, env_kwargs, pairs):
    vector = gym.make_vec(env_id, num_envs=4, **env_kwargs(env_id), **pairs)
    single = gym.make(env_id, **env_kwargs(env_id), **pairs)
    assert isinstance(vector, VectorEnv)
    assert type(vector.unwrapped) is HTMVectorEnv
    assert vector.num_envs == 4
    assert vector.single_observation_space == single.observation_space
    assert vector.single_action_space == single.action_space
    observations, infos = vector.reset(seed=0)
    assert observations in vector.observation_space
    _, rewards, terminations, truncations, infos = vector.step(
        choose(infos["action_mask"], np.random.default_rng(0))
    )
    assert (rewards.dtype, terminations.dtype, truncations.dtype) == (np.float64, bool, bool)
    keys = {"action_mask", "error", "num_active", "invalid", "executed_action"}
    assert set(infos) == keys | {f"_{key}" for key in keys}
    assert all(infos[f"_{key}"].all() for key in keys)
    vector.close()


def test_the_mode_is_chosen_through_make_vec():
    for mode in ("SameStep", AutoresetMode.SAME_STEP):
        vector = gym.make_vec("HTM-Trees-v0", num_envs=2, autoreset_mode=mode, **KWARGS)
        assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    vector = gym.make_vec("HTM-Trees-v0", num_envs=2, **KWARGS)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


@pytest.mark.parametrize(
    ("option", "choices"),
    [
        ({"autoreset_mode": "later"}, ["NextStep", "SameStep", "Disabled"]),
        ({"render_mode": "svg"}, ["rgb_array", "ansi", "human"]),
        ({"reward": "sparse"}, ["incremental", "terminal", "one_step"]),
        ({"num_envs": 0}, ["expected a whole number from 1"]),
    ],
)
def test_wrong_options_list_the_choices(option, choices):
    with pytest.raises(ValueError, match=choices[0]) as error:
        HTMVectorEnv("HTM-Trees-v0", **{**KWARGS, **option})
    assert all(choice in str(error.value) for choice in choices)


@every_mode
def test_recording_statistics(mode):
    """Two merges an episode; the return is the sum of its rewards."""
    vector = gym.wrappers.vector.RecordEpisodeStatistics(batched(2, mode, heights=(2,)))
    _, infos = vector.reset(seed=0)
    total, choices = np.zeros(2), np.random.default_rng(0)
    for _ in range(2):
        _, rewards, terminations, _, infos = vector.step(choose(infos["action_mask"], choices))
        total += rewards
    assert terminations.all()
    assert infos["episode"]["l"].tolist() == [2, 2]
    np.testing.assert_allclose(infos["episode"]["r"], total)


def test_writing_into_what_was_returned_changes_nothing_later():
    clean, spoiled = (batched(2, AutoresetMode.SAME_STEP) for _ in range(2))
    left, right = clean.reset(seed=0), spoiled.reset(seed=0)
    choices = np.random.default_rng(0)
    for _ in range(15):
        actions = choose(left[-1]["action_mask"], choices)
        for array in (*right[0].values(), *right[-1].values()):
            if isinstance(array, np.ndarray) and array.dtype != object:
                array[...] = 1
        left, right = clean.step(actions), spoiled.step(actions)
        assert_same(right, left)


def test_the_arrays_of_one_step_share_no_memory():
    batch = batched(2)
    observations, infos = batch.reset(seed=0)
    arrays = [*observations.values(), *infos.values()]
    for position, array in enumerate(arrays):
        assert not any(np.shares_memory(array, other) for other in arrays[position + 1 :])


def test_one_autoencoder_for_all_copies():
    autoencoder = small_autoencoder(2)
    vector = gym.make_vec("HTM-Trees-v0", num_envs=2, **{**KWARGS, "autoencoder": autoencoder})
    assert vector.unwrapped.autoencoder is autoencoder


def test_a_frame_for_every_copy():
    batch = batched(2, render_mode="rgb_array")
    batch.reset(seed=0)
    frames = batch.render()
    single = HTMEnv("HTM-Trees-v0", render_mode="rgb_array", **KWARGS)
    single.reset(seed=1)
    assert len(frames) == 2
    assert not np.array_equal(*frames)
    assert np.array_equal(frames[1], single.render())
    batch.close()


def test_text_for_every_copy():
    batch = batched(2, render_mode="ansi")
    batch.reset(seed=0)
    assert all(text.startswith("active") for text in batch.render())


def test_the_window_follows_the_first_copy(frames_shown):
    batch = batched(2, render_mode="human")
    batch.reset(seed=0)
    batch.step(choose(batch.action_masks(), np.random.default_rng(0)))
    assert batch.render() is None
    assert len(frames_shown) == 2
    assert not np.array_equal(*frames_shown)
    batch.close()
    batch.close()


def test_rendering_without_a_mode_says_so():
    batch = batched(2)
    batch.reset(seed=0)
    with pytest.warns(UserWarning, match="without a render_mode"):
        assert batch.render() is None
