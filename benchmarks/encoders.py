"""What a context encoder costs: ``python -m benchmarks.encoders``.

Microseconds a merge over whole episodes of P tokens, on random tokens of two coordinates and an
untrained autoencoder: to choose the merges (a rollout, the autoencoder's merges included), and to
learn from them (log-probabilities and their gradient). One thread.
"""

from __future__ import annotations

import argparse

import torch

from agents.encoders import ENCODERS, NO_ENCODER
from agents.networks.base import MergePolicy
from agents.networks.context import make_policy
from agents.rollouts.rollout import Episodes, MergeTerms, rollout
from benchmarks.measuring import Row, seconds_of
from benchmarks.table import report
from htm_env import HTMAutoencoder
from htm_env.autoencoder import seeded_initialisation
from htm_env.types import TokenBatch

POPULATIONS = {16: 128, 64: 16, 256: 2}
"""Tokens of a sample, and how many samples at a time."""
EMBEDDING_DIM, COORDINATES = 16, 2
SECONDS = 5.0
"""Of each cell of the table, at least."""


def random_batch(samples: int, tokens: int, generator: torch.Generator) -> TokenBatch:
    """Points without a hierarchy."""
    return TokenBatch(
        torch.randn(samples, tokens, COORDINATES, generator=generator),
        torch.ones(samples, tokens, dtype=torch.bool),
        torch.zeros(samples, 0, tokens, dtype=torch.bool),
        torch.full((samples, tokens - 1, 2), -1),
    )


def learn(
    policy: MergePolicy,
    autoencoder: HTMAutoencoder,
    batch: TokenBatch,
    episodes: Episodes,
    measured: MergeTerms,
) -> None:
    """The gradient of one update of the policy."""
    policy.zero_grad()
    ones = torch.ones_like(measured.log_prob)
    terms = policy.terms(autoencoder, batch, episodes)
    terms.backward(measured, ones, 0 * ones[:, :1], False)


def costs(name: str, tokens: int, samples: int, seconds: float) -> Row:
    """Microseconds a merge of one encoder on samples of so many tokens."""
    generator = torch.Generator().manual_seed(0)
    autoencoder = HTMAutoencoder(COORDINATES, EMBEDDING_DIM, generator=generator)
    with seeded_initialisation(generator):
        policy = make_policy("pointer", EMBEDDING_DIM, 128, name, None, COORDINATES)
    batch = random_batch(samples, tokens, generator)
    made = rollout(autoencoder, policy, batch, generator)
    merges = samples * (tokens - 1)
    choosing = seconds_of(lambda: rollout(autoencoder, policy, batch, generator), seconds)
    learning = seconds_of(lambda: learn(policy, autoencoder, batch, *made), seconds)
    return {
        f"P = {tokens}: choose, µs": choosing / merges * 1e6,
        f"P = {tokens}: learn, µs": learning / merges * 1e6,
    }


def rows_of(populations: dict[int, int], seconds: float) -> list[Row]:
    """One row an encoder: its costs on samples of every number of tokens."""
    rows: list[Row] = [{"encoder": name} for name in (NO_ENCODER, *ENCODERS)]
    for row in rows:
        for tokens, samples in populations.items():
            row |= costs(row["encoder"], tokens, samples, seconds)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each cell, at least")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    report("encoders", rows_of(POPULATIONS, options.seconds))


if __name__ == "__main__":
    main()
