"""Specifications as JSON, with data and weights in files; keywords that do not exist."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import small_autoencoder
from gymnasium.envs.registration import EnvSpec

import htm_env
from htm_env.env import HTMEnv
from htm_env.vector_env import HTMVectorEnv


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A folder of caches of the test's own."""
    monkeypatch.setenv("HTM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def ragged() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(size=(2 + row % 3, 3)) for row in range(20)]


def again(env: gym.Env) -> gym.Env:
    return gym.make(EnvSpec.from_json(env.spec.to_json()))


def assert_same_episodes(env: gym.Env, other: gym.Env) -> None:
    for seed in range(3):
        start, first = env.reset(seed=seed)
        second_start, second = other.reset(seed=seed)
        action = int(first["action_mask"].argmax())
        np.testing.assert_equal((second_start, second), (start, first))
        assert env.step(action)[1] == other.step(action)[1]


@pytest.mark.parametrize(
    ("env_id", "arguments"),
    [
        ("HTM-Trees-v0", {"heights": (2, 3), "autoencoder": "untrained", "reward": "terminal"}),
        ("HTM-v0", {"dataset": ragged()}),
        ("HTM-v0", {"dataset": np.stack(ragged()[:1] * 10), "embedding_dim": 4}),
        ("HTM-Flat-v0", {"dataset": ragged(), "labels": [row % 2 for row in range(20)]}),
        (
            "HTM-v0",
            {
                "dataset": ragged(),
                "names": [f"row {row}" for row in range(20)],
                "split_of": ["train", "validation", "test", "train"] * 5,
                "observe": ("action_mask",),
                "weights": np.array([1.0, 2.0, 1.0]),
            },
        ),
    ],
    ids=["trees", "ragged", "array", "flat", "told"],
)
def test_an_environment_is_made_again_from_json(env_id, arguments, cache):
    env = gym.make(env_id, **arguments)
    other = again(env)
    assert_same_episodes(env, other)
    assert other.spec.to_json() == env.spec.to_json()
    assert len(list(cache.glob("*"))) == ("dataset" in arguments)  # once, however often


def test_what_was_told_of_rows_is_there_again():
    names = [f"row {row}" for row in range(20)]
    env = gym.make("HTM-v0", dataset=ragged(), names=names, split="test")
    dataset, found = (made.unwrapped.simulator.dataset for made in (env, again(env)))
    assert found.row_names == dataset.row_names
    assert found.split == "test"


def test_an_autoencoder_is_stored_as_it_is_at_the_time(cache):
    autoencoder = small_autoencoder(3)
    env = gym.make("HTM-v0", dataset=ragged(), autoencoder=autoencoder)
    assert env.unwrapped.autoencoder is autoencoder
    first = again(env)
    assert first.unwrapped.autoencoder.weights_hash() == autoencoder.weights_hash()
    assert_same_episodes(env, first)
    with torch.no_grad():
        autoencoder.lifter.skip.weight.mul_(2.0)
    second = again(env)
    assert second.unwrapped.autoencoder.weights_hash() == autoencoder.weights_hash()
    assert first.unwrapped.autoencoder.weights_hash() != autoencoder.weights_hash()
    assert len(list(cache.glob("*.safetensors"))) == 2
    assert len(list(cache.glob("*.npz"))) == 1


def test_wrappers_and_paths_are_in_the_json(tmp_path):
    small_autoencoder(2).save(tmp_path / "mine.safetensors")
    env = gym.wrappers.TimeLimit(
        gym.make("HTM-Trees-v0", heights=(2,), autoencoder=tmp_path / "mine.safetensors"), 1
    )
    spec = json.loads(env.spec.to_json())
    assert spec["kwargs"]["autoencoder"] == str(tmp_path / "mine.safetensors")
    other = again(env)
    other.reset(seed=0)
    assert other.step(0)[3]  # the time limit


def test_a_batch_has_a_specification_too():
    vector = gym.make_vec("HTM-v0", num_envs=2, dataset=ragged())
    assert json.loads(vector.spec.to_json())["kwargs"]["dataset"].endswith(".npz")


def test_a_relative_path_is_stored_as_an_absolute_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets").mkdir()
    for name in ("one.npy", "sets/part.npy"):
        np.save(tmp_path / name, np.zeros((10, 3, 2)) + np.arange(10)[:, None, None])
    small_autoencoder(2).save(tmp_path / "mine.safetensors")
    for dataset in ("one.npy", "sets", "sets/*.npy"):
        env = gym.make("HTM-v0", dataset=dataset, autoencoder="mine.safetensors")
        stored = json.loads(env.spec.to_json())["kwargs"]
        assert stored["dataset"] == str(tmp_path / dataset)
        assert stored["autoencoder"] == str(tmp_path / "mine.safetensors")
    env = gym.make("HTM-v0", dataset="one.npy", autoencoder="untrained")
    assert json.loads(env.spec.to_json())["kwargs"]["autoencoder"] == "untrained"


def test_a_reward_that_is_an_object_is_refused_and_goes_beside_the_specification():
    def after(transition):
        return transition.after.error

    env = gym.make("HTM-v0", dataset=ragged(), reward=after)
    with pytest.raises(ValueError, match="a reward of your own cannot be stored: leave it out"):
        env.spec.to_json()
    spec = EnvSpec.from_json(gym.make("HTM-v0", dataset=ragged()).spec.to_json())
    assert_same_episodes(env, gym.make(spec, reward=after))


# ---------------------------------------------------------------- unknown keywords


@pytest.mark.parametrize("environment", [HTMEnv, HTMVectorEnv])
def test_an_unknown_keyword_is_a_type_error_in_pythons_words(environment):
    name = environment.__name__
    message = rf"{name}\.__init__\(\) got an unexpected keyword argument 'frameskip'; expected .*k"
    with pytest.raises(TypeError, match=message) as error:
        environment("HTM-Trees-v0", frameskip=1)
    assert all(choice in str(error.value) for choice in ("heights", "reward", "autoencoder"))
    config = htm_env.EnvConfig("HTM-Trees-v0", "untrained")
    with pytest.raises(TypeError, match=r"'heigths'; expected .* \(did you mean 'heights'\?\)"):
        environment(config, heigths=(3,))
    with pytest.raises(ValueError, match=r"'remapp'; choose .* \(did you mean 'remap'\?\)"):
        environment("HTM-Trees-v0", invalid_action="remapp")
    with pytest.raises(ValueError, match=r"id 'HTM-Tree-v0': .* \(did you mean 'HTM-Trees-v0'\?\)"):
        environment("HTM-Tree-v0")
    with pytest.raises(TypeError, match="unexpected keyword argument 'dataset'"):
        gym.make("HTM-Trees-v0", dataset=[])


# ---------------------------------------------------------------- one copy of a batch


def test_methods_and_attributes_of_copies():
    batch = HTMVectorEnv("HTM-v0", num_envs=3, dataset=ragged())
    batch.reset(seed=1)
    masks = batch.call("action_masks")
    np.testing.assert_array_equal(np.stack(masks), batch.action_masks())
    batch.step(np.array([mask.argmax() for mask in masks]))
    assert [len(tree.merges) for tree in batch.call("merge_tree")] == [1, 1, 1]
    assert [keys.tolist() for keys in batch.call("fixed_keys", 2)] == [[0, 1]] * 3
    assert batch.get_attr("autoencoder") == (batch.autoencoder,) * 3
    assert batch.get_attr("action_space") == (batch.single_action_space,) * 3
    with pytest.raises(AttributeError, match=r"no method 'step'; choose from \['action_masks'"):
        batch.call("step", 0)
    with pytest.raises(AttributeError, match="gone"):
        batch.get_attr("gone")


def test_an_attribute_is_set_for_all_copies_or_none():
    batch = HTMVectorEnv("HTM-v0", num_envs=2, dataset=ragged())
    batch.set_attr("mask_in_info", False)
    assert "action_mask" not in batch.reset(seed=0)[1]
    batch.set_attr("mask_in_info", [True, True])
    for name in ("num_envs", "single_action_space", "autoreset_mode"):
        with pytest.raises(AttributeError, match=f"'{name}' is fixed once the copies are made"):
            batch.set_attr(name, getattr(batch, name))
    with pytest.raises(AttributeError, match="copies have no attribute 'mask_info'"):
        batch.set_attr("mask_info", True)
    assert "action_mask" in batch.reset(seed=0)[1]
    for values in ([True, False], [True]):
        with pytest.raises(ValueError, match="expected one value for all 2 copies"):
            batch.set_attr("mask_in_info", values)
