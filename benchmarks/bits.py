"""Bits that a kanji costs under the trees of fixed orders: ``python -m benchmarks.bits``.

An autoencoder is trained on the trees of each order, for as many merges, and what it makes of test
characters is written down: the tree, the root, and what is left of the strokes at a precision that
is the same for all (see ``htm_env/measures/description.py``). The error of reconstruction differs;
that of what was written down does not. ``recurrent_sorted`` has trees of what recurs in the
training split, ``structure_sorted`` those of the experts' groups, which the others never see.
Bits are means over test characters and seeds; ``nmse, untold`` is the error where the decoder is
not told the tree.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from agents.config.options import TEST_EPISODES
from agents.evaluation.description import PARTS_OF_BITS, described
from agents.evaluation.yardsticks import mean_and_error
from agents.registry import algorithm
from benchmarks.measuring import Row
from benchmarks.table import RESULTS, origin, report, text
from htm_env.measures.description import PRECISION

ENV = "HTM-Kanji-v0"
ORDERS = ("recurrent_sorted", "structure_sorted", "closest_sorted", "balanced_sorted")
EXPERTS = "structure_sorted"
WIDTHS = (8, 24)
MERGES = 100_000
STROKES = (4, 12)


class Measured(NamedTuple):
    """One training: its row, and the bits of every test character."""

    row: Row
    totals: Float64[Tensor, "N"]


def measure(
    order: str,
    width: int,
    seed: int = 0,
    merges: int = MERGES,
    strokes: tuple[int, int] = STROKES,
    precision: float = PRECISION,
    rate: float = 0.0,
    count: int = TEST_EPISODES,
) -> Measured:
    """What an autoencoder of this width makes of test characters along the trees of an order."""
    entry = algorithm(order)
    training_of = entry.config.autoencoder
    training_of = replace(training_of, loss=replace(training_of.loss, rate=rate))
    config = replace(entry.config, autoencoder=training_of)
    data = {"strokes": list(strokes)}
    learner = entry.learner(ENV, config, env_kwargs=data, embedding_dim=width, seed=seed)
    learner.train(merges=merges)
    dataset, training = (learner.task.dataset(split) for split in ("test", "train"))
    scores = learner.evaluate(dataset, count, sampled=False)
    found = described(learner, learner.autoencoder, dataset, training, count, precision)
    row = {
        "order": order,
        "D": width,
        "rate": rate,
        **{name: float(found[name].mean()) for name in PARTS_OF_BITS},
        "nmse": scores["nmse"],
        "nmse, untold": float(found["nmse_untold"].mean()),
        "tree_f1": scores["tree_f1"],
    }
    return Measured(row, found["total"])


def table(measured: Sequence[Measured], seeds: int) -> list[Row]:
    """A row for each order, width and rate: the mean over seeds, which follow each other.

    ``above experts`` is how many bits more it is than the row of :data:`EXPERTS` of the same width
    and rate, with the standard error over characters, which are the same in all rows.
    """
    runs = [measured[first : first + seeds] for first in range(0, len(measured), seeds)]
    totals = [torch.stack([run.totals for run in same]).mean(dim=0) for same in runs]
    alike = [(same[0].row["D"], same[0].row["rate"]) for same in runs]
    experts = {
        key: total
        for key, total, same in zip(alike, totals, runs, strict=True)
        if same[0].row["order"] == EXPERTS
    }
    rows = []
    for key, total, same in zip(alike, totals, runs, strict=True):
        row = {name: mean_or_same([run.row[name] for run in same]) for name in same[0].row}
        row["total, by seed"] = " ".join(f"{run.row['total']:.1f}" for run in same)
        gap = mean_and_error(total - experts[key]) if key in experts else None
        row["above experts"] = None if gap is None else gap.mean
        row["± of that"] = None if gap is None else gap.error
        rows.append(row)
    return rows


def mean_or_same(values: Sequence[Any]) -> Any:
    """The mean of fractions, and what others have in common."""
    return statistics.fmean(values) if isinstance(values[0], float) else values[0]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", nargs="*", default=ORDERS, help="names of fixed orders")
    parser.add_argument("--widths", nargs="*", type=int, default=WIDTHS, help="numbers of a root")
    parser.add_argument("--merges", type=int, default=MERGES, help="of the training of each row")
    parser.add_argument(
        "--strokes", type=int, nargs=2, default=STROKES, help="of a character: fewest and most"
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row")
    parser.add_argument(
        "--precision", type=float, default=PRECISION, help="in standard deviations of a number"
    )
    parser.add_argument(
        "--rates", nargs="*", type=float, default=(0.0,), help="weights of the rate of roots"
    )
    parser.add_argument("--name", default="bits", help="of the table")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    same = options.merges, tuple(options.strokes), options.precision
    measured = []
    for width, rate, order, seed in itertools.product(
        options.widths, options.rates, options.orders, range(options.seeds)
    ):
        measured.append(measure(order, width, seed, *same, rate))
        shown = "  ".join(f"{name} {text(value)}" for name, value in measured[-1].row.items())
        print(f"seed {seed}  {shown}", file=sys.stderr, flush=True)
    rows = table(measured, options.seeds)
    given = sys.argv[1:] if arguments is None else arguments
    report(options.name, rows, options.out, made_by=origin("benchmarks.bits", given))


if __name__ == "__main__":
    main()
