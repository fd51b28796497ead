"""What a context encoder costs: ``python -m benchmarks.encoders``.

Microseconds a merge over whole episodes of P tokens, on random tokens of two coordinates and an
untrained autoencoder: to choose the merges (a rollout, the autoencoder's merges included), and to
learn from them (log-probabilities and their gradient). One thread.
"""

from __future__ import annotations

import torch

from agents.encoders import ENCODERS, NO_ENCODER
from agents.likelihood.judging import judge
from agents.networks.base import MergePolicy
from agents.networks.context import make_policy
from agents.rollouts.rollout import Rollout, rollout
from benchmarks.measuring import seconds_of
from benchmarks.table import report
from htm_env import HTMAutoencoder
from htm_env.coding.networks import seeded_initialisation
from htm_env.types import TokenBatch

POPULATIONS = {16: 128, 64: 16, 256: 2}
"""Tokens of a sample, and how many samples at a time."""
EMBEDDING_DIM, COORDINATES, SECONDS = 16, 2, 5.0


def random_batch(samples: int, tokens: int, generator: torch.Generator) -> TokenBatch:
    """Points without a hierarchy."""
    return TokenBatch(
        torch.randn(samples, tokens, COORDINATES, generator=generator),
        torch.ones(samples, tokens, dtype=torch.bool),
        torch.zeros(samples, 0, tokens, dtype=torch.bool),
        torch.full((samples, tokens - 1, 2), -1),
    )


def learn(
    policy: MergePolicy, autoencoder: HTMAutoencoder, batch: TokenBatch, episodes: Rollout
) -> None:
    """The gradient of one update of the policy."""
    policy.zero_grad()
    ones = torch.ones_like(episodes.log_prob)
    judge(policy, autoencoder, batch, episodes).learn(episodes, ones, 0 * ones[:, :1], False)


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name in (NO_ENCODER, *ENCODERS):
        row: dict[str, str | float] = {"encoder": name}
        for tokens, samples in POPULATIONS.items():
            generator = torch.Generator().manual_seed(0)
            autoencoder = HTMAutoencoder(COORDINATES, EMBEDDING_DIM, generator=generator)
            with seeded_initialisation(generator):
                policy = make_policy("pointer", EMBEDDING_DIM, 128, name, None, COORDINATES)
            batch = random_batch(samples, tokens, generator)
            episodes = rollout(autoencoder, policy, batch, generator)
            merges = samples * (tokens - 1)
            choosing = seconds_of(
                lambda: rollout(autoencoder, policy, batch, generator),  # noqa: B023
                SECONDS,
            )
            learning = seconds_of(
                lambda: learn(policy, autoencoder, batch, episodes),  # noqa: B023
                SECONDS,
            )
            row[f"P = {tokens}: choose, µs"] = choosing / merges * 1e6
            row[f"P = {tokens}: learn, µs"] = learning / merges * 1e6
        rows.append(row)
    report("encoders", rows)


if __name__ == "__main__":
    main()
