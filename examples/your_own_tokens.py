"""Your own sets of tokens: a list of arrays, one row a token, as many rows as you like."""

import sys

import numpy as np
import torch

from agents import Reinforce

seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
torch.set_num_threads(1)

# Two to five clusters of points each: the tokens have two coordinates.
generator = np.random.default_rng(0)
sets = []
for _ in range(500):
    centres = generator.uniform(-10, 10, (generator.integers(2, 6), 2))
    sets.append(np.concatenate([c + generator.normal(size=(3, 2)) for c in centres]))

agent = Reinforce("HTM-v0", env_kwargs={"dataset": sets}, embedding_dim=8)
agent.train(seconds=seconds, progress_bar=True)

new = sets[:4]  # or any other sets of points
print("roots", agent.embed(new).shape)
decoded = agent.reconstruct(new)
errors = [np.abs(one - back).mean() for one, back in zip(new, decoded, strict=True)]
print("mean absolute error", np.mean(errors))
print("a tree over the rows of the first set", agent.trees(new)[0])
