"""Minari: record episodes of random legal merges, load them again, and replay every one.

Needs `minari[hdf5]`. Minari keeps data sets in the folder that MINARI_DATASETS_PATH names.
"""

import argparse

import gymnasium as gym
import minari
import numpy as np

import htm_env  # noqa: F401  # registers the ids

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--env", default="HTM-Trees-v0")
parser.add_argument("--steps", type=int, default=2_000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--name", default="htm/trees-random-v0")
args = parser.parse_args()

# An episode is a function of its seed, which Minari draws and stores with it.
generator = np.random.default_rng(args.seed)
env = minari.DataCollector(gym.make(args.env))
made = 0
while made < args.steps:
    _, info = env.reset(seed=int(generator.integers(2**31)))
    finished = False
    while not finished:
        action = generator.choice(np.flatnonzero(info["action_mask"]))
        _, _, terminated, truncated, info = env.step(action)
        finished, made = terminated or truncated, made + 1
if args.name in minari.list_local_datasets():
    minari.delete_dataset(args.name)
env.create_dataset(args.name, algorithm_name="random legal merges", eval_env=args.env)
env.close()

dataset = minari.load_dataset(args.name)
again = dataset.recover_environment()
seeds = [row["seed"] for row in dataset.storage.get_episode_metadata(dataset.episode_indices)]
differences = []
for episode, seed in zip(dataset.iterate_episodes(), seeds, strict=True):
    again.reset(seed=int(seed))
    rewards = [float(again.step(action)[1]) for action in episode.actions]
    differences.append(np.abs(np.array(rewards) - episode.rewards).max())
returns = [episode.rewards.sum() for episode in dataset.iterate_episodes()]
print(f"{dataset.total_episodes} episodes, {dataset.total_steps} merges, {again.spec.id}")
print(f"mean return {np.mean(returns):.4f}, largest difference of a reward {max(differences):.1e}")
