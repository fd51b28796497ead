"""Against the package it follows: ``python -m benchmarks.hierarchical_original``.

Ours, ``simple-hierarchical-transformer`` 0.4.0 and a flat transformer (ours with one hierarchy, and
no loss but the next byte's) are trained on the same batches of the standard library's documentation
by the same loop (``hierarchical_training.py``) on one thread. The original is in an environment of
its own (``originals.py``). Ours and the flat one have as many parameters as the original: their
feed-forward networks are as wide as that takes. Each is trained at two learning rates, and the rate
with the better mean counts. The hourglass has the width of the flat one, and the next byte's loss
alone too. It is faster: the flat one is trained once more, for as many steps as it can do in the
time of that, and that for as many as it can do in the time of the flat one.

Speeds are those of processor time in short trainings by turns, so that all meet the same machine.
Trainings that are done are kept in ``trainings.jsonl`` beside the table, and not repeated.
``--writing 1024`` measures the cache instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents import HierarchicalTransformer
from benchmarks.hierarchical_training import LENGTH, Job, content
from benchmarks.originals import python_with
from benchmarks.table import RESULTS, origin, report

ORIGINAL = "simple_hierarchical_transformer"
VERSION = "0.4.0"
REQUIREMENTS = (
    f"simple-hierarchical-transformer=={VERSION}",
    "einops==0.8.2",
    "hyper-connections==0.4.11",
    "local-attention==1.11.2",
    "rotary-embedding-torch==0.9.1",
    "torch-einops-utils==0.2.0",
)
MODELS = ("ours", "original", "hourglass", "flat")
LEARNING_RATES = (3e-3, 1e-2)
WORDS: dict[str, Any] = {
    "num_tokens": 256,
    "dim": 64,
    "depth": 2,
    "seq_len": LENGTH,
    "dim_head": 16,
    "heads": 4,
    "ff_mult": 2,
    "hierarchies": (1, 2, 8),
    "hierarchical_stride": (1, 1, 8),
    "window_sizes": (16, 16, None),
}
NEXT_BYTE_ALONE: dict[str, Any] = {"recon_loss_weight": 0, "next_latent_loss_weight": 0}
FLAT: dict[str, Any] = {
    "num_tokens": 256,
    "dim": 128,
    "depth": 3,
    "seq_len": LENGTH,
    "dim_head": 32,
    "heads": 4,
    **NEXT_BYTE_ALONE,
}
HOURGLASS: dict[str, Any] = {
    **FLAT,
    "depth": (2, 2),
    "hourglass": True,
    "hierarchies": (1, 8),
    "hierarchical_stride": (1, 8),
}
"""As wide as the flat one, and trained like it: a block of bytes, two of vectors of eight bytes
that do not overlap, and a block of bytes again. Chosen on the last tenth of the fitted bytes, with
seed 100, among rates 2, 4 and 8, one to three blocks in the middle, one or two of bytes behind it,
wider feed-forward networks in the middle, and hierarchies side by side at rates 1 and 4."""
SPEED = {"steps": 20, "written": LENGTH - 64}
"""Updates, and bytes written: with the prompt as many as the original looks at."""
TURNS = 3
Result = dict[str, Any]
"""A job and what came of it."""


@dataclass(frozen=True)
class Contestant:
    """A model, and the Python that has its package."""

    name: str
    python: Path
    job: Job


class Trainings:
    """Results of jobs, from the file or by doing them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.done: list[Result] = [json.loads(line) for line in lines]

    def result(self, python: Path, job: Job) -> Result:
        """The result of the job; done now unless it was done before."""
        wanted = json.loads(json.dumps(asdict(job)))
        for result in self.done:
            if wanted.items() <= result.items():
                return result
        root = Path(__file__).parent.parent
        command = [str(python), "-m", "benchmarks.hierarchical_training", json.dumps(wanted)]
        told = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
        result = json.loads(told.stdout.splitlines()[-1])
        self.done.append(result)
        with self.file.open("a") as file:
            file.write(json.dumps(result) + "\n")
        return result


def as_large(words: dict[str, Any], parameters: int) -> dict[str, Any]:
    """The words, with feed-forward networks so wide that there are that many parameters."""

    def size(hidden: int) -> int:
        model = HierarchicalTransformer(**words | {"ff_mult": hidden / words["dim"]})
        return sum(each.numel() for each in model.parameters())

    each_unit = size(2) - size(1)
    hidden = 1 + round((parameters - size(1)) / each_unit)
    return words | {"ff_mult": hidden / words["dim"]}


def contestants(
    python: Path, trainings: Trainings, steps: int, names: Sequence[str]
) -> list[Contestant]:
    """Those of ours, the original, the hourglass and the flat one that are named, equal in size."""
    original = Job(ORIGINAL, VERSION, WORDS, steps)
    size = trainings.result(python, replace(original, steps=0))["parameters"]
    here, commit = Path(sys.executable), origin(__spec__.name, [])["commit"]
    ours = Job("agents", commit, as_large(WORDS, size), steps)
    every = {
        "ours": Contestant("ours", here, ours),
        "original": Contestant(f"original {VERSION}", python, original),
        "hourglass": Contestant("hourglass", here, replace(ours, words=as_large(HOURGLASS, size))),
        "flat": Contestant("flat", here, replace(ours, words=as_large(FLAT, size))),
    }
    return [every[name] for name in names]


def row(name: str, runs: list[Result], turns: list[Result]) -> dict[str, Any]:
    """What is told of a model: its trainings at one rate, and the short ones that were timed."""
    found = [run["bits"] for run in runs]
    return {
        "model": name,
        "parameters": runs[0]["parameters"],
        "learning rate": runs[0]["learning_rate"],
        "steps": runs[0]["steps"],
        "bits a byte, mean": statistics.mean(found),
        "bits a byte, each seed": " ".join(f"{each:.3f}" for each in found),
        "steps a second": statistics.median(turn["steps"] / turn["seconds"] for turn in turns),
        "bytes written a second": statistics.median(
            turn["written"] / turn["seconds of writing"] for turn in turns
        ),
    }


def writing(words: dict[str, Any], prompt: Tensor, length: int) -> list[dict[str, Any]]:
    """Rows of ours with and without its cache, which write the same."""
    torch.set_num_threads(1)
    model = HierarchicalTransformer(**words, generator=torch.Generator().manual_seed(0))
    seconds, written = [], []
    for cached in (True, False):
        start = time.process_time()
        drawn = torch.Generator().manual_seed(0)
        written.append(model.generate(prompt, length, generator=drawn, cached=cached))
        seconds.append(time.process_time() - start)
    same = {"bytes": length, "same bytes": torch.equal(*written)}
    return [
        {"cache": name, **same, "seconds": each, "times as long": each / seconds[0]}
        for name, each in zip(("with", "without"), seconds, strict=True)
    ]


def comparison(
    folder: Path,
    python: Path,
    steps: int,
    seeds: int,
    names: Sequence[str],
    learning_rates: Sequence[float],
) -> list[dict[str, Any]]:
    """Rows of the models of these names, ``python`` being that of the original; trainings are kept
    in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    trainings = Trainings(folder / "trainings.jsonl")
    models = contestants(python, trainings, steps, names)
    runs: dict[tuple[str, float], list[Result]] = {}
    for seed in range(seeds):
        for rate in learning_rates:
            for model in models:
                job = replace(model.job, seed=seed, learning_rate=rate)
                result = trainings.result(model.python, job)
                runs.setdefault((model.name, rate), []).append(result)
                print(f"{model.name}, {rate:g}, seed {seed}: {result['bits']:.3f}", flush=True)
    turns: dict[str, list[Result]] = {model.name: [] for model in models}
    for turn in range(TURNS):
        for model in models:
            result = trainings.result(model.python, replace(model.job, seed=turn, **SPEED))
            turns[model.name].append(result)

    def best(name: str) -> list[Result]:
        several = [runs[name, rate] for rate in learning_rates]
        return min(several, key=lambda some: statistics.mean(run["bits"] for run in some))

    rows = [row(model.name, best(model.name), turns[model.name]) for model in models]
    speeds = {each["model"]: each["steps a second"] for each in rows}
    rates = {each["model"]: each["learning rate"] for each in rows}
    of_equal_time = [model for model in models if model.name in ("hourglass", "flat")]
    for model, other in permutations(reversed(of_equal_time), 2):
        job = replace(
            model.job,
            steps=round(steps * speeds[model.name] / speeds[other.name]),
            learning_rate=rates[model.name],
        )
        runs_in_time = [
            trainings.result(model.python, replace(job, seed=seed)) for seed in range(seeds)
        ]
        rows.append(
            row(f"{model.name} in the {other.name}'s time", runs_in_time, turns[model.name])
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="updates of each model")
    parser.add_argument("--seeds", type=int, default=3, help="trainings at each learning rate")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="which ones")
    parser.add_argument(
        "--learning-rates", nargs="+", type=float, default=LEARNING_RATES, help="of Adam"
    )
    parser.add_argument("--writing", type=int, help="the table of writing so many bytes, no other")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args()
    made_by = origin(__spec__.name, sys.argv[1:])
    if options.writing:
        name, rows = (
            "hierarchical_writing",
            writing(WORDS, content()[1][None, :64], options.writing),
        )
    else:
        rows = comparison(
            options.out,
            python_with(*REQUIREMENTS),
            options.steps,
            options.seeds,
            options.models,
            options.learning_rates,
        )
        all_of_them = tuple(options.models) == MODELS
        name = "hierarchical_" + ("original" if all_of_them else "_".join(options.models))
    report(name, rows, options.out, made_by=made_by)


if __name__ == "__main__":
    main()
