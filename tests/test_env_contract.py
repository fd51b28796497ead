"""What every environment id promises: Gymnasium's contract, and the names of the public API."""

from __future__ import annotations

import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import oracle
import pytest
import torch
from conftest import every, small_autoencoder
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_of_stable_baselines

import htm_env
import htm_env.vector_env
from htm_env import HTMAutoencoder, MergeTree, action_to_pair, candidate_pair, pair_to_action
from htm_env.forest import merges_to_actions
from htm_env.weights import embedding_dim_of

SLOTS = {
    "HTM-Trees-v0": 15,
    "HTM-Crosses-v0": 6,
    "HTM-Digits-v0": 16,
    "HTM-Keys-v0": 9,
    "HTM-Kanji-v0": 12,
    "HTM-Jets-v0": 20,
    "HTM-v0": 5,
}
IDS = tuple(SLOTS)
TOKEN_DIMS = dict(zip(IDS, (2, 4, 6, 5, 8, 4, 3), strict=True))

every_id = pytest.mark.parametrize("env_id", every(IDS))
K = 3
KNN = {"candidates": "knn", "k": K}
with_and_without_candidates = pytest.mark.parametrize("pairs", [{}, KNN], ids=["all", "knn"])


@pytest.fixture
def make(env_kwargs):
    """``gym.make`` without the shipped weights; closes what it made."""
    made = []

    def of(env_id: str = "HTM-Trees-v0", **kwargs):
        made.append(gym.make(env_id, **{**env_kwargs(env_id), **kwargs}))
        return made[-1]

    yield of
    for env in made:
        env.close()


def small(make, **kwargs):
    """Trees of three or seven tokens, in seven slots unless ``heights`` says otherwise."""
    return make("HTM-Trees-v0", **{"heights": (2, 3), **kwargs})


def legal_actions(info: dict) -> np.ndarray:
    return np.flatnonzero(info["action_mask"])


def illegal_action(info: dict) -> int:
    return int(np.flatnonzero(info["action_mask"] == 0)[0])


def play(env, seed: int | None, episodes: int = 1) -> list:
    """Everything seen in random legal episodes; the actions depend on the mask and a fixed seed."""
    choices, seen = np.random.default_rng(0), []
    for episode in range(episodes):
        observation, info = env.reset(seed=seed if episode == 0 else None)
        seen.append((observation, info))
        done = False
        while not done:
            action = int(choices.choice(legal_actions(info)))
            observation, reward, terminated, truncated, info = env.step(action)
            seen.append((observation, reward, terminated, truncated, info))
            done = terminated or truncated
    return seen


def same(left, right) -> bool:
    return gym.utils.env_checker.data_equivalence(left, right, exact=True)


# ---------------------------------------------------------------- the checkers


@every_id
@with_and_without_candidates
def test_the_checker_of_gymnasium_passes_without_a_warning(make, env_id, pairs):
    env = make(env_id, **pairs).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)


@every_id
@with_and_without_candidates
def test_the_checker_of_stable_baselines_passes(make, env_id, pairs):
    """It warns of one thing only: a matrix is neither an image nor a vector."""
    env = make(env_id, **pairs).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for key in ("tokens", "candidates") if pairs else ("tokens",):
            message = f"Your observation {key} has an unconventional"
            warnings.filterwarnings("ignore", message=message)
        check_env_of_stable_baselines(env)


# ---------------------------------------------------------------- spaces and names


@every_id
@with_and_without_candidates
def test_spaces(make, env_id, pairs):
    env = make(env_id, **pairs)
    slots, dim = SLOTS[env_id], 10  # of jets, whose merger is known
    if env_id != "HTM-Jets-v0":
        dim = embedding_dim_of(env_id, env.unwrapped.simulator.dataset)
    assert env.action_space == gym.spaces.Discrete(slots * (K if pairs else slots - 1))
    spaces = env.observation_space.spaces
    shapes = {key: (space.shape, space.dtype) for key, space in spaces.items()}
    assert shapes == {
        "tokens": ((slots, dim), np.float32),
        "active": ((slots,), np.int8),
        "leaf_counts": ((slots,), np.int32),
        **({"candidates": ((slots, K), np.int32)} if pairs else {}),
    }
    assert all(
        np.isfinite(space.low).all() and np.isfinite(space.high).all() for space in spaces.values()
    )
    for step in play(env, seed=0):
        assert step[0] in env.observation_space


@every_id
@with_and_without_candidates
def test_an_episode_merges_down_to_one_root(make, env_id, pairs):
    env = make(env_id, **pairs)
    steps = play(env, seed=1)
    observation, info = steps[0]
    n = info["num_active"]
    assert observation["active"].sum() == n == (observation["leaf_counts"] == 1).sum()
    assert len(steps) == n  # the start and n - 1 merges
    for merges, (observation, *rest) in enumerate(steps):
        info = rest[-1]
        active = observation["active"].astype(bool)
        assert active.sum() == info["num_active"] == n - merges
        if pairs:
            listed = observation["candidates"] >= 0
            assert np.array_equal(info["action_mask"], listed.ravel() | (active.sum() == 1))
            assert np.array_equal(listed.any(1), active & (active.sum() > 1))
        elif active.sum() == 1:
            assert info["action_mask"].all()  # nothing is legal, but clients draw from a mask
        else:
            assert info["action_mask"].sum() == (n - merges) * (n - merges - 1)
        assert observation["leaf_counts"].sum() == n
        assert not observation["tokens"][~active].any()
        assert observation["tokens"][active].any()
    flags = [(terminated, truncated) for _, _, terminated, truncated, _ in steps[1:]]
    assert flags == [(False, False)] * (n - 2) + [(True, False)]
    tree = env.unwrapped.merge_tree()
    assert isinstance(tree, MergeTree)
    assert len(tree.merges) == n - 1


@every_id
@with_and_without_candidates
def test_info_has_the_same_keys_from_reset_and_step(make, env_id, pairs):
    env = make(env_id, **pairs)
    _, info = env.reset(seed=0)
    step_info = env.step(int(legal_actions(info)[0]))[4]
    illegal_info = env.step(illegal_action(step_info))[4]
    for found in (info, step_info, illegal_info):
        assert set(found) == {"action_mask", "error", "num_active", "invalid", "executed_action"}
        assert found["action_mask"].dtype == np.int8
        assert found["action_mask"].shape == (env.action_space.n,)
        scalars = {key: value for key, value in found.items() if key != "action_mask"}
        assert {key: (value.dtype, value.shape) for key, value in scalars.items()} == {
            "error": (np.float32, ()),
            "num_active": (np.int64, ()),
            "invalid": (bool, ()),
            "executed_action": (np.int64, ()),
        }
    assert [found["invalid"] for found in (info, step_info, illegal_info)] == [False, False, True]


def test_the_mask_can_be_left_out_of_info(make):
    env = small(make, mask_in_info=False)
    _, info = env.reset(seed=0)
    assert set(info) == {"error", "num_active", "invalid", "executed_action"}
    masks = env.unwrapped.action_masks()
    assert masks.dtype == bool
    assert masks.shape == (42,)
    assert set(env.step(int(np.flatnonzero(masks)[0]))[4]) == set(info)


def test_the_public_names():
    assert set(htm_env.__all__) >= {
        "HTMAutoencoder",
        "MergeTree",
        "make_dataset",
        "TokenBatch",
        "pair_to_action",
        "action_to_pair",
        "candidate_action",
        "candidate_pair",
    }
    assert all(hasattr(htm_env, name) for name in htm_env.__all__)


# ---------------------------------------------------------------- seeds and keys


@every_id
@with_and_without_candidates
def test_a_seed_fixes_this_episode_and_all_that_follow(make, env_id, pairs):
    first, second = make(env_id, **pairs), make(env_id, **pairs)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    episodes = play(first, seed=7, episodes=3)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert same(episodes, play(second, seed=7, episodes=3))
    assert same(episodes, play(first, seed=7, episodes=3))
    assert not same(episodes[0], play(first, seed=8)[0])
    starts = [step[0]["tokens"] for step in episodes if len(step) == 2]
    assert not np.array_equal(starts[0], starts[1])


def test_playing_leaves_the_global_generators_alone(make):
    env = small(make)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    play(env, seed=0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_a_key_names_an_episode(make):
    env = small(make, split="test")
    keys = env.unwrapped.fixed_keys(3)
    assert keys.tolist() == [0, 1, 2]
    starts = [env.reset(options={"key": int(key)})[0]["tokens"] for key in keys]
    again = [env.reset(seed=9, options={"key": int(key)})[0]["tokens"] for key in keys]
    assert np.array_equal(starts, again)
    assert not np.array_equal(starts[0], starts[1])
    env.reset(seed=0, options={"key": 5})
    after_key = env.reset()[0]
    env.reset(seed=0)
    assert same(after_key, env.reset()[0])  # a key does not disturb what the seed says
    for key in (-1, 2**62, 1.9, "7", True, None):
        with pytest.raises(ValueError, match="the key of an episode is"):
            env.reset(options={"key": key})


def test_finite_data_has_no_more_fixed_keys_than_rows(make):
    env = make("HTM-v0", split="test")  # two of twenty rows
    assert env.unwrapped.fixed_keys(100).tolist() == [0, 1]
    with pytest.raises(ValueError, match="count is 0"):
        env.unwrapped.fixed_keys(0)


def test_splits_differ(make):
    starts = {
        split: small(make, split=split).reset(seed=0)[0]["tokens"].tobytes()
        for split in ("train", "validation", "test")
    }
    assert len(set(starts.values())) == 3


# ---------------------------------------------------------------- fresh copies


@with_and_without_candidates
def test_writing_into_what_was_returned_changes_nothing_later(make, pairs):
    clean, spoiled = (
        small(make, observe=("centroids", "order"), **pairs),
        small(make, observe=("centroids", "order"), **pairs),
    )

    def spoil(observation, info):
        for array in (*observation.values(), info["action_mask"]):
            array[...] = 77

    expected, expected_info = clean.reset(seed=0)
    observation, info = spoiled.reset(seed=0)
    assert same(observation, expected)
    while info["num_active"] > 1:
        action = int(legal_actions(expected_info)[-1])
        spoil(observation, info)
        spoiled.unwrapped.action_masks()[...] = False
        expected, *expected_rest, expected_info = clean.step(action)
        observation, *rest, info = spoiled.step(action)
        assert same((observation, rest, info), (expected, expected_rest, expected_info))


@with_and_without_candidates
def test_later_steps_do_not_change_earlier_observations(make, pairs):
    env = small(make, **pairs)
    kept = []
    observation, info = env.reset(seed=0)
    while info["num_active"] > 1:
        kept.append((observation, {key: value.copy() for key, value in observation.items()}))
        observation, _, _, _, info = env.step(int(legal_actions(info)[0]))
    env.reset()
    assert len(kept) > 1
    assert all(same(now, then) for now, then in kept)


# ---------------------------------------------------------------- actions


@with_and_without_candidates
def test_every_legal_action_works_and_puts_the_parent_in_its_first_slot(make, pairs):
    env = make("HTM-v0", **pairs)
    _, info = env.reset(options={"key": 3})
    assert len(legal_actions(info)) == 5 * (K if pairs else 4)
    for action in legal_actions(info):
        before, _ = env.reset(options={"key": 3})
        after, _, terminated, truncated, info = env.step(int(action))
        if pairs:
            first, second = candidate_pair(int(action), before["candidates"])
        else:
            first, second = action_to_pair(int(action), 5)
        expected = before["leaf_counts"].copy()
        expected[first], expected[second] = 2, 0
        assert after["leaf_counts"].tolist() == expected.tolist()
        others = [slot for slot in range(5) if slot not in (first, second)]
        assert np.array_equal(after["tokens"][others], before["tokens"][others])
        assert env.unwrapped.merge_tree().merges.tolist() == [[first, second]]
        assert (terminated, truncated, info["invalid"]) == (False, False, False)


def test_the_embedding_of_a_merge_is_the_mergers_own(make):
    """Ordered: the merger sees the first slot first."""
    env = make("HTM-v0")
    before, _ = env.reset(seed=0)
    after = env.step(pair_to_action(3, 1, 5))[0]
    with torch.no_grad():
        pair = torch.from_numpy(np.concatenate([before["tokens"][3], before["tokens"][1]]))
        merged = env.unwrapped.autoencoder.merger(pair).numpy()
    assert np.allclose(after["tokens"][3], merged, atol=1e-6)


@with_and_without_candidates
def test_illegal_actions_are_penalised_and_change_nothing_until_truncation(make, pairs):
    env = small(make, heights=(2,), max_invalid_actions=3, invalid_penalty=-0.75, **pairs)
    _, info = env.reset(seed=0)
    before, _, _, _, info = env.step(int(legal_actions(info)[0]))
    action = illegal_action(info)
    for attempt in (1, 2, 3):
        after, reward, terminated, truncated, after_info = env.step(action)
        assert same(after, before)
        assert reward == -0.25  # three of them earn invalid_penalty
        assert after_info["invalid"]
        assert not terminated
        assert truncated is (attempt == 3)
        assert after_info["error"] == info["error"]
        assert np.array_equal(after_info["action_mask"], info["action_mask"])
    _, info = env.reset()
    info = env.step(int(legal_actions(info)[0]))[4]
    assert env.step(illegal_action(info))[3] is False  # the count starts anew


def test_invalid_actions_count_over_the_whole_episode(make):
    env = small(make, heights=(3,), max_invalid_actions=2)
    _, info = env.reset(seed=0)
    info = env.step(int(legal_actions(info)[0]))[4]
    info = env.step(illegal_action(info))[4]
    info = env.step(int(legal_actions(info)[0]))[4]
    assert not info["invalid"]
    assert env.step(illegal_action(info))[3] is True


def test_an_illegal_action_can_raise(make):
    env = small(make, heights=(2,), invalid_action="raise")
    env.reset(seed=0)
    env.step(pair_to_action(0, 2, 3))
    with pytest.raises(ValueError, match=r"merges slots \(0, 2\), but the active slots are \[0, 1"):
        env.step(pair_to_action(0, 2, 3))
    assert env.step(pair_to_action(0, 1, 3))[2]  # the episode goes on


@pytest.mark.parametrize("action", [-1, 42])
def test_an_action_outside_the_space_is_refused(make, action):
    env = small(make).unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match=rf"action {action} is not in Discrete\(42\)"):
        env.step(action)


def test_numpy_actions_work(make):
    env = small(make).unwrapped
    _, info = env.reset(seed=0)
    assert env.step(legal_actions(info)[0])[4]["num_active"] == info["num_active"] - 1


def test_stepping_without_a_start_or_after_the_end(make):
    env = small(make).unwrapped
    with pytest.raises(ResetNeeded, match="call reset first"):
        env.step(0)
    with pytest.raises(ResetNeeded, match="call reset first"):
        env.action_masks()
    play(env, seed=0)
    with pytest.raises(ResetNeeded, match="the episode is over"):
        env.step(0)
    env.reset()


# ---------------------------------------------------------------- rewards


@every_id
@with_and_without_candidates
@pytest.mark.parametrize("reward", ["incremental", "terminal"])
def test_the_return_is_the_error_at_the_start_minus_the_error_at_the_end(
    make, env_id, reward, pairs
):
    steps = play(make(env_id, reward=reward, **pairs), seed=2)
    errors = [step[-1]["error"] for step in steps]
    rewards = [step[1] for step in steps[1:]]
    assert sum(rewards) == pytest.approx(errors[0] - errors[-1], abs=1e-5)
    if reward == "incremental":
        assert rewards == pytest.approx(-np.diff(errors), abs=1e-5)
    else:
        assert not any(rewards[:-1])


@pytest.mark.parametrize("env_id", every(name for name in IDS if name != "HTM-Jets-v0"))
@with_and_without_candidates
def test_the_error_is_that_of_the_plain_loop(make, env_id, pairs):
    env = make(env_id, observe=("leaves",), **pairs).unwrapped
    steps = play(env, seed=3)
    n, leaves = steps[0][-1]["num_active"], torch.from_numpy(steps[0][0]["leaves"])
    tokens = leaves[:n] * env.autoencoder.token_std + env.autoencoder.token_mean
    forest = oracle.PlainForest(n)
    forest.merges = [tuple(pair) for pair in env.merge_tree().merges.tolist()]
    forest.slots = {0: 2 * n - 2}
    std = env.simulator.dataset.std
    expected = oracle.nmse(env.autoencoder, tokens, forest, std)
    assert steps[-1][-1]["error"] == pytest.approx(expected, rel=1e-4)


def test_the_default_reward_of_keys_counts_right_merges(make):
    """The data's own merges: the four pairs earn a quarter each, and what joins them nothing."""
    env = make("HTM-Keys-v0")
    env.reset(options={"key": 5})
    batch = env.unwrapped.simulator.dataset.episodes(np.array([5]))
    actions = merges_to_actions(batch.merges, batch.num_tokens)[0].tolist()
    assert [env.step(action)[1] for action in actions] == 4 * [0.25] + 4 * [0.0]
    errors = [step[-1]["error"] for step in play(make("HTM-Keys-v0", reward="incremental"), seed=2)]
    rewards = [step[1] for step in play(make("HTM-Keys-v0", reward="incremental"), seed=2)[1:]]
    assert rewards == pytest.approx(-np.diff(errors), abs=1e-5)


@pytest.mark.parametrize("env_id", ["HTM-Digits-v0", "HTM-v0"])
def test_without_clades_no_merge_is_right(make, env_id):
    with pytest.raises(ValueError, match=f"{env_id} has no hierarchy; choose from .*'terminal'"):
        make(env_id, reward="right_merges")


def test_one_step_rewards_are_never_positive(make):
    steps = play(small(make, reward="one_step"), seed=0)
    assert all(step[1] < 0 for step in steps[1:])


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("option", "choices"),
    [
        ({"reward": "sparse"}, ["incremental", "terminal", "one_step"]),
        ({"split": "dev"}, ["train", "validation", "test"]),
        ({"invalid_action": "ignore"}, ["penalize", "raise", "remap"]),
        ({"observe": ("tokens",)}, ["centroids", "order"]),
        (
            {"observe": "order"},
            ["action_mask", "centroids", "leaf_order", "leaves", "order", "owners"],
        ),
        ({"candidates": "some"}, ["all", "knn"]),
        ({"neighbours": "nodes"}, ["embeddings", "centroids"]),
    ],
)
def test_an_unknown_option_lists_the_choices(env_kwargs, option, choices):
    with pytest.raises(ValueError, match=choices[0]) as error:
        gym.make("HTM-Trees-v0", **env_kwargs("HTM-Trees-v0"), **option)
    assert all(choice in str(error.value) for choice in choices)


def test_an_unknown_render_mode_lists_the_choices():
    with pytest.raises(ValueError, match=r"'svg'; choose from \['rgb_array', 'ansi', 'human'\]"):
        htm_env.env.HTMEnv("HTM-Trees-v0", autoencoder="untrained", render_mode="svg")


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (
            {"invalid_penalty": float("nan")},
            ValueError,
            "invalid_penalty is nan: expected a finite",
        ),
        ({"max_invalid_actions": 0}, ValueError, "max_invalid_actions is 0: expected a whole"),
        ({"candidates": "knn", "k": 0}, ValueError, "k is 0: expected a whole number from 1"),
        ({"k": -2}, ValueError, "k is -2: expected a whole number from 1"),
        ({"device": "abacus"}, ValueError, "device 'abacus' cannot be used here"),
        ({"device": "meta"}, ValueError, "its tensors hold no numbers"),
        ({"candidates": "knn", "k": 2**40}, ValueError, "k is 1099511627776"),
        ({"autoencoder": "gone.safetensors"}, FileNotFoundError, "gone.safetensors"),
        ({"autoencoder": "untrained", "embedding_dim": 0}, ValueError, "embedding_dim is 0"),
    ],
)
def test_wrong_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        gym.make("HTM-Trees-v0", **{"autoencoder": "untrained", **kwargs})


def test_the_users_own_data_has_no_pretrained_weights(make):
    with pytest.raises(ValueError, match=r"HTM-v0 has no pretrained autoencoder; .*HTM-Trees-v0"):
        make("HTM-v0", autoencoder="pretrained")


def test_the_users_own_data_is_untrained_by_default(own_data):
    for env in (
        gym.make("HTM-v0", dataset=own_data).unwrapped,
        htm_env.env.HTMEnv("HTM-v0", dataset=own_data),
        htm_env.env.HTMEnv(htm_env.EnvConfig("HTM-v0", dataset_kwargs={"dataset": own_data})),
    ):
        assert env.autoencoder.embedding_dim == 8  # for sets of 15 numbers
        assert env.autoencoder.token_dim == 3


def test_arguments_beside_a_configuration_are_its_fields_or_the_datasets():
    config = htm_env.EnvConfig(
        "HTM-Trees-v0", "untrained", dataset_kwargs={"heights": (2, 3), "num_trees": (1,)}
    )
    for environment in (htm_env.env.HTMEnv, htm_env.vector_env.HTMVectorEnv):
        simulator = environment(config, heights=(3,), split="test").simulator
        assert simulator.config.split == simulator.dataset.split == "test"
        assert simulator.config.dataset_kwargs == {"heights": (3,), "num_trees": (1,)}
        assert simulator.dataset.geometry.heights == (3,)
    assert config.split == "train" and config.dataset_kwargs["heights"] == (2, 3)
    assert htm_env.env.HTMEnv("htm_env:HTM-Trees-v0").autoencoder.embedding_dim == 8


# ---------------------------------------------------------------- autoencoders


def test_an_autoencoder_is_used_as_it_is_and_may_be_trained_meanwhile(make):
    autoencoder = small_autoencoder(2, embedding_dim=7)
    env = small(make, autoencoder=autoencoder)
    assert env.unwrapped.autoencoder is autoencoder
    assert env.observation_space["tokens"].shape == (7, 7)
    before, info = env.reset(seed=0)
    with torch.no_grad():
        for weight in autoencoder.parameters():
            weight.mul_(2.0)
    after, after_info = env.reset(seed=0)
    assert not np.allclose(before["tokens"], after["tokens"])
    assert after_info["error"] != info["error"]


def test_an_autoencoder_from_a_file(make, tmp_path):
    autoencoder = small_autoencoder(2)
    autoencoder.save(tmp_path / "mine.safetensors")
    for path in (tmp_path / "mine.safetensors", str(tmp_path / "mine.safetensors")):
        env = small(make, autoencoder=path)
        assert env.unwrapped.autoencoder.weights_hash() == autoencoder.weights_hash()


def test_the_untrained_autoencoder_is_always_the_same_and_knows_the_data(make):
    env, again = small(make).unwrapped, small(make).unwrapped
    assert env.autoencoder.weights_hash() == again.autoencoder.weights_hash()
    assert torch.equal(env.autoencoder.token_mean, env.simulator.dataset.mean)
    assert torch.equal(env.autoencoder.token_std, env.simulator.dataset.std)
    assert small(make, embedding_dim=3).observation_space["tokens"].shape == (7, 3)


def test_an_autoencoder_for_other_tokens_is_refused(make):
    with pytest.raises(ValueError, match=r"tokens of 4 coordinates, but those of .* have 2"):
        small(make, autoencoder=HTMAutoencoder(4, 8, 16))


def test_an_embedding_dimension_that_contradicts_the_weights_is_refused(make):
    with pytest.raises(ValueError, match="embedding_dim is 9, but the autoencoder's is 8"):
        small(make, autoencoder=HTMAutoencoder(2, 8, 16), embedding_dim=9)


def test_embeddings_that_explode_stay_in_the_observation_space(make):
    autoencoder = small_autoencoder(2)
    with torch.no_grad():
        for weight in autoencoder.lifter.parameters():
            weight.mul_(1e6)
    env = small(make, autoencoder=autoencoder)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    assert np.abs(observation["tokens"]).max() == 1e4


# ---------------------------------------------------------------- extra observations


@every_id
def test_centroids_and_order(make, env_id):
    env = make(env_id, observe=("centroids", "order"))
    slots = SLOTS[env_id]
    assert env.observation_space["centroids"].shape == (slots, TOKEN_DIMS[env_id])
    assert env.observation_space["order"].dtype == np.int32
    for step in play(env, seed=0):
        observation = step[0]
        assert observation in env.observation_space
        active = observation["active"].astype(bool)
        n = int(active.sum())
        assert sorted(observation["order"][active]) == list(range(n))
        assert (observation["order"][~active] == -1).all()
        assert not observation["centroids"][~active].any()


def test_a_centroid_is_the_mean_of_the_tokens_under_its_slot(make):
    env = make("HTM-v0", observe=("centroids",)).unwrapped
    start, _ = env.reset(options={"key": 3})
    dataset = env.simulator.dataset
    tokens = dataset.episodes(np.array([3])).tokens[0].numpy()
    standardised = (tokens - dataset.mean.numpy()) / dataset.std.numpy()
    assert np.allclose(start["centroids"], standardised, atol=1e-5)
    env.step(pair_to_action(0, 1, 5))
    merged = env.step(pair_to_action(4, 0, 5))[0]["centroids"]
    assert np.allclose(merged[4], standardised[[0, 1, 4]].mean(axis=0), atol=1e-5)
    assert np.allclose(merged[2], standardised[2], atol=1e-5)


@every_id
def test_owners_say_under_which_slot_each_token_stands(make, env_id):
    env = make(env_id, observe=("leaves", "owners"))
    observation, info = env.reset(options={"key": 3})
    inner, done, choices = env.unwrapped, False, np.random.default_rng(0)
    batch = inner.simulator.dataset.episodes(np.array([3]))
    present = batch.present[0].numpy()
    under = {slot: {slot} for slot in np.flatnonzero(present).tolist()}
    standardised = inner.autoencoder.standardise(batch.tokens)[0].numpy()
    while not done:
        assert observation in env.observation_space
        assert np.allclose(observation["leaves"][present], standardised[present], atol=1e-5)
        assert not observation["leaves"][~present].any()
        owners = observation["owners"]
        assert (owners[~present] == -1).all()
        counts = np.bincount(owners[present], minlength=len(present))
        assert counts.tolist() == observation["leaf_counts"].tolist()
        for slot, tokens in under.items():
            assert set(np.flatnonzero(owners == slot).tolist()) == tokens
        action = choices.choice(np.flatnonzero(info["action_mask"]))
        first, second = action_to_pair(action, len(present))
        under[int(first)] |= under.pop(int(second))
        observation, _, done, _, info = env.step(action)


def test_the_order_of_what_ties_is_that_of_the_first_token():
    """Tokens on one spot; slot 3, into which token 0 was merged, then comes first."""
    points = np.ones((10, 4, 2)) * np.arange(10)[:, None, None]
    env = gym.make("HTM-v0", dataset=points, observe=("order",))
    assert env.reset(seed=0)[0]["order"].tolist() == [0, 1, 2, 3]
    assert env.step(pair_to_action(3, 0, 4))[0]["order"].tolist() == [-1, 1, 2, 0]


def test_the_leaf_order_is_that_of_the_leftmost_leaves(make):
    env = make("HTM-v0", observe=("leaf_order",))
    assert env.reset(seed=0)[0]["leaf_order"].tolist() == [0, 1, 2, 3, 4]
    env.step(pair_to_action(4, 1, 5))  # slot 4 now has tokens 1 and 4
    observation = env.step(pair_to_action(2, 3, 5))[0]
    assert observation["leaf_order"].tolist() == [0, -1, 2, -1, 1]


def test_the_order_follows_the_z_curve():
    """Quadrants of the plane, in Morton's order: the first axis is the lowest bit."""
    points = np.array([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    env = gym.make(
        "HTM-v0", dataset=np.repeat(points[None], 10, axis=0), observe=("centroids", "order")
    )
    observation, _ = env.reset(seed=0)
    by_order = observation["centroids"][np.argsort(observation["order"])]
    assert by_order.tolist() == [[-1, -1], [1, -1], [-1, 1], [1, 1]]


# ---------------------------------------------------------------- rendering


@every_id
def test_frames_show_the_state_and_change_with_it(make, env_id):
    env = make(env_id, render_mode="rgb_array")
    _, info = env.reset(seed=0)
    start = env.render()
    assert start.dtype == np.uint8
    assert start.ndim == 3
    assert start.shape[2] == 3
    assert len(np.unique(start)) > 2
    assert np.array_equal(env.render(), start)
    env.step(int(legal_actions(info)[0]))
    merged = env.render()
    assert merged.shape == start.shape
    assert not np.array_equal(merged, start)


@every_id
def test_text_shows_the_forest(make, env_id):
    env = make(env_id, render_mode="ansi")
    _, info = env.reset(seed=0)
    n = info["num_active"]
    lines = env.render().splitlines()
    assert len(lines) == 1 + n
    assert f"tokens {n}" in lines[0]
    env.step(int(legal_actions(info)[0]))
    text = env.render()
    assert f"node {n}" in text
    assert len(text.splitlines()) == 2 + n
    assert "merges 1" in text


def test_the_window_follows_every_step(make, frames_shown):
    env = small(make, heights=(2,), render_mode="human")
    _, info = env.reset(seed=0)
    assert len(frames_shown) == 1
    env.step(int(legal_actions(info)[0]))
    assert len(frames_shown) == 2
    assert not np.array_equal(*frames_shown)
    assert env.render() is None
    env.close()
    env.close()


def test_rendering_without_a_mode_says_so(make):
    env = small(make).unwrapped
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="without a render_mode"):
        assert env.render() is None


# ---------------------------------------------------------------- wrappers


def test_recording_a_video(make, tmp_path):
    env = gym.wrappers.RecordVideo(
        small(make, heights=(2,), render_mode="rgb_array"),
        str(tmp_path / "videos"),
        episode_trigger=lambda episode: episode == 0,
        disable_logger=True,
    )
    play(env, seed=0, episodes=2)
    env.close()
    (video,) = (tmp_path / "videos").glob("*.mp4")
    assert video.stat().st_size > 1000


def test_recording_statistics(make):
    env = gym.wrappers.RecordEpisodeStatistics(small(make))
    steps = play(env, seed=0)
    statistics = steps[-1][-1]["episode"]
    assert statistics["l"] == len(steps) - 1
    assert statistics["r"] == pytest.approx(sum(step[1] for step in steps[1:]), abs=1e-5)


def test_a_time_limit(make):
    env = gym.wrappers.TimeLimit(small(make, heights=(3,)), max_episode_steps=2)
    steps = play(env, seed=0)
    assert [step[2:4] for step in steps[1:]] == [(False, False), (False, True)]
    env.reset()


def test_flattening_observations(make):
    env = gym.wrappers.FlattenObservation(small(make))
    observation, _ = env.reset(seed=0)
    assert observation.shape == (7 * 8 + 7 + 7,)
    assert observation in env.observation_space


def test_an_id_with_its_module_needs_no_import():
    code = (
        "import gymnasium as gym\n"
        "env = gym.make('htm_env:HTM-Trees-v0', autoencoder='untrained')\n"
        "observation, info = env.reset(seed=0)\n"
        "vector = gym.make_vec('htm_env:HTM-Trees-v0', num_envs=2, autoencoder='untrained')\n"
        "assert vector.reset(seed=0)[0]['tokens'].shape == (2, 15, 8)\n"
        "print(observation['tokens'].shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(15, 8)"
    assert not done.stderr.strip()


def test_registering_twice_is_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        htm_env.register_environments()
    assert set(IDS) <= set(gym.registry)
