"""The folder of one run and its files."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from agents.config.dataclasses_json import config_from_dict
from agents.config.files import RECORDED, check_run
from agents.config.plug_ins import check_outside
from agents.config.run import RunConfig
from agents.runs.checkpoint import load_state, save_state
from agents.runs.loop import Position, Scalars
from htm_env.datasets.user import BESIDE_ROWS, read_sets
from htm_env.files import atomic_write_text

OWN_DATA = "dataset.npz"
"""Data that a learner was given as arrays, kept with its run."""
LIBRARIES = ("torch", "pytorch-optimizer", "numpy", "gymnasium", "safetensors")
"""Packages whose versions are in ``config.json``, for readers only."""


@runtime_checkable
class Savable(Protocol):
    """An autoencoder, of trees or of whole sets."""

    def save(self, path: str | Path) -> None: ...


class RunDirectory:
    """``config.json``, ``metrics.csv``, ``result.json``, ``checkpoint/``, ``figures/``, events."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.json"
        self.metrics_path = self.path / "metrics.csv"
        self.result_path = self.path / "result.json"
        self.checkpoint_path = self.path / "checkpoint" / "training.safetensors"
        """Everything that resuming needs."""
        self.autoencoder_path = self.path / "checkpoint" / "autoencoder.safetensors"
        """The autoencoder alone, for ``gym.make(..., autoencoder=path)``."""
        self.figure_path = self.path / "figures" / "validation.png"

    @property
    def holds_run(self) -> bool:
        """True <--> a run was started here."""
        return self.config_path.exists()

    def check_free(self) -> None:
        """Raise ``FileExistsError`` if a run was started here, ``ValueError`` for a file."""
        if self.holds_run:
            raise FileExistsError(
                f"{self.path} already holds a run; resume it with --resume {self.path}, "
                "or choose another folder"
            )
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; expected a folder, or nothing yet")

    # ------------------------------------------------------------ configuration and result

    def save_config(self, run: RunConfig, data: dict[str, Any] | None = None) -> None:
        """Write ``config.json``.

        Data in ``env_kwargs`` is kept beside it, paths become absolute. ``data`` is what
        :func:`agents.runs.data.recorded_data` gives. Raises ``ValueError`` for what JSON cannot
        hold.
        """
        kwargs = dict(run.env_kwargs)
        if isinstance(kwargs.get("dataset"), str | PathLike):
            kwargs["dataset"] = str(Path(kwargs["dataset"]).resolve())
            if kwargs["dataset"] == self._own_data:
                kwargs["dataset"] = OWN_DATA  # it may move with the folder
        elif "dataset" in kwargs:
            self.path.mkdir(parents=True, exist_ok=True)
            beside = {key: kwargs.pop(key, None) for key in BESIDE_ROWS}
            arrays = read_sets(kwargs["dataset"], beside).arrays()
            np.savez_compressed(self.path / OWN_DATA, **arrays)  # type: ignore[arg-type]
            kwargs["dataset"] = OWN_DATA
        run = replace(run, env_kwargs=kwargs)
        versions = {"python": platform.python_version()} | {
            name: version(name) for name in LIBRARIES
        }
        try:
            text = json.dumps(run.as_dict() | {"versions": versions, "data": data}, indent=2)
        except TypeError as error:
            raise ValueError(
                f"this run cannot be described in {self.config_path}: {error}"
            ) from None
        atomic_write_text(self.config_path, text + "\n")

    def load_config(self) -> RunConfig:
        """Read ``config.json``; ``FileNotFoundError`` or ``ValueError`` naming it.

        ``ValueError`` too where it names a module that lies in the folder: none is read from there.
        """
        values = self._read_config()
        try:
            own = {name: value for name, value in values.items() if name not in RECORDED}
            run = config_from_dict(RunConfig, own)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.config_path} does not describe a run: {error}") from error
        check_outside(self.path, (run.algo, run.env, run.config.get("reward", "")))
        if run.env_kwargs.get("dataset") == OWN_DATA:
            run = replace(run, env_kwargs=run.env_kwargs | {"dataset": self._own_data})
        return run

    def load_data_record(self) -> dict[str, Any] | None:
        """What ``config.json`` records of the data; None for generated data and older runs."""
        return self._read_config().get("data")

    def _read_config(self) -> dict[str, Any]:
        check_run(self.path)
        try:
            values = json.loads(self.config_path.read_text())
        except ValueError as error:
            raise ValueError(f"{self.config_path} does not describe a run: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{self.config_path} does not describe a run: expected an object")
        return values

    @property
    def _own_data(self) -> str:
        return str((self.path / OWN_DATA).resolve())

    def save_result(self, result: dict[str, Any]) -> None:
        """Write ``result.json``; a score that is not finite is null there."""
        atomic_write_text(self.result_path, json.dumps(_without_nan(result), indent=2) + "\n")

    def load_result(self) -> dict[str, Any] | None:
        """Read ``result.json``; None before the run has ended, ``ValueError`` naming a bad file."""
        if not self.result_path.exists():
            return None
        try:
            return json.loads(self.result_path.read_text())
        except ValueError as error:
            raise ValueError(f"{self.result_path} does not hold a result: {error}") from error

    # ------------------------------------------------------------ checkpoints

    def save_checkpoint(
        self,
        state: dict[str, Any],
        autoencoder: Savable,
        training: dict[str, Any] | None = None,
        rows: Sequence[dict[str, float | None]] = (),
    ) -> None:
        """Write everything that resuming needs, and the autoencoder for other uses.

        ``state`` is the learner's, ``training`` the loop's, and ``rows`` are those of
        ``metrics.csv`` by now.
        """
        everything = {"learner": state, "training": training, "rows": list(rows)}
        save_state(self.checkpoint_path, everything)
        autoencoder.save(self.autoencoder_path)

    def clear_leftovers(self) -> None:
        """Remove what a killed process was writing.

        Only before the run is continued: a run that is still training writes there.
        """
        for leftover in self.checkpoint_path.parent.glob(".*"):
            leftover.unlink(missing_ok=True)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Read the last checkpoint; None before the first one.

        Raises ``ValueError`` naming a file that cannot be read.
        """
        return load_state(self.checkpoint_path) if self.checkpoint_path.exists() else None


class CSVLogger:
    """A table with one row a log point: position first, then the scalars as they first appeared.

    Args:
        path: the file; an earlier one is replaced.
        rows: the rows of a run that is resumed. Those that it wrote after its last checkpoint are
            not among them, and so are cut.
    """

    def __init__(self, path: str | Path, rows: Sequence[Mapping[str, float | None]] = ()) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, float | None]] = [dict(row) for row in rows]
        """Everything written so far; a checkpoint holds it."""
        self._columns: list[str] = []
        self._rewrite()

    def write(self, position: Position, scalars: Scalars) -> None:
        row = asdict(position) | dict(scalars)
        self.rows.append(row)
        if set(row) <= set(self._columns):
            with open(self.path, "a", newline="") as file:
                file.write(self._lines([row]))
        else:
            self._rewrite()

    def _rewrite(self) -> None:
        self._columns = list(dict.fromkeys(name for row in self.rows for name in row))
        header = ",".join(self._columns) + "\n" if self._columns else ""
        atomic_write_text(self.path, header + self._lines(self.rows))

    def _lines(self, rows: Sequence[Mapping[str, float | None]]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        writer.writerows(rows)  # None is written as nothing
        return text.getvalue()


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
