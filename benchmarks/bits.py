"""Bits that a kanji costs under the trees of fixed orders: ``python -m benchmarks.bits``.

An autoencoder is trained on the trees of each order, for as many merges, and what it makes of test
characters is written down: the tree, the root, and what is left of the strokes at a precision that
is the same for all (see ``htm_env/measures/description.py``). The error of reconstruction differs;
that of what was written down does not. ``recurrent_sorted`` has trees of what recurs in the
training split, ``structure_sorted`` those of the experts' groups, which the others never see.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from agents.config.options import TEST_EPISODES
from agents.evaluation.description import PARTS_OF_BITS, described
from agents.evaluation.yardsticks import mean_and_error
from agents.registry import algorithm
from benchmarks.measuring import Row, one_by_one
from benchmarks.table import RESULTS, origin, report
from htm_env.measures.description import PRECISION

ENV = "HTM-Kanji-v0"
ORDERS = ("recurrent_sorted", "structure_sorted", "closest_sorted", "balanced_sorted")
WIDTHS = (8, 24)
MERGES = 100_000
STROKES = (4, 12)


def row(
    order: str,
    width: int,
    merges: int = MERGES,
    strokes: tuple[int, int] = STROKES,
    precision: float = PRECISION,
    rate: float = 0.0,
    count: int = TEST_EPISODES,
) -> Row:
    """What an autoencoder of this width makes of test characters along the trees of an order."""
    entry = algorithm(order)
    training_of = entry.config.autoencoder
    training_of = replace(training_of, loss=replace(training_of.loss, rate=rate))
    config = replace(entry.config, autoencoder=training_of)
    data = {"strokes": list(strokes)}
    learner = entry.learner(ENV, config, env_kwargs=data, embedding_dim=width, seed=0)
    learner.train(merges=merges)
    dataset, training = (learner.task.dataset(split) for split in ("test", "train"))
    scores = learner.evaluate(dataset, count, sampled=False)
    found = described(learner, learner.autoencoder, dataset, training, count, precision)
    bits = {name: mean_and_error(found[name]) for name in PARTS_OF_BITS}
    return {
        "order": order,
        "D": width,
        "rate": rate,
        **{name: mean.mean for name, mean in bits.items()},
        "± of total": bits["total"].error,
        "nmse": scores["nmse"],
        "nmse, untold": float(found["nmse_untold"].mean()),
        "tree_f1": scores["tree_f1"],
    }


def without_out(arguments: Sequence[str]) -> list[str]:
    """The arguments without the folder of the table, which changes no number."""
    after = ["", *arguments]
    return [
        word
        for before, word in zip(after, arguments, strict=False)
        if "--out" not in (before, word)
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", nargs="*", default=ORDERS, help="names of fixed orders")
    parser.add_argument("--widths", nargs="*", type=int, default=WIDTHS, help="numbers of a root")
    parser.add_argument("--merges", type=int, default=MERGES, help="of the training of each row")
    parser.add_argument(
        "--strokes", type=int, nargs=2, default=STROKES, help="of a character: fewest and most"
    )
    parser.add_argument(
        "--precision", type=float, default=PRECISION, help="in standard deviations of a number"
    )
    parser.add_argument(
        "--rates", nargs="*", type=float, default=(0.0,), help="weights of the rate of roots"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    same = options.merges, tuple(options.strokes), options.precision
    cases = [
        (order, width, *same, rate)
        for width in options.widths
        for rate in options.rates
        for order in options.orders
    ]
    rows = one_by_one(cases, row)
    given = without_out(sys.argv[1:] if arguments is None else arguments)
    report("bits", rows, options.out, made_by=origin("benchmarks.bits", given))


if __name__ == "__main__":
    main()
