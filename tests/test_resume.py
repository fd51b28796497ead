"""A run that was killed or interrupted at any moment ends as if nothing had happened."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from agents.cli import main
from agents.runs.checkpoint import load_state
from benchmarks.endurance import LIBRARIES

SMALL = ("--embedding-dim", "4", "--batch-size", "4", "--set", "autoencoder.hidden_dim=8")
FIXED = (*SMALL, "--algo", "nearest", "--merges", "1600")
LEARNED = (*SMALL, "--policy-hidden-dim", "8", "--merges", "2000")


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    """Loaded here, or every copy would load them."""
    for name in LIBRARIES:
        import_module(name)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[str, Path]:
    """Sixty sets, of which few are held out: of generated data a thousand would be evaluated."""
    path = tmp_path_factory.mktemp("data") / "own.npz"
    np.savez(path, tokens=np.random.default_rng(0).normal(size=(60, 5, 2)))
    return "--data", path


class Run:
    """``htm train`` in a copy of this process: one that starts from nothing takes seconds more."""

    def __init__(self, *arguments: str | Path) -> None:
        self.folder = Path(arguments[-1])
        self.errors = self.folder.with_suffix(".errors")
        with open(self.errors, "wb") as errors:
            self._process = multiprocessing.get_context("fork").Process(
                target=self._train, args=(list(map(str, arguments)), errors.fileno())
            )
            self._process.start()

    def _train(self, arguments: list[str], errors: int) -> None:
        os.dup2(errors, 1)
        os.dup2(errors, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        os._exit(main(["train", *arguments]))

    def stop_at(self, rows: int, how: signal.Signals) -> int:
        """Send the signal once the table has that many rows; returns the status."""
        deadline = time.monotonic() + 120
        table = self.folder / "metrics.csv"
        while self._process.is_alive() and not (
            table.exists() and table.read_bytes().count(b"\n") > rows
        ):
            assert time.monotonic() < deadline, "the run writes no rows"
            time.sleep(0.003)
        assert self._process.is_alive(), self.errors.read_text()
        os.kill(self._process.pid, how)
        self._process.join()
        return self._process.exitcode

    def kill_at(self, rows: int) -> None:
        assert self.stop_at(rows, signal.SIGKILL) == -signal.SIGKILL

    def finish(self) -> None:
        self._process.join()
        assert self._process.exitcode == 0, self.errors.read_text()


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def without_time(value):
    """The same, without what a clock decided."""
    if isinstance(value, list):
        return [without_time(item) for item in value]
    if not isinstance(value, dict):
        return value.numpy().tobytes() if hasattr(value, "numpy") else value
    clock = ("seconds", "update_seconds", "spent", "metrics_sha256", "digest")
    return {
        key: without_time(item)
        for key, item in value.items()
        if key not in clock and not str(key).startswith("time/")
    }


def course_of(folder: Path) -> dict:
    """Everything that a run leaves behind, but for the time that it took."""
    return {
        "state": without_time(load_state(folder / "checkpoint" / "training.safetensors")),
        "autoencoder": (folder / "checkpoint" / "autoencoder.safetensors").read_bytes(),
        "rows": without_time(rows_of(folder)),
        "result": without_time(json.loads((folder / "result.json").read_text())),
        "files": sorted(path.name for path in (folder / "checkpoint").iterdir()),
    }


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    Run(*data, *FIXED, "--out", folder).finish()
    return course_of(folder)


def test_killed_and_resumed_it_ends_bit_identical(data, undisturbed, tmp_path):
    """Killed before the first checkpoint (at row 10), soon after it, and far on."""
    folder = tmp_path / "run"
    Run(*data, *FIXED, "--out", folder).kill_at(3)
    for rows in (14, 60):
        Run("--resume", folder).kill_at(rows)
    Run("--resume", folder).finish()
    assert course_of(folder) == undisturbed


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_writes_a_checkpoint_and_says_how_to_go_on(data, undisturbed, tmp_path, how):
    folder = tmp_path / "run"
    run = Run(*data, *FIXED, "--out", folder)
    assert run.stop_at(35, how) == {signal.SIGINT: 130, signal.SIGTERM: 143}[how]
    errors = run.errors.read_text()
    last = errors.strip().splitlines()[-1]
    assert last == f"htm: interrupted, continue with: htm train --resume {folder}"
    assert "Traceback" not in errors
    saved = load_state(folder / "checkpoint" / "training.safetensors")
    assert len(saved["rows"]) == len(rows_of(folder))  # nothing is lost
    assert not (folder / "result.json").exists()
    if how == signal.SIGINT:  # the same for both, and it takes a while
        Run("--resume", folder).finish()
        assert course_of(folder) == undisturbed


@pytest.mark.parametrize("algo", ["reinforce", "replay --replays 2"])
def test_a_learner_is_killed_and_resumed_bit_identical(data, tmp_path, algo):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = [*data, *LEARNED, "--algo", *algo.split()]
    Run(*arguments, "--out", whole).finish()
    Run(*arguments, "--out", killed).kill_at(8)
    Run("--resume", killed).kill_at(18)
    Run("--resume", killed).finish()
    assert course_of(killed) == course_of(whole)


def test_a_kill_in_the_middle_of_a_write_leaves_nothing_behind(data, undisturbed, tmp_path):
    """What a killed write can leave is cleared away, and the old checkpoint is still whole."""
    folder = tmp_path / "run"
    Run(*data, *FIXED, "--out", folder).kill_at(25)
    half = (folder / "checkpoint" / "training.safetensors").read_bytes()[:500]
    (folder / "checkpoint" / ".training.safetensors.tmp").write_bytes(half)
    (folder / "checkpoint" / f".autoencoder.safetensors.{os.getpid()}").write_bytes(half)
    Run("--resume", folder).finish()
    assert course_of(folder) == undisturbed
