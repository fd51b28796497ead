"""Environment steps per second with random legal actions: ``python -m benchmarks.environment``.

The frozen autoencoder is untrained (jets have none), one thread, and a step gives the mask of the
next legal actions too; choosing among them is left out of the time. Ways to have copies: ``native``
(one batch),
``sb3`` (the same behind Stable-Baselines3's interface), ``sync`` (Gymnasium's ``SyncVectorEnv`` of
single environments), ``single`` (one) and ``plain reference`` (``plain_environment.py``: samples of
equally many tokens, up to 128, and 256 copies at most; what is not over in time is the cheaper part
of its episode; with the terminal reward it decodes at the end alone, ours at every step, for
``info["error"]``). A reset of a copy counts as a step, but behind ``sb3``, where the step that ends
an episode starts the next one too. ``--quick`` takes a few of the rows. Wherever the autoencoder
runs, a step is over when its observation is in the processor's memory.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import htm_env  # noqa: F401  # registers the ids
from agents.ppo.vector_env import HTMVecEnv
from benchmarks.measuring import REFERENCE, Row, add_device, add_ratios, one_by_one
from benchmarks.plain_environment import PlainEnvironment
from benchmarks.table import report
from htm_env.datasets import make_dataset
from htm_env.forest import action_to_pair, pair_to_action
from htm_env.weights import make_autoencoder

SECONDS, PATIENCE = 2.0, 4
"""Each row takes so long, and until one whole episode is over, up to ``PATIENCE`` times that."""
TREES, CROSSES, JETS = "HTM-Trees-v0", "HTM-Crosses-v0", "HTM-Jets-v0"
GEOMETRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "7": (TREES, {"heights": (3,)}),
    "15": (TREES, {"heights": (4,)}),
    "31": (TREES, {"heights": (5,)}),
    "64": (CROSSES, {"num_crosses": (32,)}),
    "128": (CROSSES, {"num_crosses": (64,)}),
    "512": (CROSSES, {"num_crosses": (256,)}),
    "3, 7 or 15": (TREES, {"heights": (2, 3, 4)}),
    "jets, up to 20": (JETS, {}),
}
"""By the tokens of a sample."""
COPIES, QUICK_COPIES = (1, 4, 16, 64, 256, 1024), (1, 16, 256)
REWARDS = ("incremental", "terminal")
KNOWN = "known"
"""The reward of jets, whose merger is known; there is no autoencoder."""
TARGETS = {
    ("native", "15", 256, "incremental"): 60_000,
    ("sb3", "15", 256, "incremental"): 40_000,
    ("native", "jets, up to 20", 256, KNOWN): 60_000,
}
"""Steps per second of a way, by tokens, copies and reward."""
Step = Callable[[np.ndarray | None], np.ndarray]
"""Takes actions, or None for the first reset; returns which slots are active, bool ``(B, P)``."""


def single(env_id: str, copies: int, **kwargs: Any) -> Step:
    env, ended = gym.make(env_id, **kwargs), [True]

    def step(actions: np.ndarray | None) -> np.ndarray:
        if ended[0]:
            observation, _ = env.reset(seed=0 if actions is None else None)
            ended[0] = False
        else:
            assert actions is not None
            observation, _, terminated, truncated, _ = env.step(int(actions[0]))
            ended[0] = terminated or truncated
        return observation["active"][None].astype(bool)

    return step


def vector(mode: str) -> Callable[..., Step]:
    """Gymnasium's vector environments; they reset a copy in the step after its end."""

    def made(env_id: str, copies: int, **kwargs: Any) -> Step:
        env = gym.make_vec(env_id, num_envs=copies, vectorization_mode=mode, **kwargs)

        def step(actions: np.ndarray | None) -> np.ndarray:
            observation = env.reset(seed=0)[0] if actions is None else env.step(actions)[0]
            return observation["active"].astype(bool)

        return step

    return made


def sb3(env_id: str, copies: int, **kwargs: Any) -> Step:
    env = HTMVecEnv(env_id, copies, **kwargs)
    env.seed(0)

    def step(actions: np.ndarray | None) -> np.ndarray:
        observation = env.reset() if actions is None else env.step(actions)[0]
        env.action_masks()
        return observation["active"].astype(bool)

    return step


def plain(
    env_id: str,
    copies: int,
    *,
    autoencoder: str,
    reward: str = "incremental",
    device: str = "cpu",
    **geometry: Any,
) -> Step:
    dataset = make_dataset(env_id, split="train", **geometry)
    network = make_autoencoder(env_id, dataset, autoencoder).to(device)
    env, generator = PlainEnvironment(network, reward), torch.Generator().manual_seed(0)

    def step(actions: np.ndarray | None) -> np.ndarray:
        if actions is None or env.over:
            env.reset(dataset.sample(copies, generator).tokens.to(device))
        else:
            first, second = action_to_pair(torch.from_numpy(actions), dataset.max_tokens)
            env.step(first.to(device), second.to(device)).cpu()
        env.slots.cpu()
        env.action_masks().cpu()
        return env.active.cpu().numpy()

    return step


WAYS: dict[str, Callable[..., Step]] = {
    "single": single,
    "sync": vector("sync"),
    "native": vector("vector_entry_point"),
    "sb3": sb3,
    REFERENCE: plain,
}
PLAIN_SIZES = ("7", "15", "31", "64", "128")
MOST_PLAIN = 256
"""Tokens and copies of the plain reference."""


def random_legal(active: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A uniformly random pair of active slots a copy; any action where an episode has ended."""
    rows, keys = np.arange(len(active)), generator.random(active.shape, dtype=np.float32) + active
    first = keys.argmax(axis=1)
    keys[rows, first] = -1.0
    return pair_to_action(first, keys.argmax(axis=1), active.shape[1])


def steps_per_second(
    way: str, tokens: str, copies: int, reward: str, seconds: float, device: str
) -> float:
    """Steps of all copies together."""
    env_id, geometry = GEOMETRIES[tokens]
    if reward != KNOWN:
        geometry = geometry | {"autoencoder": "untrained", "reward": reward}
    step = WAYS[way](env_id, copies, device=device, **geometry)
    generator = np.random.default_rng(0)
    active = step(None)
    for _ in range(2):  # to warm up
        active = step(random_legal(active, generator))
    stepping, steps = 0.0, 0
    while stepping < seconds or (steps < active.shape[1] and stepping < PATIENCE * seconds):
        actions = random_legal(active, generator)
        started = time.perf_counter()
        active = step(actions)
        stepping += time.perf_counter() - started
        steps += 1
    return steps * copies / stepping


def measure(
    way: str, tokens: str, copies: int, reward: str, seconds: float, device: str = "cpu"
) -> Row:
    """One row."""
    return {
        "way": way,
        "tokens": tokens,
        "copies": copies,
        "reward": reward,
        "steps/s": steps_per_second(way, tokens, copies, reward, seconds, device),
        "target": TARGETS.get((way, tokens, copies, reward)),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="15 tokens, few copies, a second each")
    parser.add_argument("--seconds", type=float, help="of each row, at least")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--tokens", nargs="*", choices=list(GEOMETRIES))
    parser.add_argument("--copies", nargs="*", type=int)
    parser.add_argument("--rewards", nargs="*", default=list(REWARDS), choices=list(REWARDS))
    add_device(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    quick = options.quick
    all_tokens = options.tokens or (["15"] if quick else list(GEOMETRIES))
    all_copies = options.copies or (QUICK_COPIES if quick else COPIES)
    seconds = options.seconds or (0.5 * SECONDS if quick else SECONDS)
    cases = [
        (way, tokens, copies, reward, seconds, options.device)
        for tokens in all_tokens
        for reward in ((KNOWN,) if GEOMETRIES[tokens][0] == JETS else options.rewards)
        for way in options.ways
        for copies in ((1,) if way == "single" else all_copies)
        if way != REFERENCE or (tokens in PLAIN_SIZES and copies <= MOST_PLAIN)
    ]
    rows = one_by_one(cases, measure)
    add_ratios(rows, "way", lambda row: (row["tokens"], row["copies"], row["reward"]), "steps/s")
    report("environment", rows, device=options.device)


if __name__ == "__main__":
    main()
