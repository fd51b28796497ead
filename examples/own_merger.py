"""A merger and a reward of one's own: codes for the letters of an alphabet, from their weights.

A code is a binary tree over the letters. Merging adds weights up, and the weights of all merges sum
up to the mean length of a code word. Merging the two lightest each time is best (Huffman 1952).

    htm train --data weights.npy --algo reinforce \\
        --merger own_merger:MERGER --reward own_merger:REWARD

finds this module where it is on Python's path, as in the present folder.
"""

import sys

import gymnasium as gym
import numpy as np
import torch

from agents import Reinforce, ReinforceConfig
from htm_env import pair_to_action


class Weights:
    """An embedding is a weight and its logarithm."""

    commutative = associative = True  # neither order nor shape of a tree changes its weight

    def lift(self, tokens):  # (..., 1) --> (..., 2)
        return torch.cat([tokens, tokens.clamp(min=1e-6).log()], dim=-1)

    def __call__(self, first, second):  # (merges, 2) each, and what they become
        return self.lift(first[:, :1] + second[:, :1])


class Length:
    """Minus the weight that a merge makes: each of its letters gets one more bit."""

    def of_merges(self, first, second, merged, last):
        """What merges earn, (merges,); ``last``: True <--> a merge makes the root."""
        return -merged[:, 0]


MERGER, REWARD = Weights(), Length()

if __name__ == "__main__":
    letters = np.random.default_rng(0).dirichlet(np.full(8, 0.5), size=2000)[..., None]
    env = gym.make("htm_env:HTM-v0", dataset=letters, merger=MERGER, reward=REWARD, split="test")
    lengths = []
    for key in env.unwrapped.fixed_keys(100):
        observation, info = env.reset(options={"key": key})
        while info["num_active"] > 1:
            weights = np.where(observation["active"], observation["tokens"][:, 0], np.inf)
            lightest = torch.from_numpy(np.argsort(weights)[:2])
            observation, _, _, _, info = env.step(int(pair_to_action(*lightest, len(weights))))
        lengths.append(info["error"])  # what the merges cost
    print("bits a letter, Huffman", np.mean(lengths))
    own, config = {"dataset": letters}, ReinforceConfig(reward=REWARD)
    agent = Reinforce("HTM-v0", config, env_kwargs=own, merger=MERGER)
    agent.train(seconds=float(sys.argv[1]) if len(sys.argv) > 1 else 30.0)
    print("bits a letter, learned", -agent.evaluate(agent.task.dataset("test"), 100)["return"])
