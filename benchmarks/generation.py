"""Seconds in which roots become token sets: ``python -m benchmarks.generation``."""

from __future__ import annotations

import argparse
import time

import torch

from benchmarks.measuring import add_device, settle
from benchmarks.table import report
from htm_env import HTMAutoencoder
from htm_env.generation.generate import generate, refine

SAMPLES, REPEATS = 1000, 5
CASES = [(15, 8), (15, 64), (64, 64)]
"""Tokens of every sample, embedding dimension."""


def seconds(
    tokens: int, embedding_dim: int, device: str = "cpu", *, samples: int = SAMPLES
) -> tuple[float, float]:
    """Median time of decoding all samples, and of refining them once, on one thread."""
    generator = torch.Generator(device).manual_seed(0)
    autoencoder = HTMAutoencoder(2, embedding_dim, generator=generator).to(device)
    roots = torch.randn(samples, embedding_dim, generator=generator, device=device)
    limits = {"threshold": 1.0, "max_tokens": tokens}  # nothing is a leaf before the limit
    decoding, refining = [], []
    for _ in range(REPEATS):
        started = time.perf_counter()
        generated = generate(autoencoder, roots, **limits)
        settle(device)
        decoded = time.perf_counter()
        refine(autoencoder, generated, 1, **limits)
        settle(device)
        decoding.append(decoded - started)
        refining.append(time.perf_counter() - decoded)
    assert (generated.num_tokens == tokens).all()
    return sorted(decoding)[REPEATS // 2], sorted(refining)[REPEATS // 2]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_device(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for tokens, embedding_dim in CASES:
        decoding, refining = seconds(tokens, embedding_dim, options.device)
        rows.append(
            {
                "samples": SAMPLES,
                "tokens": tokens,
                "D": embedding_dim,
                "decoding, s": decoding,
                "one refinement, s": refining,
            }
        )
    report("generation", rows, device=options.device)


if __name__ == "__main__":
    main()
