"""Time and memory of a hierarchy reduction: ``python -m benchmarks.reduction``.

Seven levels of spans over 0.5, 1 and 2 million vectors of 16 numbers, eight in each span but the
one at the top, which has two, four and eight; forward and backward on one thread, sums alone and
with a transformer at the two lowest levels. Each row is a process of its own; memory is the most
that it holds beyond what it held before, the vectors, their gradients and the spans included.

And the second table: 64 ragged samples with a transformer at two levels, all at once and one by
one, the largest difference between the two, and how much other samples move when one changes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from agents import HierarchyReduction, ReductionLevel
from benchmarks.measuring import Row, one_by_one, own_process, peak_gigabytes
from benchmarks.table import RESULTS, origin, report

LEVELS, SPAN, WIDTH, TRANSFORMERS = 7, 8, 16, 2
COUNTS = (2**19, 2**20, 2**21)
SAMPLES = 64
Spans = list[tuple[int, int]]


def spans_over(count: int) -> list[Tensor]:
    """Spans of each level, (S, 2): of eight, at the top of all that is left."""
    levels = []
    for level in range(LEVELS):
        results = count // SPAN if level + 1 < LEVELS else 1
        ends = torch.arange(1, results + 1) * (count // results)
        levels.append(torch.stack((ends - count // results, ends), 1))
        count = results
    return levels


def network(kind: str) -> HierarchyReduction:
    """The same weights every time."""
    encoders = [None if kind == "none" or at >= TRANSFORMERS else kind for at in range(LEVELS)]
    levels = [ReductionLevel("sum", encoder) for encoder in encoders]
    return HierarchyReduction(WIDTH, levels, generator=torch.Generator().manual_seed(0))


def large(kind: str, count: int) -> Row:
    """One reduction of ``count`` vectors, forward and backward."""
    torch.set_num_threads(1)
    before = peak_gigabytes()
    model, levels = network(kind), spans_over(count)
    vectors = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1))
    vectors.requires_grad_()
    start = time.process_time()
    *_, root = model(vectors, levels)
    root.square().sum().backward()
    seconds = time.process_time() - start
    memory = peak_gigabytes() - before
    return {
        "encoders": kind if kind == "none" else f"{kind} at {TRANSFORMERS} levels",
        "vectors": count,
        "spans": sum(map(len, levels)),
        "CPU s": seconds,
        "vectors a second": count / seconds,
        "memory, MB": 1024 * memory,
        "bytes a vector": memory * 2**30 / count,
    }


def texts(samples: int, generator: torch.Generator) -> tuple[list[Tensor], list[list[Spans]]]:
    """Ragged samples: vectors of characters, their words and sentences."""

    def lengths(low: int, high: int, count: int) -> list[int]:
        return torch.randint(low, high, (count,), generator=generator).tolist()

    def spans(sizes: list[int]) -> Spans:
        ends = torch.tensor(sizes).cumsum(0).tolist()
        return [(end - size, end) for end, size in zip(ends, sizes, strict=True)]

    vectors, levels = [], []
    for sentences in lengths(1, 9, samples):
        words = lengths(3, 13, sentences)
        letters = lengths(1, 12, sum(words))
        levels.append([spans(letters), spans(words)])
        vectors.append(torch.randn(sum(letters), WIDTH, generator=generator))
    return vectors, levels


def ragged(samples: int, rounds: int) -> Row:
    """So many samples at once against one by one, forward and backward, by turns."""
    torch.set_num_threads(1)
    drawn = torch.Generator().manual_seed(0)
    vectors, levels = texts(samples, drawn)
    kinds = [ReductionLevel("attention", "transformer", positions="sinusoidal")] * 2
    model = HierarchyReduction(WIDTH, kinds, generator=drawn)

    def together() -> list[Tensor]:
        return list(model(vectors, levels)[-1])

    def alone() -> list[Tensor]:
        return [model(each, spans)[-1] for each, spans in zip(vectors, levels, strict=True)]

    def trained(roots: list[Tensor]) -> None:
        model.zero_grad()
        torch.cat(roots).square().sum().backward()

    with torch.no_grad():
        first, second = torch.cat(together()), torch.cat(alone())
        vectors[5] = vectors[5] + 1
        roots = first.split([len(spans[-1]) for spans in levels])
        moved = [(a - b).abs().max() for a, b in zip(together(), roots, strict=True)]
    taken: dict[str, list[float]] = {"at once": [], "one by one": []}
    for _ in range(rounds):
        for work, times in zip((together, alone), taken.values(), strict=True):
            start = time.process_time()
            trained(work())
            times.append(time.process_time() - start)
    once, single = (statistics.median(times) for times in taken.values())
    others = torch.stack(moved[:5] + moved[6:])
    return {
        "samples": samples,
        "vectors": sum(map(len, vectors)),
        "at once, CPU s": once,
        "one by one, CPU s": single,
        "times as fast": single / once,
        "largest difference": float((first - second).abs().max()),
        "sample 5 moves": float(moved[5]),
        "others move": float(others.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=COUNTS[-1], help="the most vectors")
    parser.add_argument("--rounds", type=int, default=5, help="of the ragged samples")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables")
    options = parser.parse_args()
    cases = [
        (kind, count)
        for kind in ("none", "transformer")
        for count in COUNTS
        if count <= options.most
    ]
    made_by = origin("benchmarks.reduction", sys.argv[1:])
    rows = one_by_one(cases, lambda *case: own_process(large, *case))
    report("reduction", rows, options.out, made_by=made_by)
    rows = [own_process(ragged, SAMPLES, options.rounds)]
    report("reduction_ragged", rows, options.out, made_by=made_by)


if __name__ == "__main__":
    main()
