"""Train an agent and its autoencoder together, then let it act in the environment they made."""

import sys

import gymnasium as gym
import torch

from agents import Reinforce

seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
torch.set_num_threads(1)  # fastest for networks of this size

agent = Reinforce("HTM-Trees-v0", env_kwargs={"heights": (3,)}, seed=0)
agent.train(seconds=seconds, progress_bar=True)
agent.save("runs/example-agent")
agent = Reinforce.load("runs/example-agent")

env = gym.make("htm_env:HTM-Trees-v0", heights=(3,), autoencoder=agent.autoencoder, split="test")
for key in env.unwrapped.fixed_keys(3):
    observation, info = env.reset(options={"key": key})
    finished = False
    while not finished:
        action, _ = agent.predict(observation, deterministic=True)
        observation, reward, finished, _, info = env.step(action)
    print(f"error {info['error']:.4f}   {env.unwrapped.merge_tree()}")
