"""The rows of a comparison: one for each run and evaluation point, in a self-contained CSV.

Tables of several machines are joined by reading them together.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from agents.config.dataclasses_json import check_bounds, config_from_dict, flattened
from agents.config.run import RunConfig
from agents.encoders import NO_ENCODER
from agents.registry import algorithm
from agents.runs.directory import RunDirectory
from agents.runs.host import Host
from htm_env.checks import brief
from htm_env.files import LONGEST_TABLE, atomic_write_text, parse_json, read_text

Row = TypeVar("Row")


class Task(NamedTuple):
    """Data and mode of a run; rows of one task differ in algorithm, seed and training alone."""

    env: str
    env_kwargs: str
    embedding_dim: int
    mode: str
    merger: str = ""


LARGEST_SCORE = 1e39
"""Above all numbers of 32 bits, in which errors and rewards are computed."""
_ERROR, _SHARE, _RETURN = (0, LARGEST_SCORE), (0, 1 + 1e-6), (-LARGEST_SCORE, LARGEST_SCORE)
BOUNDS = {
    **dict.fromkeys(("nmse", "sampled_nmse", "mean_height", "tree_shapes"), _ERROR),
    **dict.fromkeys(("return_", "sampled_return"), _RETURN),
    "gigaflops": _ERROR,
    **dict.fromkeys(("tree_recall", "tree_f1", "error_rate", "cloned_distance"), _SHARE),
}
"""The least and the largest value of every score; a share of 1 may be rounded up."""
TEXTS = (
    *("env", "env_kwargs", "algo", "encoder", "mode", "budget", "weights_hash", "merger"),
    *("processor", "torch"),
)
"""The columns that are shown as they are."""
JOINED = " + "
"""Between the processors of a run that went on elsewhere."""


@dataclass(frozen=True)
class ResultRow:
    """Scores of one run at one moment."""

    env: str
    env_kwargs: str
    """JSON, keys sorted."""
    embedding_dim: int
    algo: str
    encoder: str
    """In front of the pair scorer; none for an algorithm without one."""
    mode: str
    seed: int
    budget: str
    """Budget of the whole run, such as ``300 seconds``."""
    split: str
    """``validation`` while it trained, ``test`` once, at its end."""
    seconds: float
    merges: int
    updates: int
    nmse: float | None
    """Greedy; None where it was not finite."""
    sampled_nmse: float | None
    """Sampled trees; at the end only."""
    tree_recall: float | None
    """None for data without a hierarchy, and for a row without trees; so are the next two."""
    tree_f1: float | None
    mean_height: float | None
    weights_hash: str
    """Hash of the autoencoder at the end; empty before it."""
    options: str = ""
    """Options that differ from the algorithm's defaults: JSON, dotted names, keys sorted. Empty
    where unknown."""
    error_rate: float | None = None
    """Share of the categories that are decoded wrongly; None for data without categories."""
    merger: str = ""
    """``module:name`` of a known merger that the run was given; empty for none, or the data's own.
    """
    return_: float | None = None
    """Greedy, the column ``return``: the summed reward where the merger is known, and nothing is
    decoded; None for an autoencoder."""
    sampled_return: float | None = None
    """Sampled trees; at the end only."""
    tree_shapes: float | None = None
    """Different shapes among the trees; of a learned policy, at the end only, as the next one."""
    cloned_distance: float | None = None
    """Mean normalised Robinson-Foulds distance to the trees of the fixed order that was cloned;
    None where none was."""
    processor: str = ""
    """Model of the processor that it ran on; all, with `` + `` between them, where it went on
    elsewhere; empty where unknown, as of older runs. So are the next three."""
    torch: str = ""
    """Version of PyTorch, or several."""
    threads: int | None = None
    """Of one operation, the most."""
    gigaflops: float | None = None
    """Speed of the slowest in products of matrices, as it was measured there."""

    def __post_init__(self) -> None:
        if self.split not in ("validation", "test"):
            raise ValueError(f"split is {self.split!r}; expected validation or test")
        check_json_object("env_kwargs", self.env_kwargs)
        check_json_object("options", self.options or "{}")
        for name in TEXTS:
            if not getattr(self, name).isprintable():
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected printable letters")
        check_bounds(self, embedding_dim=1, seed=0, seconds=(0, LARGEST_SCORE), merges=0, updates=0)
        if self.threads is not None:
            check_bounds(self, threads=1)
        known = {name: BOUNDS[name] for name in BOUNDS if getattr(self, name) is not None}
        check_bounds(self, **known)

    @property
    def error(self) -> float:
        """``nmse``, or minus the return where nothing is decoded: smaller is better. Infinity where
        it was not finite."""
        if self.return_ is not None:
            return -self.return_
        return math.inf if self.nmse is None else self.nmse

    @property
    def sampled_error(self) -> float | None:
        """The same of sampled trees; None where there is none."""
        return self.sampled_nmse if self.sampled_return is None else -self.sampled_return

    @property
    def task(self) -> Task:
        return Task(self.env, self.env_kwargs, self.embedding_dim, self.mode, self.merger)

    @property
    def run(self) -> tuple[Task, str, str, int]:
        """Identifies a run."""
        return self.task, self.algo, self.encoder, self.seed


def check_json_object(name: str, text: str) -> None:
    """Raise ``ValueError`` naming a column whose text is no JSON object."""
    try:
        found = parse_json(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{name} is {text!r}; expected a JSON object")


SCORES = {
    "nmse": "nmse",
    "return": "return_",
    "error_rate": "error_rate",
    "sampled_nmse": "sampled_nmse",
    "sampled_return": "sampled_return",
    "tree_recall": "tree_recall",
    "tree_f1": "tree_f1",
    "mean_height": "mean_height",
    "tree_shapes": "tree_shapes",
    "cloned_distance": "cloned_distance",
}
"""Scores of an evaluation, and the fields of a row that hold them."""


def run_rows(directory: RunDirectory) -> list[ResultRow]:
    """The rows of a run as far as it is: validation points, and the test row of a finished one."""
    run, result = directory.load_config(), directory.load_result()
    if result is not None:
        directory.check_metrics(result)
    about: dict[str, Any] = {
        "env": run.env,
        "env_kwargs": json.dumps(run.env_kwargs, sort_keys=True),
        "embedding_dim": run.embedding_dim,
        "algo": run.algo,
        "encoder": run.config.get("encoder", NO_ENCODER),
        "mode": run.mode,
        "seed": run.seed,
        "budget": str(run.budget),
        "options": changed_options(run),
        "merger": run.merger or "",
        **_where(directory.load_hosts()),
    }
    rows = []
    for point in metrics_points(directory.metrics_path):
        scores = {own: point.values.get(f"validation/{name}") for name, own in SCORES.items()}
        counts = {name: getattr(point, name) for name in ("seconds", "merges", "updates")}
        rows.append({**about, **counts, **scores, "split": "validation", "weights_hash": ""})
    if result is not None:
        counts = {name: result[name] for name in ("seconds", "merges", "updates", "weights_hash")}
        scores = {own: result["test"].get(name) for name, own in SCORES.items()}
        rows.append({**about, **counts, **scores, "split": "test"})
    try:
        return [config_from_dict(ResultRow, row) for row in rows]
    except ValueError as error:
        raise ValueError(brief(f"{directory.path} holds no run to compare: {error}")) from error


def _where(hosts: Sequence[Host]) -> dict[str, Any]:
    """The columns that tell on what a run ran."""
    if not hosts:
        return {}
    speeds = [host.gigaflops for host in hosts if host.gigaflops is not None]
    return {
        "processor": JOINED.join(dict.fromkeys(host.processor for host in hosts)),
        "torch": JOINED.join(dict.fromkeys(host.torch for host in hosts)),
        "threads": max(host.threads for host in hosts),
        "gigaflops": min(speeds, default=None),
    }


def changed_options(run: RunConfig) -> str:
    """The column ``options`` of a run.

    Empty for an algorithm that does not exist here, or no longer: its defaults are unknown.
    """
    try:
        configs = asdict(algorithm(run.algo).config), run.config
    except ValueError:
        return ""
    usual, given = (flattened(json.loads(json.dumps(config))) for config in configs)
    changed = {name: given[name] for name in given if (name, given[name]) not in usual.items()}
    return json.dumps(changed, sort_keys=True)


@dataclass(frozen=True)
class MetricsPoint:
    """A row of a run's ``metrics.csv``."""

    progress: float
    """Share of the budget."""
    seconds: float
    merges: int
    updates: int
    values: dict[str, float | None]
    """By tag, such as ``validation/nmse``; None where there is none, or it was not finite."""


def metrics_points(
    path: Path, tags: Sequence[str] = ("validation/nmse", "validation/return")
) -> list[MetricsPoint]:
    """The complete rows of a run's ``metrics.csv`` that have a value under one of the tags.

    The run may be writing it: a row without its end is left out. Raises ``ValueError`` naming the
    line that is no such row.
    """
    if not path.exists():
        return []
    points = []
    for number, row in _lines(path, complete=True):
        with _in_line(path, number, "a row of metrics"):
            if any(row.get(tag) for tag in tags):
                progress, seconds = (_finite(row.pop(name)) for name in ("progress", "seconds"))
                merges, updates = (_whole(row.pop(name)) for name in ("merges", "updates"))
                values = {tag: _number(text) for tag, text in row.items()}
                points.append(MetricsPoint(progress, seconds, merges, updates, values))
    return points


def write_table(path: str | Path, kind: type, rows: Iterable[Any]) -> None:
    """Write dataclass rows of one kind as a CSV, all or nothing.

    A column has the name of its field, without the underscore behind a word of Python.
    """
    text = io.StringIO()
    names = [field.name for field in fields(kind)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(name.removesuffix("_") for name in names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)
    atomic_write_text(path, text.getvalue())


def read_table(path: Path, kind: type[Row], what: str) -> list[Row]:
    """Read a table of :func:`write_table`; tables appended to each other repeat the header.

    A column that is missing, as in tables of earlier versions, takes the field's default. Raises
    ``ValueError`` naming the line that is not ``what``.
    """
    converters: dict[str, Callable[[str], Any]]
    converters = {"str": str, "int": _whole, "float": _finite, "float | None": _number}
    converters["int | None"] = _whole_or_none
    fields_of = {name.removesuffix("_"): name for name in kind.__annotations__}
    types = {column: converters[kind.__annotations__[name]] for column, name in fields_of.items()}
    rows: list[Row] = []
    for number, texts in _lines(path):
        with _in_line(path, number, what):
            row = {
                fields_of[name]: types[name](text) for name, text in texts.items() if name in types
            }
            rows.append(kind(**row))
    return rows


def _lines(path: Path, *, complete: bool = False) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV by column, with their numbers; the header may come again.

    With ``complete``, a last line without its end is left out. Raises ``ValueError`` naming the
    line that cannot be read.
    """
    number = 0
    names: list[str] = []
    with _in_line(path, 1, "UTF-8"):
        text = read_text(path, LONGEST_TABLE)
    text = text[: text.rfind("\n") + 1] if complete else text
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        number += 1
        with _in_line(path, number, "a line of a table"):
            values = next(lines, None)
            if values is None:
                return
            if number == 1 or values[:1] == names[:1]:
                names = values
                continue
            if not values:
                continue
            row = dict(zip(names, values, strict=True))
        yield number, row


@contextmanager
def _in_line(path: Path, number: int, what: str) -> Iterator[None]:
    """Name file and line of what is wrong in this block."""
    try:
        yield
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        told = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(brief(f"{path} line {number} is not {what}: {told}")) from error


def read_results(paths: Sequence[Path]) -> list[ResultRow]:
    """The rows of all tables, run by run; one that is in several of them counts once.

    Raises ``FileNotFoundError`` or ``ValueError`` naming a table that cannot be read, and
    ``ValueError`` where two tables disagree about the end of one run.
    """
    runs: dict[tuple, list[list[ResultRow]]] = {}
    for path in paths:
        table: dict[tuple, list[ResultRow]] = {}
        if not path.is_file():
            raise FileNotFoundError(f"no results at {path}")
        for row in read_table(path, ResultRow, "a result"):
            table.setdefault(row.run, []).append(row)
        for run, rows in table.items():
            runs.setdefault(run, []).append(rows)
    return [row for versions in runs.values() for row in _one_run(versions)]


def _one_run(versions: Sequence[list[ResultRow]]) -> list[ResultRow]:
    """The rows of one run by position, from its rows in each table.

    A table may hold the beginning of a run that was killed later and went on from a checkpoint, so
    the points of two tables are never mixed: those beside the test row count, or the most ones.
    """
    ends = [row for rows in versions for row in rows if row.split == "test"]
    known = {row.options for row in ends if row.options}
    if len({replace(row, options="") for row in ends}) > 1 or len(known) > 1:
        raise ValueError(
            f"the tables hold two different runs of {ends[0].algo} on {ends[0].env} "
            f"{ends[0].env_kwargs} with seed {ends[0].seed}; they need different seeds, or a label"
        )
    kept = max(versions, key=lambda rows: (any(row.split == "test" for row in rows), len(rows)))
    if known:
        kept = [replace(row, options=min(known)) for row in kept]
    return sorted(
        dict.fromkeys(kept), key=lambda row: (row.split == "test", row.merges, row.seconds)
    )


def _number(text: str) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def _whole_or_none(text: str) -> int | None:
    return _whole(text) if text else None


def _whole(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{text} has more than 64 bits")
    return value
