"""Your own sets of tokens: a list of arrays, one row a token, as many rows as you like."""

import sys

import numpy as np
import torch

from agents import Reinforce
from htm_env import make_dataset

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

batch = make_dataset("HTM-v0", split="test", dataset=sets).fixed(4)
merges = agent.plan(batch, torch.Generator().manual_seed(0), greedy=True)
with torch.no_grad():
    roots = agent.autoencoder.encode(batch.tokens, batch.present, merges).roots
    decoded = agent.autoencoder.decode(roots, merges, batch.present)
print("roots", tuple(roots.shape))
print("mean absolute error", float((decoded - batch.tokens)[batch.present].abs().mean()))
