"""Algorithms of Stable-Baselines3's interface as learners: trained, compared, resumed, refused."""

from __future__ import annotations

import csv
import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from comparisons import here
from stable_baselines3 import A2C
from stable_baselines3.common.policies import ActorCriticPolicy

import agents
from agents.cli import main
from agents.optim.autoencoder_trainer import AutoencoderConfig
from agents.registry import algorithm, configured
from agents.runs.checkpoint import load_state, save_state
from agents.stable_baselines.config import StableBaselinesConfig
from agents.stable_baselines.learner import StableBaselinesLearner
from htm_env.forest import check_merges

TREES: dict[str, Any] = {"env_kwargs": {"heights": (2, 3)}, "embedding_dim": 4}
SMALL = AutoencoderConfig(hidden_dim=8, noise_std=0.1)


class OwnA2C(A2C):
    """A class of one's own."""


def learner(model: str, seed: int = 0, **options: Any) -> StableBaselinesLearner:
    config = StableBaselinesConfig(autoencoder=SMALL, model=model, n_envs=4, **options)
    return StableBaselinesLearner("HTM-Trees-v0", config, **TREES, seed=seed)


def same(one: StableBaselinesLearner, other: StableBaselinesLearner) -> bool:
    policies = (learner.model.policy.state_dict() for learner in (one, other))
    equal = all(torch.equal(*pair) for pair in zip(*(p.values() for p in policies), strict=True))
    hashes = {learner.autoencoder.weights_hash() for learner in (one, other)}
    return equal and len(hashes) == 1 and one.merges_made == other.merges_made


@pytest.mark.parametrize(
    ("model", "policy"),
    [
        ("sb3:DQN", None),
        ("sb3:A2C", None),
        ("sb3:PPO", "MultiInputPolicy"),
        ("sb3_contrib:TRPO", None),
        ("sb3_contrib:MaskablePPO", "MultiInputPolicy"),
        ("test_stable_baselines:OwnA2C", "MultiInputPolicy"),
    ],
)
def test_it_learns_merges_and_continues_bit_for_bit(model, policy, tmp_path):
    """With episodes and stored steps in progress, through a file."""
    kwargs = {"learning_starts": 20} if model == "sb3:DQN" else {}
    one, other = (learner(model, seed, policy=policy, kwargs=kwargs) for seed in (0, 1))
    before = one.model.policy.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    for step in range(4):
        scalars = one.update(step / 8)
    moved = (
        not torch.equal(value, before[name])
        for name, value in one.model.policy.state_dict().items()
    )
    assert any(moved) and one.updates == 4
    assert {"train/return", "train/nmse", "loss/reconstruction"} <= set(scalars)
    # Every step makes a merge, whatever the model chooses.
    assert one.merges_made == one.model.num_timesteps > 0
    save_state(tmp_path / "state", one.state())
    other.restore(load_state(tmp_path / "state"))
    for step in range(4, 6):
        one.update(step / 8)
        other.update(step / 8)
    assert same(one, other)
    batch = one.task.dataset("test").fixed(5)
    for greedy in (True, False):
        plans = [one.plan(batch, torch.Generator().manual_seed(3), greedy=greedy) for _ in range(2)]
        assert torch.equal(*plans)
        check_merges(plans[0], batch.num_tokens)
        assert ((plans[0][..., 0] >= 0).sum(1) == batch.num_tokens - 1).all()


@pytest.mark.parametrize(
    ("model", "policy"),
    [
        ("sb3:DQN", None),
        ("sb3_contrib:QRDQN", None),
        ("sb3_contrib:MaskablePPO", "MultiInputPolicy"),
    ],
)
def test_every_predicted_action_is_legal(model, policy):
    agent = learner(model, policy=policy)
    settings = {"autoencoder": agent.autoencoder, "heights": (2, 3), "invalid_action": "raise"}
    envs = gym.make_vec("HTM-Trees-v0", num_envs=8, **settings)
    observation, _ = envs.reset(seed=0)
    for step in range(12):  # ends of episodes among them
        actions, _ = agent.predict(observation, deterministic=step % 2 == 0)
        observation, *_ = envs.step(actions)
    env = gym.make("HTM-Trees-v0", **settings)
    observation, info = env.reset(seed=0)
    while info["num_active"] > 1:
        action, _ = agent.predict(observation)
        assert info["action_mask"][action] == 1
        observation, *_, info = env.step(action)


@pytest.mark.parametrize(
    ("place", "steps", "message"),
    [
        ([-1, False], {}, "the stored steps are at -1 of"),
        ([10**9, False], {}, "the stored steps are at 1000000000 of"),
        ([3, True], {}, "is not there or not of shape"),
        (["3", False], {}, "expected a number and a bool"),
        (None, {"rewards/": float("nan")}, "'rewards/' of the stored steps is not finite"),
    ],
)
def test_stored_steps_that_no_buffer_holds_are_refused(place, steps, message):
    one, other = (learner("sb3:DQN", seed, kwargs={"buffer_size": 80}) for seed in (0, 1))
    one.update(0.0)
    state = one.state()
    state["model"]["place"] = place or state["model"]["place"]
    for name, value in steps.items():
        state["model"]["buffer"][name][...] = value
    weights = [each.clone() for each in other.model.policy.parameters()]
    with pytest.raises(ValueError, match=message):
        other.restore(state)
    assert all(map(torch.equal, other.model.policy.parameters(), weights))


def test_where_the_autoencoder_is_frozen_it_stays_as_it_is():
    config = StableBaselinesConfig(model="sb3:A2C", n_envs=2)
    frozen = StableBaselinesLearner("HTM-Trees-v0", config, mode="frozen")
    before = frozen.autoencoder.weights_hash()
    assert "loss/reconstruction" not in frozen.update(0.0)
    assert frozen.autoencoder.weights_hash() == before


def test_schedules_follow_the_budget_of_the_run():
    dqn = learner("sb3:DQN", kwargs={"exploration_fraction": 0.5, "exploration_final_eps": 0.1})
    rates = []
    for progress in (0.0, 0.25, 0.75):
        dqn.update(progress)
        rates.append(dqn.model.exploration_rate)
    assert rates == pytest.approx([1.0, 0.55, 0.1])


def test_actors_and_critics_have_this_projects_network_unless_another_is_asked_for():
    assert learner("sb3:A2C").model.policy.network is not None
    plain = learner("sb3:A2C", policy="MultiInputPolicy").model.policy
    assert isinstance(plain, ActorCriticPolicy) and not hasattr(plain, "network")


def test_sets_of_other_sizes_than_in_training():
    """Ragged sets come in parts of like sizes: alone a set has the tree that it has beside larger
    ones, of whose size those in training were."""
    rng = np.random.default_rng(0)
    sets = [rng.normal(size=(2 + row % 4, 2)) for row in range(20)]
    config = StableBaselinesConfig(autoencoder=SMALL, model="sb3:DQN", n_envs=2)
    dqn = StableBaselinesLearner("HTM-v0", config, env_kwargs={"dataset": sets}, embedding_dim=4)
    assert dqn.slots == 5
    together, alone = dqn.trees(sets[:4]), [dqn.trees([one])[0] for one in sets[:4]]
    for one, other, tokens in zip(together, alone, sets, strict=False):
        assert one.merges.tolist() == other.merges.tolist()
        assert sorted(one.clades()[-1]) == list(range(len(tokens)))
    assert dqn.embed(sets).shape == (20, 4)
    with pytest.raises(ValueError, match="sb3:DQN takes at most 5 tokens, not 6"):
        dqn.embed([rng.normal(size=(6, 2))])


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("sb3:DQNN", {}, r"no attribute 'DQNN' \(did you mean 'DQN'\?\)"),
        ("sb3:SAC", {}, "sb3:SAC cannot be made: The algorithm only supports"),
        ("sb3:dqn", {}, r"is <module .*\(did you mean 'DQN'\?\); expected a class"),
        ("sb3_contrib:ARS", {}, "sb3_contrib:ARS takes no Dict observations"),
        (
            "sb3:A2C",
            {"kwargs": {"device": "cpu"}},
            r"sb3:A2C gets device by .*not as kwargs.device",
        ),
        ("sb3:A2C", {"kwargs": {"gae_lambda": 2, "use_sde": True}}, "sb3:A2C cannot be made: "),
        ("sb3:A2C", {"policy": "MlpPolicy"}, r"no policy 'MlpPolicy'; choose from \['MultiInput"),
        (
            "sb3:A2C",
            {"kwargs": {"n_step": 3}},
            r"no argument 'n_step' \(did you mean 'n_steps'\?\); choose",
        ),
        ("json:JSONDecoder", {}, "expected a class of agents.Learner"),
        ("sb3:A2C", {"reward": "no"}, "unknown reward 'no'"),
    ],
)
def test_what_cannot_be_trained_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        learner(model, **options)


def test_names_and_options():
    assert algorithm("sb3:DQN:slow").learner is StableBaselinesLearner
    config = configured("sb3:DQN", {"kwargs": {"policy_kwargs": {"net_arch": [8]}}, "n_envs": 2})
    assert (config.model, config.n_envs) == ("sb3:DQN", 2)
    with pytest.raises(ValueError, match="sb3:DQN decides model"):
        configured("sb3:DQN", {"model": "sb3:PPO"})
    with pytest.raises(ValueError, match="sb3:DQN has no option 'discount'; reinforce, "):
        configured("sb3:DQN", {"discount": 1.0})


def test_it_is_compared_beside_reinforce_and_loaded(tmp_path, monkeypatch):
    here(monkeypatch)
    small = {"autoencoder": {"hidden_dim": 8}}
    options = {
        "sb3:DQN": small | {"n_envs": 4, "kwargs": {"learning_starts": 10}},
        "reinforce": small | {"policy_hidden_dim": 8, "batch_size": 4},
    }
    given = ["--envs", "HTM-Trees-v0", "--env-kwargs", '{"HTM-Trees-v0": {"heights": [2]}}']
    given += ["--algos", "sb3:DQN,reinforce", "--algo-options", json.dumps(options), "--seeds", "1"]
    given += ["--embedding-dim", "3", "--merges", "60", "--out", str(tmp_path)]
    assert main(["compare", *given]) == 0
    with open(tmp_path / "results.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    assert [row["algo"] for row in rows] == ["reinforce", "sb3:DQN"]
    assert json.loads(rows[1]["options"])["kwargs.learning_starts"] == 10
    run = tmp_path / "runs" / "HTM-Trees-v0" / "sb3-DQN-0"
    loaded = agents.load(run)
    assert loaded.merges_made == int(rows[1]["merges"])
    files = {path.suffix for path in run.rglob("*") if path.is_file()}
    assert not files & {".zip", ".pkl", ".pt", ".pth"}
    (run / "result.json").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert json.loads((run / "result.json").read_text())["weights_hash"] == rows[1]["weights_hash"]
