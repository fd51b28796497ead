"""A run that was killed or interrupted at any moment ends as if nothing had happened."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agents.runs.checkpoint import load_state

ROOT = Path(__file__).parent.parent
TINY = [
    "--env",
    "HTM-Trees-v0",
    "--env-kwargs",
    '{"heights": [2, 3]}',
    "--batch-size",
    "4",
    "--set",
    "autoencoder.hidden_dim=8",
]
FIXED = [*TINY, "--algo", "nearest", "--merges", "6000"]
LEARNED = [*TINY, "--policy-hidden-dim", "8", "--merges", "5000"]


def start(*arguments: str | Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "agents.cli", "train", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def rows_of(folder: Path) -> list[dict[str, str]]:
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def stop_at(
    process: subprocess.Popen, folder: Path, rows: int, how: signal.Signals
) -> tuple[int, str]:
    """Send the signal once the table has that many rows; returns status and standard error."""
    deadline = time.monotonic() + 120
    table = folder / "metrics.csv"
    while process.poll() is None and not (
        table.exists() and table.read_bytes().count(b"\n") > rows
    ):
        assert time.monotonic() < deadline, "the run writes no rows"
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1].decode()
    process.send_signal(how)
    _, errors = process.communicate()
    return process.returncode, errors.decode()


def kill_at(process: subprocess.Popen, folder: Path, rows: int) -> None:
    assert stop_at(process, folder, rows, signal.SIGKILL)[0] == -signal.SIGKILL


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()


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
def undisturbed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(start(*FIXED, "--out", folder))
    return course_of(folder)


@pytest.mark.slow
def test_killed_and_resumed_it_ends_bit_identical(undisturbed, tmp_path):
    """Killed before the first checkpoint (at row 10), soon after it, and far on."""
    folder = tmp_path / "run"
    kill_at(start(*FIXED, "--out", folder), folder, 3)
    for rows in (14, 110):
        kill_at(start("--resume", folder), folder, rows)
    finish(start("--resume", folder))
    assert course_of(folder) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_writes_a_checkpoint_and_says_how_to_go_on(undisturbed, tmp_path, how):
    folder = tmp_path / "run"
    status, errors = stop_at(start(*FIXED, "--out", folder), folder, 35, how)
    assert status == {signal.SIGINT: 130, signal.SIGTERM: 143}[how]
    last = errors.strip().splitlines()[-1]
    assert last == f"htm: interrupted, continue with: htm train --resume {folder}"
    assert "Traceback" not in errors
    saved = load_state(folder / "checkpoint" / "training.safetensors")
    assert len(saved["rows"]) == len(rows_of(folder))  # nothing is lost
    assert not (folder / "result.json").exists()
    if how == signal.SIGINT:  # the same for both, and it takes a while
        finish(start("--resume", folder))
        assert course_of(folder) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["reinforce", "replay --replays 2"])
def test_a_learner_is_killed_and_resumed_bit_identical(tmp_path, algo):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = [*LEARNED, "--algo", *algo.split()]
    finish(start(*arguments, "--out", whole))
    kill_at(start(*arguments, "--out", killed), killed, 20)
    kill_at(start("--resume", killed), killed, 60)
    finish(start("--resume", killed))
    assert course_of(killed) == course_of(whole)


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_write_leaves_nothing_behind(undisturbed, tmp_path):
    """What a killed write can leave is cleared away, and the old checkpoint is still whole."""
    folder = tmp_path / "run"
    kill_at(start(*FIXED, "--out", folder), folder, 25)
    half = (folder / "checkpoint" / "training.safetensors").read_bytes()[:500]
    (folder / "checkpoint" / ".training.safetensors.tmp").write_bytes(half)
    (folder / "checkpoint" / f".autoencoder.safetensors.{os.getpid()}").write_bytes(half)
    finish(start("--resume", folder))
    assert course_of(folder) == undisturbed
