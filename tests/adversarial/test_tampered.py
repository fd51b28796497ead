"""JSON and CSV that were changed with care: every command ends in one line, or does its work."""

from __future__ import annotations

import copy
import csv
import io
import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparisons import arguments, run_here
from test_arguments import LONGEST
from test_cli import status
from test_hostile_files import any_bytes

from agents.comparison import workshop
from agents.comparison.diagnoses import read_cross_play
from agents.comparison.results import read_results, run_rows
from agents.runs.checkpoint import load_state, save_state
from agents.runs.directory import RunDirectory
from htm_env.files import DIGEST, write_json

EXAMPLES = Path(__file__).parents[2] / "docs" / "comparison"


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


VALUES = (
    *(None, True, -1, 0, 1, 2**62, 10**30, -1.5, float("nan"), float("inf"), "", "x", "7"),
    *("\x1b[31mred\n", "Ω" * 500, [], {}, [1, "a"], {"a": {"b": []}}, nested(50), nested(300)),
)
TEXTS = (
    *("", "x", "-1", "1e999", "nan", "inf", "1.5", "9" * 30, "9" * 5000, "{}", "[]", "[" * 5000),
    *('{"a": 1}', "{", '"', "\x00", "\x1b[31m", "\r", "a\nb", "Ω" * 500, "x" * 140_000, "test"),
)
CONTENTS = ("", "{", "null", "[]", "{}", "[" * 10**5, '{"a":' * 10**5, "\x00", "1" * 5000, "NaN")


def changed(value: Any, rng: random.Random) -> Any:
    """JSON in which one or two things are another, gone, or beside what belongs there."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 2])):
        holder = value
        while isinstance(holder, dict | list) and holder:
            key = (
                rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
            )
            inside = holder[key]
            if not isinstance(inside, dict | list) or not inside or rng.random() < 0.3:
                if rng.random() < 0.2:
                    del holder[key]
                elif rng.random() < 0.1 and isinstance(holder, dict):
                    holder[rng.choice(["other", "", "\x1b", "Ω" * 300])] = inside
                else:
                    holder[key] = rng.choice(VALUES)
                break
            holder = inside
    return value


def write_changed(path: Path, rng: random.Random) -> None:
    """Change a JSON file in place, half of the time with a digest that is right."""
    text = path.read_text()
    if rng.random() < 0.2:
        content = (
            rng.choice(CONTENTS).encode() if rng.random() < 0.5 else any_bytes(text.encode(), rng)
        )
        path.write_bytes(content)
        return
    value = json.loads(text)
    value.pop(DIGEST, None)
    value = changed(value, rng)
    if rng.random() < 0.5:
        write_json(path, value)
    else:
        path.write_text(json.dumps(value))


def changed_table(text: str, rng: random.Random) -> str:
    rows = list(csv.reader(io.StringIO(text)))
    for _ in range(rng.choice([1, 1, 3])):
        row = rng.choice(rows if rng.random() < 0.8 else rows[:1])
        match rng.randrange(8):
            case 0:
                row.insert(rng.randrange(len(row) + 1), rng.choice(TEXTS))
            case 1 if row:
                del row[rng.randrange(len(row))]
            case _ if row:
                row[rng.randrange(len(row))] = rng.choice(TEXTS)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    text = out.getvalue()
    return text.replace('"', rng.choice(['"', "", "'"])) if rng.random() < 0.2 else text


def told(code: int, captured: str) -> str:
    """What a command came to; ``done`` or ``refused`` where it said so in good order."""
    lines = captured.strip().splitlines()
    for line in lines:
        if len(line) > LONGEST or not line.isprintable() or not line.startswith("htm: "):
            return f"not a line of ours: {line[:300]!r}"
        if "HTM_TRACEBACK" in line:
            return line
    if code == 0:
        return "done"
    return "refused" if code in (1, 2) and len(lines) >= 1 else f"status {code}: {captured[:300]}"


def tally(name: str, outcomes: dict[str, list[int]]) -> None:
    counts = Counter({outcome: len(numbers) for outcome, numbers in outcomes.items()})
    print(name, dict(counts))  # shown by pytest -s
    assert set(counts) <= {"refused", "done"}, {
        key: numbers[:3] for key, numbers in outcomes.items()
    }
    assert counts["refused"] > 0


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "own.npz"
    np.savez(path, tokens=np.random.default_rng(0).normal(size=(20, 3, 2)), labels=[0, 1] * 10)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, data) -> Path:
    folder = tmp_path_factory.mktemp("tampered") / "run"
    small = ["--set", "autoencoder.hidden_dim=2", "--set", "batch_size=4", "--embedding-dim", "2"]
    asked = ["train", "--data", data, "--algo", "chain", "--merges", "40", "--out", folder, *small]
    assert status(*asked) == 0
    return folder


@pytest.mark.timeout(1200)
def test_a_changed_config(run, tmp_path, mutations, capsys):
    outcomes: dict[str, list[int]] = {}
    for number in range(mutations // 80):
        rng, folder = random.Random(f"config {number}"), tmp_path / "run"
        shutil.copytree(run, folder)
        write_changed(folder / "config.json", rng)
        capsys.readouterr()
        if rng.random() < 0.8:
            code = status("evaluate", folder, "--episodes", "1")
        else:
            code = status("train", "--resume", folder)
        outcomes.setdefault(told(code, capsys.readouterr().err), []).append(number)
        shutil.rmtree(folder)
    tally("config.json", outcomes)


@pytest.mark.timeout(1200)
def test_a_changed_checkpoint(run, tmp_path, mutations, capsys):
    outcomes: dict[str, list[int]] = {}
    shutil.copytree(run, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    shutil.rmtree(directory.before, ignore_errors=True)
    state = load_state(directory.checkpoint_path)
    for number in range(mutations // 40):
        rng = random.Random(f"checkpoint {number}")
        save_state(directory.checkpoint_path, changed(state, rng))
        capsys.readouterr()
        code = status("evaluate", directory.path, "--episodes", "1")
        outcomes.setdefault(told(code, capsys.readouterr().err), []).append(number)
    tally("checkpoint", outcomes)


@pytest.mark.timeout(1200)
def test_a_changed_result_or_table_of_metrics(run, tmp_path, mutations):
    outcomes: dict[str, list[int]] = {}
    shutil.copytree(run, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    result, metrics = directory.result_path.read_bytes(), directory.metrics_path.read_text()
    for number in range(mutations // 4):
        rng = random.Random(f"result {number}")
        directory.result_path.write_bytes(result)
        directory.metrics_path.write_text(metrics)
        if rng.random() < 0.6:
            write_changed(directory.result_path, rng)
        else:
            if rng.random() < 0.5:
                directory.result_path.unlink()  # the hash of the table is in it
            directory.metrics_path.write_text(changed_table(metrics, rng))
        try:
            rows = run_rows(directory)
        except (ValueError, FileNotFoundError) as error:
            good = len(str(error)) <= 300 and str(error).isprintable() and "run" in str(error)
            outcome = "refused" if good else f"{error!r}"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        else:
            outcome = "done"
            assert all(type(row.seconds) is float and type(row.merges) is int for row in rows)
        outcomes.setdefault(outcome, []).append(number)
    tally("result.json, metrics.csv", outcomes)


def test_an_empty_result_is_not_an_end(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    directory.result_path.write_text("{}")
    with pytest.raises(
        ValueError, match=r"result\.json does not hold a result: RunResult needs 'env'"
    ):
        directory.load_result()
    assert status("train", "--resume", directory.path) == 0  # makes it again
    assert directory.load_result()["merges"] >= 40


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"test": {}}, r"test has \[\]; expected nmse or return among them"),
        ({"test": {"tree_f1": 1.0}}, r"test has \['tree_f1'\]; expected nmse or return among them"),
        ({"test": {"nmse": float("nan")}}, "nmse of test is nan; expected a finite number"),
        ({"validation": {"nmse": float("inf")}}, "nmse of validation is inf; expected a finite"),
        ({"spent": {"updates": float("nan")}}, "updates of spent is nan; expected a finite number"),
        ({"seconds": float("inf")}, "seconds of the run is inf; expected a finite number"),
        ({"seconds": float("nan")}, "seconds is nan; expected at least 0"),
    ],
)
def test_numbers_that_no_run_writes_are_no_result(run, tmp_path, change, says):
    directory = RunDirectory(shutil.copytree(run, tmp_path / "run"))
    write_json(directory.result_path, directory.load_result() | change)
    with pytest.raises(ValueError, match=rf"result\.json does not hold a result: {says}"):
        directory.load_result()
    unknown = {"test": {"nmse": None, "tree_f1": None}}  # not finite, and not known
    shutil.copy(run / "result.json", directory.result_path)
    write_json(directory.result_path, directory.load_result() | unknown)
    assert directory.load_result()["test"] == unknown["test"]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("form", [".json", ".toml"])
def test_a_changed_file_of_options(run, data, tmp_path, mutations, capsys, form):
    outcomes: dict[str, list[int]] = {}
    asked = json.loads((run / "config.json").read_text())
    asked = {
        name: asked[name] for name in ("env", "env_kwargs", "algo", "config", "budget", "seed")
    }
    path = tmp_path / f"options{form}"
    for number in range(mutations // 40):
        rng = random.Random(f"options {number}")
        if form == ".json":
            path.write_text(json.dumps(changed(asked, rng)))
        else:
            toml = (
                f'env = "HTM-v0"\nalgo = "chain"\nseed = 3\nenv_kwargs = {{dataset = "{data}"}}\n'
            )
            toml += "budget = {merges = 40}\n[config]\nbatch_size = 4\n"
            path.write_bytes(any_bytes(toml.encode(), rng) if number else b"a = " + b"[" * 10**5)
        capsys.readouterr()
        code = status("train", "--config", path, "--save-config", tmp_path / "saved.json")
        outcomes.setdefault(told(code, capsys.readouterr().err), []).append(number)
    tally(f"--config {form}", outcomes)


TABLES = {"results.csv": lambda path: read_results([path]), "cross_play.csv": read_cross_play}
"""How ``htm compare --report`` reads each of its tables."""


@pytest.fixture
def compared(tmp_path) -> Path:
    """The tables of a small comparison."""
    kept = (EXAMPLES / "full_joint" / "results.csv").read_text().splitlines()
    chosen = [line for line in kept if ",test," in line and '"{""heights"": [3]}"' in line]
    source = tmp_path / "source"
    source.mkdir()
    (source / "results.csv").write_text("\n".join([kept[0], *chosen[:8]]) + "\n")
    crossed = (EXAMPLES / "full_joint" / "cross_play.csv").read_text().splitlines()
    (source / "cross_play.csv").write_text("\n".join(crossed[:9]) + "\n")
    return source


@pytest.mark.parametrize("name", TABLES)
def test_a_changed_table_is_read_or_refused_in_one_line(compared, mutations, name):
    outcomes: dict[str, list[int]] = {}
    text = (compared / name).read_text()
    for number in range(mutations // 4):
        (compared / name).write_text(changed_table(text, random.Random(f"{name} {number}")))
        try:
            TABLES[name](compared / name)
        except ValueError as error:
            good = len(str(error)) <= 300 and str(error).isprintable() and name in str(error)
            outcome = "refused" if good else f"{error!r}"
        else:
            outcome = "done"
        outcomes.setdefault(outcome, []).append(number)
    tally(name, outcomes)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", TABLES)
def test_a_report_of_a_changed_table(compared, tmp_path, mutations, in_full, capsys, name):
    """The whole command, whose figures take long; in the short form of one changed table."""
    outcomes: dict[str, list[int]] = {}
    text = (compared / name).read_text()
    for number in range(mutations // 100 if in_full else 1):
        (compared / name).write_text(changed_table(text, random.Random(f"{name} {number}")))
        capsys.readouterr()
        code = status("compare", "--report", compared, "--out", tmp_path / "report")
        outcomes.setdefault(told(code, capsys.readouterr().err), []).append(number)
    tally(name, outcomes)


def test_a_comparison_with_changed_runs(tmp_path, mutations, in_full, capsys, monkeypatch):
    """The whole command on runs of which one has a changed file; in the long form."""
    if not in_full:
        pytest.skip("two runs and a report for each change")
    monkeypatch.setattr(workshop, "run_units", run_here)
    command = arguments("chain,nearest", 40, tmp_path / "all", "--seeds", "1")
    assert status(*command) == 0
    outcomes: dict[str, list[int]] = {}
    runs = sorted((tmp_path / "all" / "runs").glob("*/*"))
    for number in range(mutations // 200):
        rng = random.Random(f"comparison {number}")
        path = rng.choice(runs) / rng.choice(["config.json", "result.json", "metrics.csv"])
        before = path.read_bytes()
        if path.suffix == ".csv":
            path.write_text(changed_table(before.decode(), rng))
        else:
            write_changed(path, rng)
        capsys.readouterr()
        code = status(*command)
        outcomes.setdefault(told(code, capsys.readouterr().err), []).append(number)
        path.write_bytes(before)
    tally("compare", outcomes)
