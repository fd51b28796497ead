"""Clocks of the wall that jump, as they do when a machine wakes up or asks for the time."""

from __future__ import annotations

import ast
import itertools
import json
import time
from pathlib import Path

import pytest
from test_cli import TINY, only_line, status
from test_crashes import course_of, train

ROOT = Path(__file__).parents[2]
PACKAGES = ("htm_env", "replay", "agents", "benchmarks")
HOW_OLD = {"agents/runs/host.py"}
"""Files that ask how many days old something is, which no other clock knows."""
OF_THE_WALL = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}


@pytest.fixture
def jumping(monkeypatch) -> None:
    """The wall's clock goes back and forth by years at every look."""
    now, steps = time.time(), itertools.cycle([0.0, 3e7, -3e7, 1e8, -5e8])
    monkeypatch.setattr(time, "time", lambda: now + next(steps))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * (now + next(steps))))


def test_nothing_measures_with_the_clock_of_the_wall():
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if str(path.relative_to(ROOT)) in HOW_OLD:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
                assert name.removeprefix("datetime.") not in OF_THE_WALL, path
                if isinstance(node, ast.ImportFrom) and node.module == "time":
                    names = {alias.name for alias in node.names}
                    assert names <= {"monotonic", "perf_counter", "process_time", "sleep"}, path


def test_a_run_ends_alike_under_a_clock_that_jumps(tmp_path, request):
    train(tmp_path / "steady")
    request.getfixturevalue("jumping")
    train(tmp_path / "jumping")
    assert course_of(tmp_path / "jumping") == course_of(tmp_path / "steady")


@pytest.mark.usefixtures("jumping")
def test_a_budget_of_seconds_is_used_as_if_it_did_not_jump(tmp_path, capsys):
    arguments = [*TINY, "--algo", "chain", "--seconds", "0.3", "--out", tmp_path / "run"]
    assert status("train", *arguments) == 0
    captured = capsys.readouterr()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    spent, seconds = result["spent"], result["seconds"]
    assert seconds >= 0.3 and all(value >= 0 for value in spent.values())
    assert spent["updates"] <= seconds
    # Test scores and the last picture come after the budget, start-up before it.
    assert result["updates"] >= 1
    (line,) = (line for line in captured.out.splitlines() if line.startswith("seconds "))
    for name, value in spent.items():
        assert f"{name.replace('_', '-')} {value:.1f}" in line
    assert f"{result['updates']} updates" in line


def said(errors: str) -> str:
    """What is said, without the lines that are signs of life."""
    return "\n".join(line for line in errors.splitlines() if line.startswith("htm: "))


def test_too_few_updates_are_told_in_one_line_and_in_the_result(tmp_path, capsys):
    arguments = [*TINY, "--algo", "chain", "--merges", "16", "--out", tmp_path / "run"]
    assert status("train", *arguments) == 0
    told = only_line(said(capsys.readouterr().err))
    assert told.startswith("htm: only 2 updates: ")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["too_few_updates"] == told.removeprefix("htm: ")
    frozen = [*arguments[:-2], "--mode", "frozen", "--out", tmp_path / "frozen"]
    assert status("train", *frozen) == 0  # a fixed order with weights that stay as they are
    assert said(capsys.readouterr().err) == ""
    assert json.loads((tmp_path / "frozen" / "result.json").read_text())["too_few_updates"] is None
