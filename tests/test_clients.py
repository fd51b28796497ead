"""The examples of clients run; those whose package is missing here run in ``make test-clients``."""

from __future__ import annotations

import os
import re
import runpy
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import pytest

import htm_env  # registers the ids

pytestmark = pytest.mark.filterwarnings("ignore")  # of what the libraries say of themselves
CLIENTS = Path(__file__).parent.parent / "examples" / "clients"


def needed(name: str) -> ModuleType:
    """A client's package; the test is skipped without it, but not where all are expected."""
    if "HTM_NEEDS_CLIENTS" in os.environ:  # as `make test-clients` sets it
        return import_module(name)
    return pytest.importorskip(name)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run an example as a script; what it prints."""

    def of(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(CLIENTS / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return of


def last_return(text: str) -> float:
    """The last mean return that is printed: an error's size, and never that of penalties."""
    found = float(re.findall(r"mean return .*?(-?\d\.\d+)", text)[-1])
    assert -0.5 < found <= 0.05
    return found


def test_every_example_has_a_test():
    tests = Path(__file__).read_text()
    for path in CLIENTS.glob("*.py"):
        assert f'"{path.stem}"' in tests


def test_a_missing_client_fails_where_all_are_expected(monkeypatch):
    monkeypatch.setenv("HTM_NEEDS_CLIENTS", "1")
    with pytest.raises(ModuleNotFoundError):
        needed("no_such_client")
    monkeypatch.delenv("HTM_NEEDS_CLIENTS")
    with pytest.raises(pytest.skip.Exception):
        needed("no_such_client")


# ---------------------------------------------------------------- nothing else is needed


@pytest.mark.parametrize("arguments", [["ppo"], ["dqn"], ["a2c", "--plain"], ["ppo", "--sorted"]])
def test_stable_baselines(run, arguments):
    sizes = ["--copies", 2, "--steps", 130, "--episodes", 4]
    last_return(run("with_stable_baselines3", "--algo", *arguments, *sizes))


def test_sb3_contrib(run):
    last_return(run("with_sb3_contrib", "--copies", 2, "--steps", 130, "--episodes", 4))


def test_cleanrl_style(run):
    arguments = ["--copies", 4, "--rollout", 16, "--steps", 128, "--episodes", 4]
    text = run("cleanrl_style_ppo", *arguments)
    assert "128 steps" in text
    last_return(text)


# ---------------------------------------------------------------- TorchRL


def test_torchrl_draws_legal_actions_only():
    """The mask comes from ``info`` or from the observation: 1,000 steps of copies, fewer of one."""
    envs = needed("torchrl.envs")
    arguments = {"num_envs": 10, "autoreset_mode": "Disabled"}
    categorical = {"categorical_action_encoding": True}
    copies, seen, masked = (
        envs.GymWrapper(made, **categorical)
        for made in (
            gym.make_vec("HTM-Trees-v0", **arguments),
            gym.make_vec("HTM-Trees-v0", observe=("action_mask",), **arguments),
            htm_env.wrappers.Masked(gym.make("HTM-Trees-v0"), "torchrl"),
        )
    )
    single = envs.GymEnv("HTM-Trees-v0", **categorical).auto_register_info_dict()
    copies = copies.auto_register_info_dict()
    for source, steps in ((single, 300), (copies, 100), (seen, 100), (masked, 100)):
        env = envs.TransformedEnv(source, envs.ActionMask())
        envs.check_env_specs(env)
        data = env.rollout(steps, break_when_any_done=False)
        chosen = data["action_mask"].bool().gather(-1, data["action"][..., None])
        assert chosen.all()
        assert data["next", "done"].sum() >= steps // 14  # an episode has 14 merges at most


def test_torchrl(run):
    needed("torchrl")
    text = run("with_torchrl", "--copies", 4, "--steps", 128)
    assert "0 illegal actions" in text
    last_return(text)


# ---------------------------------------------------------------- make test-clients


def test_minari(run):
    needed("minari")
    needed("jax")
    text = run("with_minari", "--steps", 60)
    assert "HTM-Trees-v0" in text
    assert "largest difference of a reward 0.0e+00" in text
    last_return(text)


@pytest.mark.parametrize(
    ("algo", "option"), [("ppo", "n_steps:30"), ("ppo_mask", "n_steps:30"), ("dqn", "gamma:0.5")]
)
def test_the_zoo(run, algo, option):
    needed("rl_zoo3")
    arguments = ["--algo", algo, "--steps", 60, "--eval-freq", 30, "--eval-episodes", 2]
    text = run("with_rl_zoo3", *arguments, "--hyperparams", option)
    assert "Saving to logs" in text
    evaluated = [float(found) for found in re.findall(r"episode_reward=(-?\d+\.\d+)", text)]
    assert len(evaluated) == 2
    assert min(evaluated) > -0.7  # every action merged a pair


def test_rllib(run):
    needed("ray.rllib")
    last_return(run("with_rllib", "--steps", 128))
