"""A reward of one's own: merging what is near costs little, whatever the autoencoder makes of it.

    htm train --env HTM-Trees-v0 --algo reinforce --reward own_reward:near

finds this module where it is on Python's path, as in the present folder.
"""

import sys

import gymnasium as gym
import torch

from agents import Reinforce, ReinforceConfig


def near(before, after, first, second):
    """Minus the squared distance of the two embeddings that were merged, (B,).

    ``before`` and ``after`` are the populations around the merge of the slots ``first`` and
    ``second`` (see ``htm_env/population.py``: embeddings, leaf_counts, error, batch, forest); where
    nothing was merged the reward is not used.
    """
    rows = torch.arange(len(first))
    pair = before.embeddings[rows, first] - before.embeddings[rows, second]  # (B, D)
    return -pair.square().mean(dim=1)


class Near:
    """The same as an object, which may also score whole episodes at once."""

    def step(self, transition):
        """What one merge earns, (B,)."""
        return near(*transition[1:])

    def episode(self, episodes):
        """What all merges earn, (B, M), from the nodes that they joined; 0 in padding."""
        rows = torch.arange(len(episodes.merges))[:, None]
        first, second = episodes.merges.clamp(min=0).unbind(2)  # (B, M)
        pair = episodes.nodes[rows, first] - episodes.nodes[rows, second]  # (B, M, D)
        return -pair.square().mean(dim=2) * (episodes.merges[..., 0] >= 0)


if __name__ == "__main__":
    env = gym.make("htm_env:HTM-Trees-v0", reward=near)
    env.reset(seed=0)
    print("paid for one merge:", env.step(0)[1])

    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    agent = Reinforce("HTM-Trees-v0", ReinforceConfig(reward=Near()), embedding_dim=8)
    agent.train(seconds=seconds)
    print("error", agent.evaluate(agent.task.dataset("test"), 100)["nmse"])
