"""Draw new token sets from a trained agent: a mixture over its roots, unmerged and unlifted."""

import sys

import torch

from agents import Reinforce
from htm_env import RootMixture, check_validity, generate, nmse_per_sample, refine

seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
torch.set_num_threads(1)  # fastest for networks of this size
generator = torch.Generator().manual_seed(0)

agent = Reinforce("HTM-Crosses-v0", env_kwargs={"num_crosses": (1, 2)}, embedding_dim=12, seed=0)
agent.train(seconds=seconds, progress_bar=True)

samples = agent.dataset.fixed(2000)
with torch.no_grad():
    merges = agent.plan(samples, generator, greedy=True)
    roots = agent.autoencoder.encode(samples.tokens, samples.present, merges).roots
    decoded = agent.autoencoder.decode(roots, merges, samples.present)
errors = nmse_per_sample(decoded, samples.tokens, samples.present, agent.std)
mixture = RootMixture.fit(roots, generator, components=(8, 32))
drawn = generate(agent.autoencoder, mixture.sample(100, generator))
# What is reconstructed as well as nine in ten real samples is good enough.
refined = refine(agent.autoencoder, drawn, rounds=3, enough=float(errors.quantile(0.9)))

for name, made in (("drawn", drawn), ("refined", refined)):
    found = check_validity(agent.dataset, made.tokens.numpy(), made.present.numpy())
    print(f"{name}: {found.valid.mean():.0%} of {len(made.tokens)} are pairs of crossing segments")
print(f"the first: {int(refined.num_tokens[0])} segments, tree {refined.tree(0)}")
