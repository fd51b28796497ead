"""The folder of one run and its files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from agents.config.dataclasses_json import config_from_dict, flattened
from agents.config.errors import RunWarning
from agents.config.files import RECORDED, check_run, quoted
from agents.config.plug_ins import check_outside
from agents.config.run import RunConfig
from agents.runs.checkpoint import load_state, save_state
from agents.runs.host import Host
from agents.runs.lock import check_own_files, locked
from agents.runs.loop import Position, Scalars
from agents.runs.records import CheckpointRecord, HostCourse, RunRecord, RunResult, TreeCourse
from htm_env.checks import brief
from htm_env.datasets.user import BESIDE_ROWS, read_sets
from htm_env.files import (
    LONGEST_TABLE,
    atomic_folder,
    atomic_write_bytes,
    atomic_write_text,
    check_name,
    naming,
    read_json,
    read_text,
    remove,
    write_json,
)

TRAINING, AUTOENCODER = "training.safetensors", "autoencoder.safetensors"
"""The files of a checkpoint."""
OWN_DATA = "dataset.npz"
"""Data that a learner was given as arrays, kept with its run."""
LIBRARIES = ("htm-rl", "torch", "pytorch-optimizer", "numpy", "gymnasium", "safetensors")
"""Packages whose versions are in ``config.json``."""
KEPT = (
    *("env", "algo", "config", "embedding_dim", "mode", "seed", "merger", "env_kwargs", "budget"),
)
"""Fields of ``config.json`` that a checkpoint has too: both are of one run, whose schedules follow
its budget. Of ``env_kwargs`` those beside the data, which may move to another file."""


@runtime_checkable
class Savable(Protocol):
    """An autoencoder, of trees or of whole sets."""

    def save(self, path: str | Path) -> None: ...


def versions() -> dict[str, str]:
    """Versions of Python and of the :data:`LIBRARIES` here."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


class RunDirectory:
    """``config.json``, ``metrics.csv``, ``result.json``, ``checkpoint/``, ``figures/``, events.

    A checkpoint is a folder that takes its name when all in it is written; the one before is kept
    as ``checkpoint.before/``. Whoever writes holds the lock of :meth:`locked`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.json"
        self.metrics_path = self.path / "metrics.csv"
        self.result_path = self.path / "result.json"
        self.checkpoint, self.before = self.path / "checkpoint", self.path / "checkpoint.before"
        """The folders of the last checkpoint, and of the one before."""
        self.checkpoint_path = self.checkpoint / TRAINING
        """Everything that resuming needs."""
        self.autoencoder_path = self.checkpoint / AUTOENCODER
        """The autoencoder alone, for ``gym.make(..., autoencoder=path)``."""
        self.figure_path = self.path / "figures" / "validation.png"
        self.trees_path = self.path / "trees.json"
        """The trees of a few validation samples over the course of the training."""
        self.hosts_path = self.path / "hosts.json"
        """The hosts that the run ran on, in their order."""

    @property
    def holds_run(self) -> bool:
        """True <--> a run was started here."""
        return self.config_path.exists()

    def locked(self) -> AbstractContextManager[int]:
        """Keep other processes from writing here (see :func:`agents.runs.lock.locked`).

        Raises ``ValueError`` too where something in the folder is a link: others may have made it,
        and what a run writes and removes stays in it.
        """
        self.check_own_files()
        return locked(self.path)

    def check_own_files(self) -> None:
        """Raise ``ValueError`` where something in the folder is a link."""
        check_own_files(sorted(self.path.iterdir()) if self.path.is_dir() else [])

    def check_free(self) -> None:
        """Raise ``FileExistsError`` if a run was started here."""
        if self.holds_run:
            raise FileExistsError(
                f"{self.path} already holds a run; resume it with --resume {quoted(self.path)}, "
                "or choose another folder"
            )

    # ------------------------------------------------------------ configuration and result

    def save_trees(self, course: TreeCourse) -> None:
        write_json(self.trees_path, asdict(course))

    def load_trees(self) -> TreeCourse:
        """The trees over the course of the training; none of older runs.

        Raises ``ValueError`` for a file that was not written by a run.
        """
        if not self.trees_path.exists():
            return TreeCourse()
        try:
            return config_from_dict(TreeCourse, read_json(self.trees_path))
        except ValueError as error:
            raise ValueError(brief(f"{self.trees_path}: {error}")) from error

    def add_host(self, host: Host) -> None:
        """Write that the run goes on here; a damaged list is begun anew."""
        hosts: tuple[Host, ...] = ()
        with suppress(ValueError):
            hosts = self.load_hosts()
        if not hosts or hosts[-1].key != host.key:
            write_json(self.hosts_path, {"hosts": [asdict(each) for each in (*hosts, host)]})

    def load_hosts(self) -> tuple[Host, ...]:
        """The hosts that the run ran on, each as often as it went on there; none of older runs.

        Raises ``ValueError`` for a file that was not written by a run.
        """
        if not self.hosts_path.exists():
            return ()
        try:
            return config_from_dict(HostCourse, read_json(self.hosts_path)).hosts
        except ValueError as error:
            raise ValueError(brief(f"{self.hosts_path}: {error}")) from error

    def save_config(
        self, run: RunConfig, data: dict[str, Any] | None = None, ranks: int | None = None
    ) -> None:
        """Write ``config.json``.

        Data in ``env_kwargs`` is kept beside it, paths become absolute. ``data`` is what
        :func:`agents.runs.data.recorded_data` gives, and ``ranks`` the number of processes that
        learn together, if it is known. Raises ``ValueError`` for what JSON cannot hold, and for
        data whose name is no text.
        """
        kwargs, arrays = self._kept_kwargs(run)
        if arrays is not None:
            content = io.BytesIO()
            np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
            atomic_write_bytes(self.path / OWN_DATA, content.getvalue())
        described = replace(run, env_kwargs=kwargs).as_dict()
        beside: dict[str, Any] = {"versions": versions(), "data": data}
        if ranks is not None:
            beside["ranks"] = ranks
        try:
            write_json(self.config_path, described | beside)
        except TypeError as error:
            raise ValueError(
                f"this run cannot be described in {self.config_path}: {error}"
            ) from None

    def resolved(self, run: RunConfig) -> RunConfig:
        """The configuration with absolute paths, as :meth:`save_config` writes it."""
        return replace(run, env_kwargs=self._kept_kwargs(run)[0])

    def check_same_agent(self, run: RunConfig, data: dict[str, Any] | None = None) -> None:
        """Raise ``FileExistsError`` where a run was started here, or where another agent was saved.

        The arguments are those of :meth:`save_config`. An agent is replaced by a state of the same
        agent alone, whose checkpoint is all that differs and takes its place at once.
        """
        if not self.holds_run:
            return
        if self.load_config().budget is not None:
            raise FileExistsError(
                f"{self.path} holds a run with its result; save the agent to another folder"
            )
        if not (self.checkpoint.exists() or self.before.exists()):
            return  # its first checkpoint was never whole
        found = self._read_config()
        described = replace(run, env_kwargs=self._kept_kwargs(run)[0]).as_dict()
        this = json.loads(json.dumps(described, default=str))
        hashes = [(record or {}).get("sha256") for record in (found.get("data"), data)]
        if _kept(found) != _kept(this) or hashes[0] != hashes[1]:
            raise FileExistsError(
                f"{self.path} holds another agent; save this one to another folder, or remove that "
                "one first"
            )

    def _kept_kwargs(self, run: RunConfig) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
        """``env_kwargs`` as ``config.json`` has them, and the arrays that are kept beside it."""
        kwargs = dict(run.env_kwargs)
        if isinstance(kwargs.get("dataset"), str | PathLike):
            kwargs["dataset"] = str(Path(kwargs["dataset"]).resolve())
            check_name(kwargs["dataset"])
            if kwargs["dataset"] == self._own_data:
                kwargs["dataset"] = OWN_DATA  # it may move with the folder
        elif "dataset" in kwargs:
            beside = {key: kwargs.pop(key, None) for key in BESIDE_ROWS}
            arrays = read_sets(kwargs["dataset"], beside).arrays()
            return kwargs | {"dataset": OWN_DATA}, arrays
        return kwargs, None

    def load_config(self) -> RunConfig:
        """Read ``config.json``; ``FileNotFoundError`` or ``ValueError`` naming it.

        ``ValueError`` too where it names a module that lies in the folder: none is read from there.
        """
        values = self._read_config()
        own = {name: value for name, value in values.items() if name not in RECORDED}
        with self._describes_run():
            run = config_from_dict(RunConfig, own)
        check_outside(self.path, (run.algo, run.env, run.merger, run.config.get("reward", "")))
        if run.env_kwargs.get("dataset") == OWN_DATA:
            run = replace(run, env_kwargs=run.env_kwargs | {"dataset": self._own_data})
        return run

    def load_data_record(self) -> dict[str, Any] | None:
        """What ``config.json`` records of the data; None for generated data and older runs."""
        self._record()
        return self._read_config().get("data")

    def save_ranks(self, ranks: int) -> None:
        """Write into ``config.json`` how many processes learn together."""
        write_json(self.config_path, self._read_config() | {"ranks": ranks})

    def load_ranks(self) -> int | None:
        """How many processes learn together; None for one, and in older runs."""
        return self._record().ranks

    def other_versions(self) -> str | None:
        """One sentence on the versions that were others where the run began; None if none were."""
        began, here = self._record().versions, versions()
        other = [name for name in here if began.get(name, here[name]) != here[name]]
        if not other:
            return None
        pairs = ", ".join(f"{name} {began[name]} (here {here[name]})" for name in other)
        return f"{self.path} began with {pairs}: it may end otherwise than it would have there"

    def _record(self) -> RunRecord:
        values = self._read_config()
        names = [field.name for field in fields(RunRecord)]
        found = {name: values[name] for name in names if name in values}
        with self._describes_run():
            return config_from_dict(RunRecord, found)

    @contextmanager
    def _describes_run(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError, AttributeError) as error:
            message = f"{self.config_path} does not describe a run: {error}"
            raise ValueError(brief(message)) from error

    def _read_config(self) -> dict[str, Any]:
        check_run(self.path)
        with self._describes_run():
            return read_json(self.config_path)

    @property
    def _own_data(self) -> str:
        return str((self.path / OWN_DATA).resolve())

    def save_result(self, result: dict[str, Any]) -> None:
        """Write ``result.json``, and the hash of ``metrics.csv`` as it is by now.

        A score that is not finite is null there.
        """
        write_json(
            self.result_path, _without_nan(result | {"metrics_sha256": self._metrics_hash()})
        )

    def load_result(self) -> dict[str, Any] | None:
        """Read ``result.json``; None before the run has ended, ``ValueError`` naming a bad file."""
        if not self.result_path.exists():
            return None
        try:
            result = read_json(self.result_path)
            config_from_dict(RunResult, result)
        except ValueError as error:
            again = f"htm train --resume {quoted(self.path)} makes it again"
            message = f"{self.result_path} does not hold a result: {error}; {again}"
            raise ValueError(brief(message)) from error
        return result

    def check_metrics(self, result: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` where ``metrics.csv`` is not what it was when the run ended."""
        recorded = result.get("metrics_sha256")  # older runs have none
        if recorded is not None and recorded != self._metrics_hash():
            raise ValueError(
                f"{self.metrics_path} was changed after the run had ended; htm train --resume "
                f"{quoted(self.path)} makes it again"
            )

    def _metrics_hash(self) -> str | None:
        if not self.metrics_path.exists():
            return None
        try:
            text = read_text(self.metrics_path, LONGEST_TABLE)
        except ValueError as error:
            raise ValueError(brief(f"{self.metrics_path} holds no table: {error}")) from error
        return hashlib.sha256(text.encode()).hexdigest()

    # ------------------------------------------------------------ checkpoints

    def save_checkpoint(
        self,
        state: dict[str, Any],
        autoencoder: Savable,
        training: dict[str, Any] | None = None,
        rows: Sequence[dict[str, float | None]] = (),
        ranks: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Write everything that resuming needs, and the autoencoder for other uses.

        ``state`` is the learner's, ``training`` the loop's, and ``rows`` are those of
        ``metrics.csv`` by now. ``ranks`` are the differences of other processes that learn with
        this one (see :func:`agents.runs.together.gather`).
        """
        about = {"learner": state, "training": training, "rows": list(rows), "ranks": list(ranks)}
        with atomic_folder(self.checkpoint, self.before) as folder:
            save_state(folder / TRAINING, {"run": _kept(self._read_config()), **about})
            autoencoder.save(folder / AUTOENCODER)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Read the last checkpoint; None before the first one.

        One that is damaged is passed over for the one before, with a :class:`RunWarning`. Raises
        ``ValueError`` naming a file where none can be read, or that another run wrote.
        """
        return self._usable()[1]

    def recover(self) -> dict[str, Any] | None:
        """What :meth:`load_checkpoint` gives, once the folder is as if no process was ever killed.

        What such a process was writing is removed, and a checkpoint that is passed over too. Only
        under the lock.
        """
        for leftover in [*self.path.glob(".*.tmp"), *self.checkpoint.glob(".*")]:
            remove(leftover)
        folder, state = self._usable()
        if folder == self.before:
            remove(self.checkpoint)
            os.replace(self.before, self.checkpoint)
        return state

    def _usable(self) -> tuple[Path | None, dict[str, Any] | None]:
        """The folder of the last checkpoint that is whole, and what is in it; None before one."""
        damage = None
        for folder in (self.checkpoint, self.before):
            try:
                state = _checked(load_state(folder / TRAINING), folder / TRAINING)
            except FileNotFoundError:  # between two renames, or before the first checkpoint
                continue
            except ValueError as error:
                damage = damage or error
                continue
            if damage is not None:
                message = f"{damage}; the checkpoint before it is used"
                warnings.warn(message, RunWarning, stacklevel=5)
            self._check_kept(folder / TRAINING, state.pop("run"))
            return folder, state
        if damage is not None:
            raise damage
        return None, None

    def _check_kept(self, path: Path, kept: Mapping[str, Any]) -> None:
        own = _kept(self._read_config())
        here, there = (
            flattened({name: of[name] for name in own if name in kept}) for of in (own, kept)
        )
        for name in dict.fromkeys([*here, *there]):
            if here.get(name) != there.get(name):
                message = (
                    f"{path} is of another run: its {name} is {there.get(name)!r}, and that of "
                    f"{self.config_path} is {here.get(name)!r}"
                )
                raise ValueError(brief(message))


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
            with naming(self.path), open(self.path, "a", newline="") as file:
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


def _kept(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration by which two are known to be of one run."""
    data = {"dataset", *BESIDE_ROWS}
    kwargs = {name: arg for name, arg in values.get("env_kwargs", {}).items() if name not in data}
    return {name: values.get(name) for name in KEPT} | {"env_kwargs": kwargs}


def _checked(state: Any, path: Path) -> dict[str, Any]:
    """A checkpoint's state; ``ValueError`` naming the file for that of something else."""
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}; expected a checkpoint")
    try:
        return dict(vars(config_from_dict(CheckpointRecord, state)))
    except ValueError as error:
        raise ValueError(brief(f"{path} does not hold a checkpoint: {error}")) from error


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
