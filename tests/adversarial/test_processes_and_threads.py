"""Environments and learners in processes of every kind and in threads: the same everywhere."""

from __future__ import annotations

import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from test_crashes import course_of, train

from agents import Reinforce
from agents.learners.reinforce import ReinforceConfig
from agents.optim.autoencoder_trainer import AutoencoderConfig
from htm_env.env import HTMEnv

SMALL = {"autoencoder": "untrained", "heights": (2, 3), "embedding_dim": 4}
SEEDS = range(3)


def make() -> HTMEnv:
    return HTMEnv("HTM-Trees-v0", **SMALL)


def episodes(seed: int) -> list[float]:
    """What thirty random merges earn."""
    env, rng, rewards = make(), np.random.default_rng(seed), []
    _, info = env.reset(seed=seed)
    for _ in range(30):
        action = rng.choice(np.flatnonzero(info["action_mask"]))
        _, reward, terminated, _, info = env.step(action)
        rewards.append(reward)
        if terminated:
            _, info = env.reset()
    return rewards


def trained(seed: int) -> tuple[str, int]:
    """The weights after a few updates, and the merges that they took."""
    autoencoder = AutoencoderConfig(hidden_dim=8)
    config = ReinforceConfig(autoencoder=autoencoder, policy_hidden_dim=8, batch_size=4)
    learner = Reinforce("HTM-Trees-v0", config, env_kwargs={"heights": [2]}, seed=seed)
    learner.train(merges=100)
    return learner.autoencoder.weights_hash(), learner.merges_made


def in_processes(kind: str) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(kind))


def kinds(in_full: bool) -> list[str]:
    """Ways to start a process; all but ``fork`` take seconds, since they load everything anew."""
    known = multiprocessing.get_all_start_methods()
    return [kind for kind in known if in_full or kind == "fork"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forks beside threads
@pytest.mark.parametrize("work", [episodes, trained])
def test_processes_and_threads_give_what_one_process_gives(work, in_full):
    expected = [work(seed) for seed in SEEDS]
    with ThreadPoolExecutor(len(SEEDS)) as pool:
        assert list(pool.map(work, SEEDS)) == expected
    for kind in kinds(in_full):
        with in_processes(kind) as pool:
            assert list(pool.map(work, SEEDS)) == expected, kind


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_copies_in_processes_are_those_in_one(in_full):
    for kind in kinds(in_full):
        copies = [
            SyncVectorEnv([make] * 2),
            AsyncVectorEnv([make] * 2, context=kind),
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shown = [each.reset(seed=5) for each in copies]
            rng = np.random.default_rng(0)
            for _ in range(12):
                weights = rng.random(shown[0][1]["action_mask"].shape)
                actions = (weights * shown[0][1]["action_mask"]).argmax(1)
                stepped = [each.step(actions) for each in copies]
                shown = [(each[0], each[4]) for each in stepped]
                for one, other in zip(stepped[0][:4], stepped[1][:4], strict=True):
                    np.testing.assert_equal(one, other)
        for each in copies:
            each.close()


def test_a_run_in_a_thread_ends_as_in_the_main_one(tmp_path):
    """Only the main thread can take signals; another one leaves them to it."""
    train(tmp_path / "main")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train, tmp_path / "thread").result()
    assert course_of(tmp_path / "thread") == course_of(tmp_path / "main")
