"""Data of one's own under an environment id of its own: points of two nested circles.

    htm train --env own_dataset:Rings-v0 --algo nearest

finds this module where it is on Python's path, as in the present folder.
"""

import sys

import gymnasium as gym
import numpy as np

import htm_env


class Rings(htm_env.DrawnDataset):
    """Points of an outer and an inner circle; ``points`` of each, ``ratio`` between the radii."""

    token_dim, kind = 2, "points"
    has_hierarchy = True

    def __init__(self, split="train", points=4, ratio=0.3):
        super().__init__(split)
        self.points, self.ratio = points, ratio
        self.max_tokens = 2 * points

    def draw(self, generator):
        """Both circles are merged along the circle, and then with each other."""
        radius = np.repeat([1.0, self.ratio], self.points)
        angle = generator.uniform(0, 2 * np.pi, (2, self.points))
        angle = np.sort(angle, axis=1).ravel()
        centre = generator.uniform(-3, 3, 2)
        tokens = centre + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)

        merges, made, last = [], 2 * self.points, []
        for first in (0, self.points):
            node = first
            for other in range(first + 1, first + self.points):
                merges.append((node, other))
                node, made = made, made + 1
            last.append(node)
        return tokens, [*merges, tuple(last)]


htm_env.register("Rings-v0", dataset=Rings)

if __name__ == "__main__":
    from agents import FixedOrder, FixedOrderConfig

    print(gym.make("Rings-v0", points=3).reset(seed=0)[0]["tokens"].shape, "embeddings")
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    agent = FixedOrder("Rings-v0", FixedOrderConfig(policy="nearest_sorted"), embedding_dim=8)
    agent.train(seconds=seconds)
    scores = agent.evaluate(agent.task.dataset("test"), 100)
    print("error", scores["nmse"], "clades found", scores["tree_recall"])
