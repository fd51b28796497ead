"""One episode in numpy against a batch of one row; weights that change; copies of a state."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import small_autoencoder
from torch import nn

from htm_env.autoencoder import HTMAutoencoder, ResidualNetwork, array_function
from htm_env.env import HTMEnv
from htm_env.vector_env import HTMVectorEnv


def sets() -> list[np.ndarray]:
    """Ten sets of three tokens and ten of seven."""
    generator = np.random.default_rng(0)
    return [generator.normal(size=(3 + 4 * (row % 2), 3)) for row in range(20)]


def single(**kwargs) -> HTMEnv:
    return HTMEnv("HTM-v0", dataset=sets(), **{"autoencoder": small_autoencoder(3), **kwargs})


def play(env: HTMEnv, seed: int = 0, limit: int = 99) -> list[tuple]:
    """All that is seen in the rest of an episode of random legal actions."""
    choices, seen, done = np.random.default_rng(seed), [], False
    while not done and len(seen) < limit:
        seen.append(env.step(int(choices.choice(np.flatnonzero(env.action_masks())))))
        done = seen[-1][2]
    return seen


def assert_close(one: dict, batch: dict) -> None:
    """To a few units in the last place of numbers about 1."""
    assert set(one) == {key for key in batch if not key.startswith("_")}
    for key, value in one.items():
        assert (value.dtype, value.shape) == (batch[key].dtype, batch[key][0].shape), key
        np.testing.assert_allclose(value, batch[key][0], rtol=0, atol=2e-6, err_msg=key)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reward": "terminal", "observe": ("action_mask", "centroids", "owners")},
        {"reward": "one_step", "candidates": "knn", "k": 2},
        {"candidates": "knn", "k": 3, "neighbours": "centroids", "observe": ("action_mask",)},
        {"autoencoder": HTMAutoencoder(3, 5, 16, "mlp", generator=torch.Generator())},
        {"categorical": {2: 2}, "autoencoder": "untrained"},
    ],
    ids=["plain", "extras", "knn", "centroids", "mlp", "categories"],
)
@pytest.mark.parametrize("in_arrays", [True, False])
def test_one_episode_is_a_batch_of_one_row(options, in_arrays):
    """In numpy, and as away from the processor."""
    data = sets()
    if "categorical" in options:
        data = [np.where([False, False, True], tokens > 0, tokens) for tokens in data]
    kwargs = {"dataset": data, "autoencoder": small_autoencoder(3), **options}
    env = HTMEnv("HTM-v0", **kwargs)
    env.simulator.in_arrays = in_arrays
    batch = HTMVectorEnv("HTM-v0", num_envs=1, autoreset_mode="Disabled", **kwargs)
    choices = np.random.default_rng(0)
    for seed in range(4):
        observation, info = env.reset(seed=seed)
        observations, infos = batch.reset(seed=seed)
        done = False
        while not done:
            assert_close(observation, observations)
            assert_close(info, infos)
            action = int(choices.choice(np.flatnonzero(info["action_mask"])))
            observation, reward, done, _, info = env.step(action)
            observations, rewards, ends, _, infos = batch.step(np.array([action]))
            assert reward == pytest.approx(rewards[0], abs=2e-6)
            assert done == ends[0]
        assert_close(observation, observations)


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize(
    "network",
    [
        ResidualNetwork(4, 16, 3),
        nn.Linear(4, 3),
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
        nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Sequential(nn.Linear(8, 3))),
    ],
    ids=["residual", "linear", "mlp", "another"],
)
@torch.no_grad()
def test_a_function_of_arrays_is_the_network(network):
    """Also for inputs at which an exponential would overflow."""
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    rows[0] *= 1e3
    found = array_function(network)(rows.numpy())
    np.testing.assert_allclose(found, network(rows).numpy(), rtol=1e-5, atol=1e-5)


def doubled(network: ResidualNetwork) -> None:
    network.value.weight.mul_(2.0)


def elsewhere(network: ResidualNetwork) -> None:
    network.value.weight.data = network.value.weight.data * 2.0


def another_parameter(network: ResidualNetwork) -> None:
    network.value.weight = nn.Parameter(network.value.weight * 2.0)


def another_layer(network: ResidualNetwork) -> None:
    network.value = nn.Linear(4, network.value.out_features)


@pytest.mark.parametrize("change", [doubled, elsewhere, another_parameter, another_layer])
@torch.no_grad()
def test_whatever_happens_to_weights_is_seen(change):
    network, rows = ResidualNetwork(4, 16, 3), torch.ones(2, 4)
    before = array_function(network)(rows.numpy())
    change(network)
    after = array_function(network)(rows.numpy())
    assert not np.allclose(before, after)
    np.testing.assert_allclose(after, network(rows).numpy(), atol=1e-6)


# ---------------------------------------------------------------- copies


def test_a_state_is_restored_however_often():
    """Search from the same state sees the same, and what follows the episode is the same too."""
    env = single(max_invalid_actions=2)
    env.reset(seed=1)
    play(env, limit=1)
    env.step(int(np.argmin(env.action_masks())))
    state = env.clone_state()
    seen = play(env), env.reset()[0]
    for _ in range(2):
        env.restore_state(state)
        again = play(env), env.reset()[0]
        for first, second in zip(seen[0], again[0], strict=True):
            assert first[1:4] == second[1:4]
            np.testing.assert_array_equal(first[0]["tokens"], second[0]["tokens"])
        np.testing.assert_array_equal(seen[1]["tokens"], again[1]["tokens"])
    env.restore_state(state)
    assert env.step(int(np.argmin(env.action_masks())))[3]  # the second illegal action
    other = HTMEnv("HTM-Digits-v0", autoencoder="untrained", embedding_dim=5)
    other.reset()
    slots, dim = state.population.embeddings.shape[1:]
    message = rf"the state has {slots} slots of {dim} numbers; expected \d+ of 5"
    with pytest.raises(ValueError, match=message):
        other.restore_state(state)


def test_a_deep_copy_has_an_autoencoder_of_its_own():
    env = single()
    env.reset(seed=1)
    other = copy.deepcopy(env)
    with torch.no_grad():
        for weight in env.autoencoder.parameters():
            weight.mul_(1.5)
    changed, unchanged = play(env), play(other)
    assert not np.allclose(changed[-1][0]["tokens"], unchanged[-1][0]["tokens"])
    fresh = single()
    fresh.reset(seed=1)
    np.testing.assert_array_equal(play(fresh)[-1][0]["tokens"], unchanged[-1][0]["tokens"])
