"""Time and memory against the number of tokens: ``python -m benchmarks.scaling``.

One sample of random points is merged by an untrained pointer policy, encoded along the merges and
reconstructed: one merge at a time and in matching rounds, choosing among each token's 8 nearest
(knn), among all pairs, and by the plain reference (``plain_reference.py``), as far as its table of
pairs is bearable. And a joint update of REINFORCE, two trees of one sample, and of the reference,
with two samples. Memory is what the process (of a GPU: its tensors there) holds at its peak beyond
what it held after its imports; every row has a process of its own. The exponents are the slopes of
the logarithms (least squares). Last, what following the lists costs: repairing them after a merge,
and making all of them anew, in embedding space; and how much of the truth the lists hold at their
worst, just before half of the tokens are left and all are made anew.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents import Reinforce, ReinforceConfig
from agents.networks.scorers import PairPolicy, PointerPolicy
from agents.rollouts.greedy_search import merge_greedily, merge_matchings
from benchmarks import plain_reference
from benchmarks.measuring import (
    REFERENCE,
    TIME,
    Row,
    add_device,
    add_ratios,
    own_process,
    peak_gigabytes,
    settle,
)
from benchmarks.neighbour_lists import EMBEDDING_DIM, K, repairs
from benchmarks.table import report
from htm_env import HTMAutoencoder
from htm_env.autoencoder import seeded_initialisation
from htm_env.candidates import Nearest
from htm_env.types import NONE, TokenBatch

COORDINATES, HIDDEN_DIM = 2, 256
LEAST, MOST = 16, 8192
SECONDS = 1.0
"""Calls are repeated for so long, and made once at least."""


Prepare = Callable[[int, str], Callable[[], object]]
"""Of the number of tokens and the device: what is timed, ready to be called."""


class Way(NamedTuple):
    """One way of merging, and how far it is followed."""

    prepare: Prepare
    most: int


class Fit(NamedTuple):
    """An exponent, the tokens that it is fitted over, and its target where there is one."""

    column: str
    least: int
    most: int
    target: float | None


def points(tokens: int, samples: int = 1) -> TokenBatch:
    """Samples of random points without a hierarchy."""
    drawn = torch.Generator().manual_seed(0)
    return TokenBatch(
        torch.randn(samples, tokens, COORDINATES, generator=drawn),
        torch.ones(samples, tokens, dtype=torch.bool),
        torch.zeros(samples, 0, tokens, dtype=torch.bool),
        torch.full((samples, tokens - 1, 2), NONE),
    )


def reconstructing(merging: Callable) -> Prepare:
    """Merge, encode along the merges, decode."""

    def prepared(tokens: int, device: str) -> Callable[[], object]:
        generator = torch.Generator(device).manual_seed(1)
        autoencoder = HTMAutoencoder(COORDINATES, EMBEDDING_DIM, generator=generator).to(device)
        with seeded_initialisation(generator):
            policy = PointerPolicy(EMBEDDING_DIM).to(device)
        batch = points(tokens).to(device)

        @torch.no_grad()
        def once() -> object:
            merges = merging(autoencoder, policy, batch)
            encoding = autoencoder.encode(batch.tokens, batch.present, merges)
            return autoencoder.decode(encoding.population, merges, batch.present)

        return once

    return prepared


def merge_among_all(
    autoencoder: HTMAutoencoder, policy: PointerPolicy, batch: TokenBatch
) -> Tensor:
    """The merges of the best pair at every step."""
    generator = torch.Generator(batch.tokens.device)
    return policy.plan(autoencoder, batch, generator, greedy=True)


def training(candidates: str) -> Prepare:
    """A joint update on two trees of a sample of an array of points."""

    def prepared(tokens: int, device: str) -> Callable[[], object]:
        config = replace(
            ReinforceConfig(),
            candidates=candidates,
            k=K,
            batch_size=1,
            batch_growth=0.0,
            demonstration_share=((0.0, 0.0),),
        )
        samples = np.random.default_rng(0).standard_normal((16, tokens, COORDINATES))
        learner = Reinforce(
            "HTM-v0",
            config,
            env_kwargs={"dataset": samples.astype(np.float32)},
            embedding_dim=EMBEDDING_DIM,
            device=device,
        )
        return lambda: learner.update(0.5)

    return prepared


def plainly(trained: bool) -> Prepare:
    """The same by the plain reference; or its joint update, on two samples."""

    def prepared(tokens: int, device: str) -> Callable[[], object]:
        generator = torch.Generator(device).manual_seed(1)
        autoencoder = HTMAutoencoder(
            COORDINATES, EMBEDDING_DIM, HIDDEN_DIM, "mlp", generator=generator
        ).to(device)
        with seeded_initialisation(generator):
            policy = PairPolicy(EMBEDDING_DIM, HIDDEN_DIM).to(device)
        sample = points(tokens).tokens.to(device)
        if not trained:

            @torch.no_grad()
            def once() -> object:
                encoded = plain_reference.encode(autoencoder, policy, sample, generator)
                return autoencoder.unlifter(plain_reference.decode(autoencoder, encoded))

            return once
        optimizer = torch.optim.Adam([*autoencoder.parameters(), *policy.parameters()], lr=3e-3)
        both = sample.repeat(2, 1, 1)
        return lambda: plain_reference.training_step(
            autoencoder, policy, optimizer, both, generator
        )

    return prepared


NEAREST = Nearest(K)
WAYS = {
    "knn, one merge at a time": Way(
        reconstructing(lambda a, p, batch: merge_greedily(a, p, batch, NEAREST)), MOST
    ),
    "knn, matching rounds": Way(
        reconstructing(lambda a, p, batch: merge_matchings(a, p, batch, NEAREST)), MOST
    ),
    "all pairs, one merge at a time": Way(reconstructing(merge_among_all), 512),
    "training, knn": Way(training("knn"), 1024),
    "training, all pairs": Way(training("all"), 256),
    REFERENCE: Way(plainly(trained=False), 512),
    f"training, {REFERENCE}": Way(plainly(trained=True), 256),
}
MEMORY = "memory, GB"
FITS = {
    "knn, one merge at a time": [Fit(TIME, 256, MOST, None), Fit(MEMORY, 1024, MOST, 1.1)],
    "knn, matching rounds": [Fit(TIME, 256, 2048, 1.3), Fit(MEMORY, 1024, MOST, 1.1)],
    "all pairs, one merge at a time": [Fit(TIME, 64, 512, None), Fit(MEMORY, 128, 512, None)],
    "training, knn": [Fit(TIME, 64, 1024, None), Fit(MEMORY, 128, 1024, 1.1)],
    "training, all pairs": [Fit(TIME, 64, 256, None), Fit(MEMORY, 64, 256, None)],
    REFERENCE: [Fit(TIME, 64, 512, None), Fit(MEMORY, 64, 512, None)],
    f"training, {REFERENCE}": [Fit(TIME, 64, 256, None), Fit(MEMORY, 64, 256, None)],
}
"""Below their least number of tokens, what does not depend on them covers what does."""
LIMITS = {"knn, one merge at a time": 10.0, "knn, matching rounds": 1.0}
"""Seconds and, with both, GB that 4,096 tokens may take."""
LIMIT_TOKENS, LIMIT_MEMORY = 4096, 1.0


def measure(
    name: str,
    tokens: int,
    seconds: float,
    device: str = "cpu",
    *,
    peak: Callable[[str], float] = peak_gigabytes,
) -> Row:
    """One row; ``peak`` measures the peak memory of the process on a device."""
    torch.set_num_threads(1)
    WAYS[name].prepare(LEAST, device)()  # what is imported late, and the buffers of matrix products
    work, before = WAYS[name].prepare(tokens, device), peak(device)
    settle(device)
    started, calls = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds or not calls:
        work()
        settle(device)
        calls += 1
    memory = peak(device) - before
    return {
        "way": name,
        "tokens": tokens,
        TIME: elapsed / calls,
        MEMORY: memory,
        "limits": within(name, tokens, elapsed / calls, memory),
    }


def within(name: str, tokens: int, seconds: float, memory: float) -> str:
    """Whether the row keeps its limits; empty for a row that has none."""
    if tokens != LIMIT_TOKENS or name not in LIMITS:
        return ""
    kept = seconds < LIMITS[name] and memory < LIMIT_MEMORY
    return f"under {LIMITS[name]:g} s, {LIMIT_MEMORY:g} GB: {'kept' if kept else 'missed'}"


def exponent(tokens: list[int], values: list[float]) -> float | None:
    """The slope of ``log values`` over ``log tokens``; None without two values above 0."""
    points = [(size, value) for size, value in zip(tokens, values, strict=True) if value > 0]
    if len(points) < 2:
        return None
    return float(np.polyfit(*np.log(np.array(points)).T, deg=1)[0])


def exponents(rows: list[Row]) -> list[Row]:
    """The fits of every way that was measured."""
    found = []
    for name in dict.fromkeys(row["way"] for row in rows):
        for fit in FITS[name]:
            used = [
                row for row in rows if row["way"] == name and fit.least <= row["tokens"] <= fit.most
            ]
            tokens = [row["tokens"] for row in used]
            found.append(
                {
                    "way": name,
                    "of": fit.column,
                    "from": min(tokens, default=0),
                    "to": max(tokens, default=0),
                    "exponent": exponent(tokens, [row[fit.column] for row in used]),
                    "target, at most": fit.target,
                }
            )
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=MOST, help="tokens")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each row, at least")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    add_device(parser)
    options = parser.parse_args(arguments)
    rows = []
    for name in options.ways:
        tokens = LEAST
        while tokens <= min(WAYS[name].most, options.most):
            row = own_process(measure, name, tokens, options.seconds, options.device)
            print(", ".join(f"{key} {value}" for key, value in row.items() if value), flush=True)
            rows.append(row)
            tokens *= 2
    add_ratios(rows, "way", lambda row: (row["tokens"], "training" in row["way"]), TIME)
    if rows:
        report("scaling", rows, device=options.device)
        report("scaling_exponents", exponents(rows), device=options.device)
    sizes = [2**power for power in range(4, 14) if 2**power <= options.most]
    rows = [own_process(repairs, size, options.seconds, options.device) for size in sizes]
    report("scaling_repairs", rows, device=options.device)


if __name__ == "__main__":
    main()
