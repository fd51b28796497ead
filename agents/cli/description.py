"""Bits of a run's samples as ``htm evaluate --bits`` prints them."""

from __future__ import annotations

from typing import Any

from agents.cli.tables import print_table
from agents.config.run import Task
from agents.evaluation.description import PARTS_OF_BITS, described
from agents.evaluation.evaluate import Planner
from agents.evaluation.yardsticks import mean_and_error
from agents.learners.base import Learner
from htm_env.datasets import Dataset
from htm_env.measures.description import PRECISION


def about_bits(
    planner: Planner, learner: Learner, task: Task, dataset: Dataset, count: int
) -> dict[str, Any]:
    """Means and standard errors of the bits of a sample, and of the error without the tree."""
    training = task.dataset("train")
    found = described(planner, learner.autoencoder, dataset, training, count)
    rows = {name: mean_and_error(values)._asdict() for name, values in found.items()}
    return {
        "bits": {name: rows[name] for name in PARTS_OF_BITS},
        "bits_precision": PRECISION,
        "nmse_untold": rows["nmse_untold"],
    }


def print_bits(found: dict[str, Any]) -> None:
    """A table of what :func:`about_bits` gives."""
    print(
        "bits of a sample whose numbers are known to "
        f"{found['bits_precision']:g} standard deviations, and the error where the decoder is not "
        "told the tree"
    )
    rows = {f"bits: {name}": row for name, row in found["bits"].items()}
    rows["nmse_untold"] = found["nmse_untold"]
    print_table(
        [
            {"": name} | {"mean": _number(row["mean"]), "standard error": _number(row["error"])}
            for name, row in rows.items()
        ]
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"
