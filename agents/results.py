"""The rows of a comparison: one for each run and evaluation point, in a CSV that says everything.

Tables of several machines are concatenated by reading them together.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from agents.budget import Budget
from agents.encoders import NO_ENCODER
from agents.run_directory import RunDirectory
from htm_env.files import atomic_write_text


class Task(NamedTuple):
    """What runs are compared on: rows of one task differ in algorithm, seed and training alone."""

    env: str
    env_kwargs: str
    embedding_dim: int
    mode: str


@dataclass(frozen=True)
class ResultRow:
    """How good one run was at one moment."""

    env: str
    env_kwargs: str
    """JSON, keys sorted."""
    embedding_dim: int
    algo: str
    encoder: str
    """What stands in front of the pair scorer; none for an algorithm without one."""
    mode: str
    seed: int
    budget: str
    """What the run was given, such as ``300 seconds``."""
    split: str
    """``validation`` while it trained, ``test`` once, at its end."""
    seconds: float
    merges: int
    updates: int
    nmse: float | None
    """Greedy; None where it was not finite."""
    sampled_nmse: float | None
    """Of the end only."""
    tree_recall: float | None
    """None for data without a hierarchy, and for a row without trees; so are the next two."""
    tree_f1: float | None
    mean_height: float | None
    weights_hash: str
    """Of the autoencoder at the end; empty before it."""

    @property
    def task(self) -> Task:
        return Task(self.env, self.env_kwargs, self.embedding_dim, self.mode)

    @property
    def run(self) -> tuple[Task, str, str, int]:
        """What no two runs share."""
        return self.task, self.algo, self.encoder, self.seed


SCORES = ("nmse", "sampled_nmse", "tree_recall", "tree_f1", "mean_height")


def run_rows(directory: RunDirectory, algo: str | None = None) -> list[ResultRow]:
    """The rows of a run as far as it is: validation points, and the test row of a finished one.

    ``algo`` is the name to report, if not the run's own.
    """
    config = directory.load_config()
    about: dict[str, Any] = {
        "env": config["env"],
        "env_kwargs": json.dumps(config["env_kwargs"], sort_keys=True),
        "embedding_dim": config["embedding_dim"],
        "algo": config["algo"] if algo is None else algo,
        "encoder": config["config"].get("encoder", NO_ENCODER),
        "mode": config["mode"],
        "seed": config["seed"],
        "budget": str(Budget(**config["budget"])),
    }
    rows = [_validation_row(about, point) for point in metrics_points(directory.metrics_path)]
    result = load_result(directory)
    if result is not None:
        counts = {name: result[name] for name in ("seconds", "merges", "updates", "weights_hash")}
        scores = {name: result["test"][name] for name in SCORES}
        rows.append(ResultRow(**about, split="test", **counts, **scores))
    return rows


def load_result(directory: RunDirectory) -> dict[str, Any] | None:
    """``result.json``; None before the run has ended.

    Raises ``ValueError`` naming a file that cannot be read.
    """
    if not directory.result_path.exists():
        return None
    try:
        return json.loads(directory.result_path.read_text())
    except ValueError as error:
        raise ValueError(f"{directory.result_path} does not hold a result: {error}") from error


def metrics_points(path: Path, tag: str = "validation/nmse") -> list[dict[str, str]]:
    """The complete rows of a run's ``metrics.csv`` that have a value under ``tag``.

    The run may be writing it: a row without its end is left out.
    """
    if not path.exists():
        return []
    text = path.read_text()
    complete = text[: text.rfind("\n") + 1]
    return [row for row in csv.DictReader(io.StringIO(complete)) if row.get(tag)]


def write_results(path: str | Path, rows: Iterable[ResultRow]) -> None:
    """Write a table, all or nothing."""
    text = io.StringIO()
    names = [field.name for field in fields(ResultRow)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    atomic_write_text(path, text.getvalue())


def read_results(paths: Sequence[Path]) -> list[ResultRow]:
    """The rows of all tables; one that stands in several of them counts once.

    Raises ``FileNotFoundError`` or ``ValueError`` naming a table that cannot be read, and
    ``ValueError`` where two tables disagree about one run.
    """
    rows: dict[ResultRow, None] = {}
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"no results at {path}")
        with open(path, newline="") as file:
            for number, values in enumerate(csv.DictReader(file), start=2):
                try:
                    rows[_row_from(values)] = None
                except (KeyError, TypeError, ValueError) as error:
                    raise ValueError(f"{path} line {number} is not a result: {error}") from error
    ends: dict[tuple, ResultRow] = {}
    for row in rows:
        if row.split == "test" and ends.setdefault(row.run, row) != row:
            raise ValueError(
                f"the tables hold two different runs of {row.algo} on {row.env} {row.env_kwargs} "
                f"with seed {row.seed}; they need different seeds, or a label"
            )
    return list(rows)


def _validation_row(about: dict[str, Any], point: dict[str, str]) -> ResultRow:
    found: dict[str, Any] = {name: _number(point.get(f"validation/{name}", "")) for name in SCORES}
    return ResultRow(
        **about | found,
        split="validation",
        seconds=float(point["seconds"]),
        merges=int(point["merges"]),
        updates=int(point["updates"]),
        weights_hash="",
    )


def _row_from(values: dict[str, str]) -> ResultRow:
    converted: dict[str, Any] = {field.name: values[field.name] for field in fields(ResultRow)}
    for name in ("embedding_dim", "seed", "merges", "updates"):
        converted[name] = int(converted[name])
    for name in SCORES:
        converted[name] = _number(converted[name])
    if converted["split"] not in ("validation", "test"):
        raise ValueError(f"split is {converted['split']!r}; expected validation or test")
    return ResultRow(**converted | {"seconds": float(converted["seconds"])})


def _number(text: str) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None
