"""A device computes what the processor computes; learners learn, are saved and resume there."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import small_autoencoder
from episodes import RAGGED, SCORERS, generator, random_batch, random_policy

from agents.cli import main
from agents.encoders import ENCODERS, ContextConfig
from agents.encoders.config import GlomConfig
from agents.fixed import FIXED_POLICIES, fixed_policy
from agents.inspection.embeddings import root_embeddings
from agents.learners.base import Learner
from agents.learners.baselines import BASELINES, Returns, make_baseline
from agents.ppo.vector_env import HTMVecEnv
from agents.registry import ALGORITHMS, algorithm
from agents.rollouts.greedy_search import merge_greedily, merge_matchings
from agents.runs.checkpoint import load_state, save_state
from agents.runs.directory import RunDirectory
from htm_env.candidates import Nearest
from htm_env.forest import check_merges
from htm_env.generation.generate import generate, refine
from htm_env.generation.mixture import RootMixture

TREES = {"heights": (2, 3)}
CANDIDATES = [{}, {"candidates": "knn", "k": 2}]
EXTRAS = ("centroids", "order", "leaf_order", "leaves", "owners")
LEARNERS = [name for name in ALGORITHMS if name not in FIXED_POLICIES] + ["nearest_sorted"]
SMALL = {
    "batch_size": 4,
    "policy_hidden_dim": 8,
    "hidden_dim": 8,
    "n_envs": 4,
    "replays": 1,
    "failure": 1.0,
    "glom_batch_size": 4,
    "glom": GlomConfig(levels=2, level_width=8),
}
"""By the names of options; half of the samples count as failures, so that searches are made."""


def same(found, expected) -> None:
    """Nearly the same numbers, wherever they are."""
    found, expected = (torch.as_tensor(values).cpu() for values in (found, expected))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def moved(device: str, *modules: torch.nn.Module) -> list:
    """Copies of networks on a device."""
    return [copy.deepcopy(module).to(device) for module in modules]


# ---------------------------------------------------------------- the world


def test_tokens_are_encoded_and_decoded(device, autoencoder):
    batch = random_batch(RAGGED)
    merges = fixed_policy("random", autoencoder).plan(batch, generator())
    (there,), data = moved(device, autoencoder), batch.to(device)
    expected = autoencoder.encode(batch.tokens, batch.present, merges)
    found = there.encode(data.tokens, data.present, merges.to(device))
    assert found.roots.device.type == device
    same(found.nodes, expected.nodes)
    decoded = there.decode(found.roots, merges.to(device), data.present)
    same(decoded, autoencoder.decode(expected.roots, merges, batch.present))


def legal_actions(masks: np.ndarray, drawn: np.random.Generator) -> np.ndarray:
    """One of each copy's; 0 where an episode has ended."""
    return (drawn.random(masks.shape) * masks).argmax(1)


@pytest.mark.parametrize("candidates", CANDIDATES, ids=str)
@pytest.mark.parametrize("reward", ["incremental", "terminal", "one_step", "right_merges"])
def test_an_episode_is_the_same_everywhere(device, candidates, reward):
    """Until all copies have ended, and the first of them have started anew."""
    one, other = (
        gym.make_vec(
            "HTM-Trees-v0",
            num_envs=4,
            autoencoder="untrained",
            reward=reward,
            observe=EXTRAS,
            device=where,
            **candidates,
            **TREES,
        )
        for where in ("cpu", device)
    )
    expected, found = one.reset(seed=0), other.reset(seed=0)
    drawn, ends = np.random.default_rng(0), 0
    for _ in range(7):
        for key, value in expected[0].items():
            same(found[0][key], value)
        for key, value in expected[-1].items():
            same(found[-1][key], value)
        actions = legal_actions(one.unwrapped.action_masks(), drawn)
        expected, found = one.step(actions), other.step(actions)
        for before, after in zip(expected[1:4], found[1:4], strict=True):
            same(after, before)
        ends += int(found[2].sum())
    assert ends >= 4


def test_an_episode_behind_stable_baselines_is_the_same_everywhere(device):
    envs = [
        HTMVecEnv("HTM-Trees-v0", 4, autoencoder="untrained", device=where, **TREES)
        for where in ("cpu", device)
    ]
    for env in envs:
        env.seed(0)
        env.record()
        env.reset()
    drawn = np.random.default_rng(0)
    for _ in range(6):
        masks = [env.action_masks() for env in envs]
        same(masks[1], masks[0])
        actions = legal_actions(masks[0], drawn)
        (expected, *numbers, infos), (found, *others, _) = (env.step(actions) for env in envs)
        for key, value in expected.items():
            same(found[key], value)
        for before, after in zip(numbers, others, strict=True):
            same(after, before)
    assert any("terminal_observation" in info for info in infos)
    expected, found = (env.take_finished() for env in envs)
    assert torch.equal(found.merges.cpu(), expected.merges)
    same(found.returns, expected.returns)
    same(found.error, expected.error)


def test_samples_are_generated_and_refined(device):
    autoencoder = small_autoencoder(3)
    roots = torch.randn(20, 5, generator=generator())
    mixture = RootMixture.fit(roots.to(device), generator(), [2], ["full"])
    same(
        mixture.log_density(roots.to(device)),
        RootMixture.fit(roots, generator(), [2], ["full"]).log_density(roots),
    )
    limits = {"threshold": 0.5, "max_depth": 4, "max_tokens": 9}
    made = []
    for where in ("cpu", device):
        (there,) = moved(where, autoencoder)
        drawn = generate(there, roots.to(where), **limits)
        made += [(drawn, refine(there, drawn, 2, **limits))]
    for expected, found in zip(*made, strict=True):
        assert found.tokens.device.type == device
        assert torch.equal(found.merges.cpu(), expected.merges)
        same(found.tokens, expected.tokens)


# ---------------------------------------------------------------- those who choose


@pytest.mark.parametrize("network", SCORERS)
@pytest.mark.parametrize("by_centroids", [False, True])
def test_the_best_merges_are_the_same_everywhere(device, autoencoder, network, by_centroids):
    """One at a time, and in rounds."""
    policy, batch, nearest = random_policy(network), random_batch(RAGGED), Nearest(2, by_centroids)
    networks, data = moved(device, autoencoder, policy), batch.to(device)
    for search, among in (
        (merge_greedily, nearest),
        (merge_matchings, nearest),
        (merge_matchings, None),
    ):
        merges = search(*networks, data, among)
        check_merges(merges, data.num_tokens)
        assert torch.equal(merges.cpu(), search(autoencoder, policy, batch, among))


def small_learner(name: str, device: str, **options) -> Learner:
    """Of this algorithm, with tiny networks and batches."""
    known = algorithm(name)
    sizes = {key: value for key, value in SMALL.items() if hasattr(known.config, key)}
    if hasattr(known.config, "autoencoder"):
        sizes["autoencoder"] = replace(known.config.autoencoder, hidden_dim=8)
    config = replace(known.config, **sizes, **options)
    learner = known.learner(
        "HTM-Trees-v0", config, env_kwargs=TREES, embedding_dim=4, device=device
    )
    learner.algo = name
    return learner


@pytest.mark.parametrize("candidates", CANDIDATES, ids=str)
def test_agents_predict_the_same_actions_everywhere(device, candidates):
    one, other = (small_learner("reinforce", where, **candidates) for where in ("cpu", device))
    other.autoencoder.load_state_dict(one.autoencoder.state_dict())
    other.policy.load_state_dict(one.policy.state_dict())
    envs = gym.make_vec(
        "HTM-Trees-v0",
        num_envs=8,
        autoencoder=one.autoencoder,
        invalid_action="raise",
        **candidates,
        **TREES,
    )
    observation, info = envs.reset(seed=0)
    for step in range(10):
        expected, _ = one.predict(observation, deterministic=True)
        found, _ = other.predict(observation, deterministic=True)
        assert isinstance(found, np.ndarray)
        assert found.tolist() == expected.tolist()
        single = {key: value[0] for key, value in observation.items()}
        if info["num_active"][0] > 1:
            assert other.predict(single, deterministic=True)[0] == expected[0]
        actions = found if step % 2 else other.predict(observation)[0]
        observation, _, _, _, info = envs.step(actions)  # raises for an illegal action


def learns_and_resumes(learner: Learner, again: Learner, path) -> None:
    """Updates, scores, and a twin that goes on from a file as the learner itself does."""
    device = learner.device.type
    for progress in (0.0, 0.4, 0.7):  # the first one selects what is cloned
        assert all(math.isfinite(value) for value in learner.update(progress).values())
    assert {weight.device.type for weight in learner.autoencoder.parameters()} == {device}
    scores = learner.evaluate(learner.task.dataset("test"), 8)
    assert math.isfinite(scores["nmse"]) and math.isfinite(scores["sampled_nmse"])
    save_state(path, learner.state())
    again.restore(load_state(path))
    expected = learner.update(0.8)
    assert again.update(0.8) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    roots = [root_embeddings(each, each.dataset, 5).roots for each in (learner, again)]
    same(*roots)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_continue_where_they_stood(device, name, tmp_path):
    values = torch.randn(6, 3, generator=generator()).to(device)
    returns = Returns(values, values > -1, 2, lambda: values.cos(), lambda: values.sin())
    one, other = (make_baseline(name, 2) for _ in range(2))
    one.advantages(returns)
    save_state(tmp_path / "state", one.state())
    other.restore(load_state(tmp_path / "state"))
    assert torch.equal(other.advantages(returns), one.advantages(returns))


@pytest.mark.parametrize("name", LEARNERS)
def test_every_algorithm_learns_and_resumes(device, name, tmp_path):
    options = {}
    if name == "retrained":
        options["run"] = str(tmp_path / "run")
        small_learner("reinforce", device).save(tmp_path / "run")
    twins = (small_learner(name, device, **options) for _ in range(2))
    learns_and_resumes(*twins, tmp_path / "state")


@pytest.mark.parametrize("name", ["reinforce", "replay"])
def test_learners_among_candidates_learn_and_resume(device, name, tmp_path):
    twins = (small_learner(name, device, candidates="knn", k=2) for _ in range(2))
    learns_and_resumes(*twins, tmp_path / "state")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_policies_with_context_learn_and_resume(device, encoder, tmp_path):
    options = {"encoder": encoder, "context": ContextConfig(width=8)}
    twins = (small_learner("reinforce", device, **options) for _ in range(2))
    learns_and_resumes(*twins, tmp_path / "state")


@pytest.mark.parametrize("name", ["reinforce", "replay", "ppo"])
def test_a_run_of_a_device_that_is_not_here_is_opened_on_the_processor(name, tmp_path):
    """With the networks that it has, and another generator: a GPU's state is shorter."""
    learner, folder = small_learner(name, "cpu"), RunDirectory(tmp_path)
    learner.save(tmp_path)
    folder.save_config(replace(folder.load_config(), device="cuda:63"))
    state = load_state(folder.checkpoint_path)
    state["learner"]["generator"] = torch.zeros(16, dtype=torch.uint8)
    save_state(folder.checkpoint_path, state)
    with pytest.warns(UserWarning, match="cuda:63.* opened on the processor"):
        opened = type(learner).load(tmp_path)
    assert opened.autoencoder.weights_hash() == learner.autoencoder.weights_hash()
    opened.update(0.5)


@pytest.mark.slow
def test_a_run_is_trained_and_looked_at(device, tmp_path):
    """Every command that reads a run, on the device that it was trained on."""
    run = str(tmp_path / "run")
    few = ["--n", "8", "--real", "4", "--roots", "40", "--components", "1"]
    for arguments in (
        [
            "train",
            "--env",
            "HTM-Trees-v0",
            "--env-kwargs",
            json.dumps({"heights": [2, 3]}),
            "--algo",
            "reinforce",
            "--merges",
            "200",
            "--batch-size",
            "4",
            "--policy-hidden-dim",
            "8",
            "--set",
            "autoencoder.hidden_dim=8",
            "--device",
            device,
            "--out",
            run,
        ],
        ["evaluate", run, "--episodes", "8", "--merge-rounds"],
        ["plot", run, "--samples", "1"],
        ["view", run, "--samples", "2"],
        ["embed", run, "--samples", "8"],
        ["generate", run, *few],
    ):
        assert main(arguments) == 0, arguments[0]
