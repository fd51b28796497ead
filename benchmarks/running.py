"""The benchmarks by name, and running them: ``htm bench`` and ``python -m benchmarks``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.table import RESULTS
from htm_env.weights import usable_device

THROUGHPUT = {
    "environment": "environment steps per second, four ways to have copies",
    "joint_training": "every learner's merges per second, against its matrix products",
    "against_reference": "joint training against a plain reference",
    "limit": "training against the limit of its matrix products",
    "scaling": "time and memory against the number of tokens",
    "generation": "seconds in which roots become token sets",
}
"""Run where no name is given."""
QUALITY = {
    "encoders": "what each context encoder costs",
    "fixed_returns": "mean return of every fixed policy",
    "held_out": "held-out errors after 100 s of training",
    "full_comparison": "every learner on every problem, a day and a half",
    "time_to_error": "how soon ours is as good as the published recipe",
    "bits": "bits that a kanji costs under the trees of fixed orders",
    "candidates": "what choosing among nearest neighbours costs and saves",
    "lit_pixels": "joint training on images of a hundred to two hundred points",
    "merge_rounds": "what merging in rounds costs and saves",
    "jets": "log-likelihood of trees over particle jets, by fixed orders and searches",
    "glom": "what Glom's columns gain from hearing one another",
    "glom_probe": "what the top level of a Glom knows of digits",
    "glom_speed": "time and memory of a Glom of images beside glom-pytorch",
    "frozen_search": "how near search comes to the best trees known, and what one shape is worth",
    "jets_search": "what search gains on particle jets, against its evaluations",
    "objectives": "what objectives of the autoencoder make of embeddings",
    "kanji_parts": "how far trees that are not learned agree with experts",
    "key_scenes": "the merges that context makes right",
    "endurance": "runs that are killed at random moments and continued",
    "engines": "the same comparison on every engine, undisturbed and killed",
    "fuzzed_environment": "a million random actions, single and batched in step",
    "resident_memory": "memory over ten minutes of training and 200,000 steps",
    "hierarchical_original": "the hierarchical transformer against the package it follows",
    "hierarchical_readme": "the README of that package with our import, at full size",
    "ranks": "one model on two processes, and a model of more",
    "reduction": "time and memory of a hierarchy reduction, and samples at once and one by one",
    "rollout_speed": "rollouts alone, compiled, on arrays and on tensors",
    "shards": "training on shards beside the same data in memory",
    "text": "hierarchies against flat models of text",
}
"""Longer learning, or measures other than throughput."""
BENCHMARKS = THROUGHPUT | QUALITY
ANYWHERE = (*THROUGHPUT, "time_to_error", "candidates", "lit_pixels", "merge_rounds")
"""Those that take ``--device``."""
QUICK: dict[str, list[str]] = {
    "environment": ["--quick"],
    "against_reference": ["--seconds", "3"],
    "limit": ["--seconds", "3"],
    "joint_training": ["--seconds", "0.5", "--most", "15"],
    "time_to_error": ["--seconds", "10", "--problems", "trees7"],
    "merge_rounds": ["--seconds", "10", "--most", "6"],
    "rollout_speed": ["--seconds", "0.5"],
    "scaling": ["--most", "512", "--seconds", "0.2"],
}
"""Options of the short form; the others have none."""


def listing() -> str:
    """One line a benchmark; a star <--> it runs where no name is given."""
    width = max(map(len, BENCHMARKS))
    return "\n".join(
        f"{'*' if name in THROUGHPUT else ' '} {name:<{width}}  {about}"
        for name, about in BENCHMARKS.items()
    )


def chosen(names: Sequence[str], quick: bool = False, device: str = "cpu") -> list[list[str]]:
    """The commands of these benchmarks, of the throughput ones where none is named; with ``quick``,
    in their short form, and where none is named only those that have one.

    Raises ``ValueError`` for an unknown name, a device that cannot be used here, and a benchmark
    that runs on the processor only.
    """
    usable_device(device)
    elsewhere = [] if device == "cpu" else ["--device", device]
    for name in names:
        if name not in BENCHMARKS:
            raise ValueError(f"unknown benchmark {name!r}; choose from {sorted(BENCHMARKS)}")
        if elsewhere and name not in ANYWHERE:
            raise ValueError(
                f"benchmark {name!r} runs on the processor only; those that run on {device} are "
                f"{sorted(ANYWHERE)}"
            )
    taken = names or [name for name in THROUGHPUT if not quick or name in QUICK]
    short = QUICK if quick else {}
    return [
        [sys.executable, "-m", f"benchmarks.{name}", *short.get(name, []), *elsewhere]
        for name in taken
    ]


def run(
    names: Sequence[str], quick: bool = False, file: Path | None = None, device: str = "cpu"
) -> None:
    """Run them, each in a process of its own; ``file`` gets the tables of all that did not fail.

    Raises what :func:`chosen` raises; at the end ``ChildProcessError`` names those that failed.
    """
    before = _written()
    failed = [
        command[2].removeprefix("benchmarks.")
        for command in chosen(names, quick, device)
        if subprocess.run(command, check=False).returncode != 0
    ]
    if file is not None:
        made = sorted(path for path, _ in _written() - before)
        tables = {path.stem: json.loads(path.read_text()) for path in made}
        file.write_text(json.dumps(tables, indent=2) + "\n")
    if failed:
        raise ChildProcessError(f"benchmarks that failed: {', '.join(failed)}")


def _written() -> set[tuple[Path, int]]:
    """The tables that there are, and when each was written: of two such times the order is certain,
    of one and a clock's it is not."""
    return {(path, path.stat().st_mtime_ns) for path in RESULTS.glob("*.json")}
