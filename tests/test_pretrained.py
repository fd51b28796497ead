"""The weights that ship with the package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from safetensors import safe_open

from htm_env import make_dataset
from htm_env.env import HTMEnv
from htm_env.weights import (
    EMBEDDING_DIMS,
    FOLDER,
    SHIPPED,
    pretrained_autoencoder,
    weights_path,
)

every_id = pytest.mark.parametrize("env_id", SHIPPED)


def test_four_ids_have_weights_of_less_than_four_megabytes_together():
    paths = [weights_path(env_id) for env_id in SHIPPED]
    assert len(paths) == 4
    assert sum(path.stat().st_size for path in paths) < 4_000_000


def test_the_folder_holds_nothing_that_could_be_code():
    """Safetensors only: JSON and numbers, never a pickle."""
    weights = {path.name for path in FOLDER.iterdir() if path.suffix not in {".py", ""}}
    assert weights == {weights_path(env_id).name for env_id in SHIPPED}
    for env_id in SHIPPED:
        start = weights_path(env_id).read_bytes()
        length = int.from_bytes(start[:8], "little")
        header = json.loads(start[8 : 8 + length])
        assert {entry["dtype"] for name, entry in header.items() if name[:2] != "__"} == {"F32"}


@every_id
def test_weights_load_with_the_default_bottleneck_and_the_datas_statistics(env_id):
    autoencoder, dataset = pretrained_autoencoder(env_id), make_dataset(env_id)
    assert autoencoder.embedding_dim == EMBEDDING_DIMS[env_id]
    assert autoencoder.token_dim == dataset.token_dim
    np.testing.assert_allclose(autoencoder.token_mean, dataset.mean, rtol=1e-5)
    np.testing.assert_allclose(autoencoder.token_std, dataset.std, rtol=1e-5)
    assert all(bool(weight.isfinite().all()) for weight in autoencoder.state_dict().values())


@every_id
def test_the_hash_is_the_same_at_every_load(env_id):
    code = (
        f"from htm_env.weights import *; print(pretrained_autoencoder({env_id!r}).weights_hash())"
    )
    here = pretrained_autoencoder(env_id).weights_hash()
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert pretrained_autoencoder(env_id).weights_hash() == here == there.stdout.strip()


def test_the_hashes_differ_between_ids():
    assert len({pretrained_autoencoder(env_id).weights_hash() for env_id in SHIPPED}) == 4


@every_id
def test_the_configuration_travels_with_the_weights(env_id):
    with safe_open(weights_path(env_id), framework="pt") as file:
        config = json.loads(file.metadata()["htm_autoencoder"])
    assert config == pretrained_autoencoder(env_id).config


@every_id
def test_they_are_what_an_environment_uses_by_default(env_id):
    """And they are trained: random merges end far below 1, which is "predict the mean"."""
    env = gym.make(env_id, split="test")
    assert env.unwrapped.autoencoder.weights_hash() == pretrained_autoencoder(env_id).weights_hash()
    choices, finals = np.random.default_rng(0), []
    for key in env.unwrapped.fixed_keys(20):
        _, info = env.reset(options={"key": int(key)})
        assert info["error"] < 0.1  # lifting and unlifting alone
        while info["num_active"] > 1:
            action = choices.choice(np.flatnonzero(info["action_mask"]))
            info = env.step(int(action))[-1]
        finals.append(info["error"])
    assert np.mean(finals) < 0.8


def test_other_geometry_keeps_the_weights():
    env = gym.make("HTM-Trees-v0", heights=(5,), separation_angle=90)
    expected = pretrained_autoencoder("HTM-Trees-v0").weights_hash()
    assert env.unwrapped.autoencoder.weights_hash() == expected
    assert env.observation_space["tokens"].shape == (31, 8)


def test_another_embedding_dimension_contradicts_them():
    with pytest.raises(ValueError, match="embedding_dim is 9, but the autoencoder's is 8"):
        gym.make("HTM-Trees-v0", embedding_dim=9)


def test_the_example_of_the_docstring_runs():
    (example,) = re.findall(r"```python\n(.*?)```", HTMEnv.__doc__, flags=re.DOTALL)
    names: dict = {}
    exec(textwrap.dedent(example), names)
    observation, info = names["env"].reset(seed=0)
    assert observation["tokens"].shape == (7, 8)
    assert info["num_active"] == 7


def test_the_page_of_fixed_orders_names_the_weights_that_ship():
    """Its table of what fixed orders earn was made with them."""
    page = (Path(__file__).parent.parent / "docs" / "fixed_orders.md").read_text()
    for env_id in SHIPPED:
        assert pretrained_autoencoder(env_id).weights_hash() in page
