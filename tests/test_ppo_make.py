"""Stable-Baselines3 as a stranger uses it: ``make_ppo``, plain models, saving, own loops."""

from __future__ import annotations

import csv
import subprocess
import sys
from math import nan
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import small_autoencoder
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_maskable
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecFrameStack, VecMonitor, VecNormalize
from test_resume import without_time

import htm_env
from agents import load_model, make_ppo, save_model
from agents.optim.autoencoder_trainer import AutoencoderConfig, AutoencoderTrainer
from agents.optim.optimizers import OptimizerConfig
from agents.ppo import (
    HeldOutEvaluation,
    HTMVecEnv,
    JointTraining,
    MaskableMergeActorCriticPolicy,
    MergeActorCriticPolicy,
)
from agents.ppo.make import minibatch
from agents.runs.checkpoint import load_state, save_state
from htm_env.autoencoder import HTMAutoencoder

ROOT = Path(__file__).parent.parent
SMALL = {"autoencoder": "untrained", "heights": (2, 3), "embedding_dim": 4}
FAST = OptimizerConfig(learning_rate=1e-2, warm_up_updates=5)


NEAR = {"candidates": "knn", "k": 4}


@pytest.mark.parametrize("pairs", [{}, NEAR], ids=["all", "knn"])
def test_the_plainest_way_runs(pairs):
    env = gym.make("HTM-Trees-v0", **pairs)
    model = PPO("MultiInputPolicy", env, n_steps=128, n_epochs=1, device="cpu").learn(128)
    observation, _ = env.reset(seed=0)
    action, _ = model.predict(observation)
    assert env.action_space.contains(int(action))


@pytest.mark.parametrize("maskable", [False, True], ids=["ppo", "maskable_ppo"])
@pytest.mark.parametrize("encoder", ["none", "attention"])
def test_a_model_learns_predicts_is_saved_and_loaded(maskable, encoder, tmp_path):
    model = make_ppo(
        "HTM-Trees-v0", maskable=maskable, n_envs=4, seed=3, encoder=encoder, verbose=0, n_epochs=2
    )
    assert type(model) is (MaskablePPO if maskable else PPO)
    weights = model.env.unwrapped.autoencoder.weights_hash()
    before = model.policy.parameters_to_vector()
    model.learn(3 * 4 * 14)
    assert not np.array_equal(before, model.policy.parameters_to_vector())
    assert model.env.unwrapped.autoencoder.weights_hash() == weights
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", env=HTMVecEnv("HTM-Trees-v0", 4))
    env = gym.make("HTM-Trees-v0", split="test")
    for key in range(3):
        observation, info = env.reset(options={"key": key})
        ended = False
        while not ended:
            action, _ = model.predict(observation, deterministic=True)
            again, _ = loaded.predict(observation, deterministic=True)
            assert action == again
            assert info["action_mask"][action] == 1
            observation, _, ended, truncated, info = env.step(action)
            assert not truncated
    loaded.learn(4 * 14)
    assert loaded.num_timesteps == 4 * 14


@pytest.mark.parametrize("maskable", [False, True], ids=["ppo", "maskable_ppo"])
@pytest.mark.parametrize("encoder", ["none", "attention"])
def test_a_model_learns_among_candidates(maskable, encoder, tmp_path):
    model = make_ppo("HTM-Trees-v0", maskable=maskable, n_envs=4, encoder=encoder, env_kwargs=NEAR)
    env = model.env.unwrapped
    assert model.action_space.n == 15 * 4
    before, values = model.policy.parameters_to_vector(), model.rollout_buffer
    model.learn(3 * 4 * 14)
    assert env.merges_made == 3 * 4 * 14  # not one illegal action
    assert values.observations["candidates"].shape[-2:] == (15, 4)
    after = model.policy.parameters_to_vector()
    assert np.isfinite(after).all() and not np.array_equal(before, after)
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", env=HTMVecEnv("HTM-Trees-v0", 4, **NEAR))
    observation, masks = env.reset(), env.action_masks()
    actions, again = (m.predict(observation, deterministic=True)[0] for m in (model, loaded))
    assert actions.tolist() == again.tolist()
    assert masks[np.arange(4), actions].all()


def test_copies_have_the_seeds_of_single_environments():
    model = make_ppo("HTM-Trees-v0", n_envs=3, seed=5, env_kwargs=SMALL)
    observation = model.env.reset()
    for copy in range(3):
        single = gym.make("HTM-Trees-v0", **SMALL)
        expected, _ = single.reset(seed=5 + copy)
        np.testing.assert_allclose(observation["tokens"][copy], expected["tokens"], atol=1e-5)


def test_arguments_of_the_model_come_before_the_defaults():
    model = make_ppo("HTM-Trees-v0", n_envs=2, env_kwargs=SMALL, gamma=0.5, n_steps=12)
    assert (model.gamma, model.n_steps, model.batch_size) == (0.5, 12, 24)
    with pytest.raises(ValueError, match="unknown id"):
        make_ppo("HTM-Nothing-v0")


@pytest.mark.parametrize(
    ("total", "wanted", "size"),
    [(768, 256, 256), (768, 300, 256), (10, 256, 10), (1000, 256, 250), (1000, 300, 250)],
)
def test_minibatches_are_about_equal(total, wanted, size):
    assert minibatch(total, wanted) == size


@pytest.mark.parametrize("maskable", [False, True], ids=["ppo", "maskable_ppo"])
def test_evaluation_masks(maskable):
    """An illegal action would cost one: no return comes near."""
    model = make_ppo("HTM-Trees-v0", maskable=maskable, n_envs=2)
    env = VecMonitor(HTMVecEnv("HTM-Trees-v0", 4, split="test"))
    evaluate = evaluate_maskable if maskable else evaluate_policy
    returns, lengths = evaluate(model, env, 8, deterministic=False, return_episode_rewards=True)
    assert len(returns) == 8 and min(returns) > -0.9
    assert set(lengths) <= {2, 6, 14}


def test_a2c_trains_the_same_policy():
    model = A2C(MergeActorCriticPolicy, HTMVecEnv("HTM-Trees-v0", 4, **SMALL), device="cpu")
    before = model.policy.parameters_to_vector()
    model.learn(100)
    assert np.isfinite(model.policy.parameters_to_vector()).all()
    assert not np.array_equal(before, model.policy.parameters_to_vector())


@pytest.mark.parametrize("maskable", [False, True], ids=["ppo", "maskable_ppo"])
def test_two_thousand_actions(maskable):
    """46 tokens; torch's check of its own distribution once failed from 1,400 actions on."""
    data = np.random.default_rng(0).normal(size=(20, 46, 2))
    kwargs = {"dataset": data, "embedding_dim": 4}
    model = make_ppo("HTM-v0", maskable=maskable, n_envs=4, env_kwargs=kwargs, n_epochs=1)
    assert model.action_space.n == 2070
    model.learn(2 * 4 * 45)
    assert np.isfinite(model.policy.parameters_to_vector()).all()
    assert model.env.unwrapped.merges_made == 2 * 4 * 45  # not one illegal action


# ---------------------------------------------------------------- joint training, anybody's loop


def joint(env: HTMVecEnv) -> JointTraining:
    config = AutoencoderConfig(hidden_dim=32, lifter=FAST, merger=FAST, classifier=FAST)
    trainer = AutoencoderTrainer(env.autoencoder, config, torch.Generator().manual_seed(0))
    return JointTraining(trainer, trees_per_step=16)


def untrained() -> HTMAutoencoder:
    data = htm_env.make_dataset("HTM-Trees-v0", heights=(2,))
    made = small_autoencoder(2, embedding_dim=4)
    made.set_statistics(data.mean, data.std)
    return made


FORMS_OF_JOINT = {
    "ours": (PPO, MergeActorCriticPolicy),
    "multi-input": (MaskablePPO, "MultiInputPolicy"),
}


@pytest.mark.parametrize("form", FORMS_OF_JOINT)
@pytest.mark.parametrize("pairs", [{}, {"candidates": "knn", "k": 1}], ids=["all", "knn"])
def test_the_callback_trains_jointly_and_logs_our_names(form, pairs, tmp_path):
    torch.manual_seed(0)
    env = HTMVecEnv("HTM-Trees-v0", 16, autoencoder=untrained(), heights=(2,), **pairs)
    kind, policy = FORMS_OF_JOINT[form]
    model = kind(policy, VecMonitor(env), n_steps=4, batch_size=64, n_epochs=1, device="cpu")
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(75 * 16 * 4, joint(env))
    with open(tmp_path / "progress.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = {
        "train/return",
        "train/nmse",
        "train/tree_height",
        "time/merges_per_second",
        "loss/policy",
        "loss/value",
        "loss/entropy",
        "loss/reconstruction",
        "gradient_norm/merger",
    }
    if form != "multi-input":
        names.add("policy/entropy")
        assert all(0 <= float(row["policy/entropy"]) <= 1 for row in rows)
    assert names <= set(rows[-1])
    errors = [float(row["train/nmse"]) for row in rows]
    assert np.mean(errors[-5:]) < 0.7 * np.mean(errors[:5])


def test_under_a_normaliser_the_model_observes_what_it_normalises(tmp_path):
    """After the autoencoder has moved, at the beginning of a rollout as in the middle of it."""
    env = HTMVecEnv("HTM-Trees-v0", 4, autoencoder=untrained(), heights=(2,))
    normaliser = VecNormalize(VecMonitor(env), norm_obs_keys=["tokens"], clip_obs=5.0)
    model = PPO(MergeActorCriticPolicy, normaliser, n_steps=4, batch_size=16, device="cpu")
    callback = joint(env)
    model.learn(3 * 16, callback)
    callback.on_rollout_start()
    observation = env.refresh()
    expected = normaliser.normalize_obs(observation)["tokens"]
    assert not np.array_equal(expected, observation["tokens"])
    np.testing.assert_array_equal(model._last_obs["tokens"], expected)
    validation = htm_env.make_dataset("HTM-Trees-v0", split="validation", heights=(2,))
    with pytest.raises(ValueError, match=r"expected VecNormalize\(\.\.\., norm_obs=False\)"):
        model.learn(16, HeldOutEvaluation(validation))
    rewards = VecNormalize(env, norm_obs=False)
    model = PPO(MergeActorCriticPolicy, rewards, n_steps=4, batch_size=16, device="cpu")
    model.learn(16, [joint(env), HeldOutEvaluation(validation, episodes=4)])
    np.testing.assert_array_equal(model._last_obs["active"], env.refresh()["active"])


def test_a_joint_model_is_saved_with_its_autoencoder(tmp_path):
    env = HTMVecEnv("HTM-Trees-v0", 4, autoencoder=untrained(), heights=(2,))
    model = PPO(MergeActorCriticPolicy, env, n_steps=4, batch_size=16, device="cpu")
    model.learn(2 * 16, joint(env))
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", device="cpu")
    assert loaded.autoencoder.weights_hash() == env.autoencoder.weights_hash()
    again = HTMVecEnv("HTM-Trees-v0", 4, autoencoder=loaded.autoencoder, heights=(2,))
    loaded.set_env(again)
    loaded.learn(16, joint(again))


@pytest.mark.parametrize("form", FORMS_OF_JOINT)
def test_a_joint_model_has_a_form_without_pickles(form, tmp_path):
    kind, policy = FORMS_OF_JOINT[form]

    def made(seed):
        torch.manual_seed(seed)
        env = HTMVecEnv("HTM-Trees-v0", 4, autoencoder=untrained(), heights=(2,))
        callback = joint(env)
        return kind(policy, env, n_steps=4, batch_size=16, device="cpu"), env, callback

    model, env, callback = made(0)
    model.learn(2 * 16, callback)
    path = tmp_path / "joint.safetensors"
    save_model(path, model, callback.trainer)
    loaded, again, other = made(1)
    load_model(path, loaded, other.trainer)
    assert again.autoencoder.weights_hash() == env.autoencoder.weights_hash()
    assert loaded.num_timesteps == 32
    np.testing.assert_array_equal(
        loaded.policy.parameters_to_vector(), model.policy.parameters_to_vector()
    )
    averages = [each.trainer.state()["merger"]["optimizer"]["state"] for each in (callback, other)]
    assert without_time(averages[0]) == without_time(averages[1])
    np.testing.assert_array_equal(loaded._last_obs["tokens"], again.refresh()["tokens"])
    loaded.learn(16, other)  # with its own episodes


def tampered_models() -> dict[str, Any]:
    """Changes of a saved model's state, by what a message says of them."""

    def averages(model: dict[str, Any]) -> None:
        next(iter(model["parameters"]["policy.optimizer"]["state"].values()))["exp_avg"][...] = nan

    return {
        "'exp_avg' of 'state' of the policy.optimizer is not finite": averages,
        "betas of an optimizer": lambda model: model["parameters"]["policy.optimizer"][
            "param_groups"
        ][0].update(betas=[0.9, 5.0]),
        "gamma of the model is nan": lambda model: model["numbers"].update(gamma=nan),
    }


@pytest.mark.parametrize("message", tampered_models())
def test_a_model_with_a_right_digest_and_wrong_numbers_is_refused(tmp_path, message):
    def made(seed):
        env = HTMVecEnv("HTM-Trees-v0", 2, autoencoder=untrained(), heights=(2,))
        options = {"n_steps": 4, "batch_size": 8, "device": "cpu", "seed": seed}
        return PPO(MergeActorCriticPolicy, env, **options)

    path = tmp_path / "model.safetensors"
    model, other = made(0), made(1)
    model.learn(8)
    save_model(path, model)
    state = load_state(path)
    tampered_models()[message](state["model"])
    save_state(path, state)
    weights = other.policy.parameters_to_vector()
    with pytest.raises(ValueError, match=message):
        load_model(path, other)
    np.testing.assert_array_equal(other.policy.parameters_to_vector(), weights)


def test_another_model_is_refused(tmp_path):
    def made(copies, policy=MergeActorCriticPolicy, **options):
        env = HTMVecEnv("HTM-Trees-v0", copies, autoencoder=untrained(), heights=(2,))
        return PPO(policy, env, **{"n_steps": 4, "batch_size": 8, "device": "cpu", **options})

    path = tmp_path / "model.safetensors"
    save_model(path, made(2))
    before = made(2)
    for model, message in (
        (made(2, "MultiInputPolicy"), r"expected .*PPO', .*MultiInputActorCriticPolicy"),
        (made(4), "its n_envs is 2; expected 4"),
        (made(2, n_steps=8), "its n_steps is 4; expected 8"),
        (
            made(2, policy_kwargs={"hidden_dim": 8}),
            r"network.body.0.\w+' are .*\(128,.*; expected .*\(8,",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            load_model(path, model)
    with pytest.raises(ValueError, match="without a trainer"):
        load_model(path, before, joint(before.env.unwrapped).trainer)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    fresh = made(2)
    weights = fresh.policy.parameters_to_vector()
    with pytest.raises(ValueError, match="it was changed after it was written"):
        load_model(path, fresh)
    np.testing.assert_array_equal(fresh.policy.parameters_to_vector(), weights)
    plain = PPO("MultiInputPolicy", gym.make("HTM-Trees-v0", **SMALL), device="cpu")
    with pytest.raises(ValueError, match="a DummyVecEnv; expected an HTMVecEnv"):
        save_model(path, plain)


def test_without_a_trainer_the_callback_only_logs(tmp_path):
    model = make_ppo("HTM-Trees-v0", n_envs=4)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    weights = model.env.unwrapped.autoencoder.weights_hash()
    model.learn(2 * 4 * 14, JointTraining())
    assert model.env.unwrapped.autoencoder.weights_hash() == weights
    header = (tmp_path / "progress.csv").read_text().splitlines()[0]
    assert "train/nmse" in header and "loss/reconstruction" not in header


def test_the_callback_refuses_what_it_cannot_train():
    other = gym.make("HTM-Trees-v0", **SMALL)
    with pytest.raises(ValueError, match="is a DummyVecEnv; expected an HTMVecEnv"):
        PPO("MultiInputPolicy", other, device="cpu").learn(1, JointTraining())
    env = HTMVecEnv("HTM-Trees-v0", 2, **SMALL)
    model = PPO(MergeActorCriticPolicy, env, n_steps=8, batch_size=16, device="cpu")
    with pytest.raises(ValueError, match="another autoencoder"):
        model.learn(1, joint(HTMVecEnv("HTM-Trees-v0", 2, **SMALL)))
    stacked = VecFrameStack(env, 2)
    model = PPO("MultiInputPolicy", stacked, n_steps=8, batch_size=16, device="cpu")
    with pytest.raises(ValueError, match="changes its observations"):
        model.learn(1, joint(env))
    with pytest.raises(ValueError, match="trees_per_step is 0"):
        JointTraining(trees_per_step=0)


@pytest.mark.parametrize("form", ["ours", "maskable", "knn"])
def test_held_out_scores_are_those_of_the_greedy_masked_policy(form, tmp_path):
    torch.manual_seed(0)
    pairs = {"candidates": "knn", "k": 1} if form == "knn" else {}
    kind, policy = PPO, MergeActorCriticPolicy
    if form == "maskable":
        kind, policy = MaskablePPO, MaskableMergeActorCriticPolicy
    validation = htm_env.make_dataset("HTM-Trees-v0", split="validation", heights=(2,))
    env = HTMVecEnv("HTM-Trees-v0", 8, autoencoder=untrained(), heights=(2,), **pairs)
    model = kind(policy, VecMonitor(env), n_steps=4, batch_size=32, device="cpu")
    model.set_logger(configure(str(tmp_path), ["csv"]))
    held_out = HeldOutEvaluation(validation, every=2, episodes=20)
    model.learn(3 * 8 * 4, [joint(env), held_out])
    with open(tmp_path / "progress.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    errors = [row["validation/nmse"] for row in rows]
    assert errors[0] and not errors[1] and errors[2]  # after the first rollout and the third
    assert float(rows[2]["validation/mean_height"]) == 2  # three tokens: no other tree
    held_out.on_rollout_end()
    held_out.on_rollout_end()
    logged = model.logger.name_to_value["validation/nmse"]
    # the same by hand: the environment steps through the episodes, the model says how
    copies = HTMVecEnv(
        *("HTM-Trees-v0", 20),
        autoencoder=env.autoencoder,
        heights=(2,),
        split="validation",
        **pairs,
    )
    keys = copies.env_method("fixed_keys", 20, indices=0)[0]
    copies.set_options([{"key": int(key)} for key in keys])
    observation, last = copies.reset(), np.full(20, np.nan)
    while np.isnan(last).any():
        masks = {"action_masks": copies.action_masks()} if form == "maskable" else {}
        actions, _ = model.predict(observation, deterministic=True, **masks)
        observation, _, dones, infos = copies.step(actions)
        for row in np.flatnonzero(dones & np.isnan(last)):
            last[row] = infos[row]["error"]
    np.testing.assert_allclose(logged, last.mean(), rtol=1e-4)


def test_held_out_evaluation_refuses_what_it_cannot_plan_with():
    validation = htm_env.make_dataset("HTM-Trees-v0", split="validation")
    env = HTMVecEnv("HTM-Trees-v0", 2, **SMALL)
    model = PPO("MultiInputPolicy", env, n_steps=8, batch_size=16, device="cpu")
    with pytest.raises(ValueError, match="expected one of this project"):
        model.learn(1, HeldOutEvaluation(validation))
    crosses = htm_env.make_dataset("HTM-Crosses-v0", split="validation")
    model = PPO(MergeActorCriticPolicy, env, n_steps=8, batch_size=16, device="cpu")
    with pytest.raises(ValueError, match="have 4 coordinates; expected 2"):
        model.learn(1, HeldOutEvaluation(crosses))
    model = PPO("MultiInputPolicy", VecFrameStack(env, 2), n_steps=8, batch_size=16, device="cpu")
    with pytest.raises(ValueError, match="changes its observations"):
        model.learn(1, HeldOutEvaluation(validation))
    other = gym.make("HTM-Trees-v0", **SMALL)
    with pytest.raises(ValueError, match="is a DummyVecEnv; expected an HTMVecEnv"):
        PPO("MultiInputPolicy", other, device="cpu").learn(1, HeldOutEvaluation(validation))
    for name in ("every", "episodes"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            HeldOutEvaluation(validation, **{name: 0})


def test_importing_agents_does_not_import_stable_baselines():
    code = (
        "import sys, agents, agents.ppo, agents.registry, agents.cli\n"
        "print([name for name in ('stable_baselines3', 'sb3_contrib') if name in sys.modules])\n"
        "from agents import make_ppo, PPOLearner\n"
        "print('stable_baselines3' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["[]", "True"]


def test_a_model_whose_numbers_or_trainer_are_refused_stays_as_it_was(tmp_path):
    env = HTMVecEnv("HTM-Trees-v0", 2, autoencoder=untrained(), heights=(2,))
    model = PPO(MergeActorCriticPolicy, env, n_steps=4, batch_size=8, device="cpu")
    trainer, path = joint(env).trainer, tmp_path / "model.safetensors"
    save_model(path, model, trainer)
    weights = model.policy.parameters_to_vector()
    for name, value in (("gamma", np.inf), ("n_epochs", -3), ("_n_updates", 2.5), ("trainer", {})):
        state = load_state(path)
        state["model"]["parameters"]["policy"] = {
            key: each + 1 for key, each in state["model"]["parameters"]["policy"].items()
        }
        if name == "trainer":
            state["trainer"] = value
        else:
            state["model"]["numbers"][name] = value
        save_state(tmp_path / "bad.safetensors", state)
        with pytest.raises(ValueError, match=name if name != "trainer" else "lifter"):
            load_model(tmp_path / "bad.safetensors", model, trainer)
        np.testing.assert_array_equal(model.policy.parameters_to_vector(), weights)
    load_model(path, model, trainer)
