"""Where results go: folders that cannot be written, full disks, and names that no person types."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_cli import TINY, only_line, status

from agents.comparison.compare import collect
from agents.config.files import quoted
from agents.learners.fixed_order import FixedOrder

WRITERS: dict[str, Callable[[Path, Path], list[str | Path]]] = {
    "train": lambda run, out: ["train", *TINY, "--algo", "chain", "--merges", 40, "--out", out],
    "embed": lambda run, out: ["embed", run, "--samples", 4, "--out", out],
    "plot": lambda run, out: ["plot", run, "--samples", 1, "--out", out],
    "view": lambda run, out: ["view", run, "--samples", 1, "--out", out / "page.html"],
    "generate": lambda run, out: [
        *["generate", run, "--n", 4, "--real", 4, "--roots", 40, "--refinements", 0],
        *["--components", 1, "--out", out],
    ],
    "report": lambda run, out: ["compare", "--report", run.parent / "compared", "--out", out],
    "pretrain": lambda run, out: [
        *["pretrain", "--env", "HTM-Digits-v0", "--merges", 1, "--out", out]
    ],
}
"""A command that writes to a folder, by its name."""
QUICK = ("view",)
"""Those that are tried on a full disk in the short form of the tests."""
NAMES = {
    "spaces": "two words",
    "quotes": "it's $HOME",
    "option": "--out",
    "newline": "two\nlines",
    "escape": "\x1b[31mred\x1b[0m",
    "unicode": "Bäume 木",
    "bidi": "a\u202etxt",
    "long": "n" * 255,
}
"""Names that a file system takes."""


def finished_run(folder: Path) -> Path:
    """A finished run, and a finished comparison beside it."""
    algorithm = ["--algo", "nearest", "--merges", 40]
    assert status("train", *TINY, *algorithm, "--out", folder / "run") == 0
    made = folder / "compared" / "runs" / "trees" / "nearest-0"
    made.parent.mkdir(parents=True)
    (folder / "run").rename(made)
    collect(folder / "compared")
    made.rename(folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp("outputs"))


def refused(errors: str) -> str:
    """The one line that a command ended with."""
    line = only_line(errors)
    assert line.startswith("htm: ") and line.isprintable()
    return line


@pytest.mark.parametrize("command", WRITERS)
def test_nothing_is_computed_where_nothing_can_be_written(
    run, tmp_path, monkeypatch, command, capsys
):
    monkeypatch.setattr(FixedOrder, "plan", None)  # the first tree would be another error
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    capsys.readouterr()
    assert status(*WRITERS[command](run, out)) == 1
    captured = capsys.readouterr()
    assert str(tmp_path / "file") in refused(captured.err)
    assert captured.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


ODD = [
    *[pytest.param("view", name, id=f"view-{about}") for about, name in NAMES.items()],
    *[pytest.param(command, "木 it's\n\x1b[31mred", id=command) for command in ("train", "plot")],
]


@pytest.mark.parametrize(("command", "name"), ODD)
def test_odd_names_are_written_to_and_printed_as_a_shell_takes_them(
    run, tmp_path, command, name, capsys
):
    out = tmp_path / name
    assert status(*WRITERS[command](run, out)) == 0
    printed = capsys.readouterr().out
    assert out.is_dir()
    assert set(tmp_path.iterdir()) == {out}
    lines = printed.removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in lines)
    assert any(quoted(out / "figures")[:-1] in line or quoted(out)[:-1] in line for line in lines)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_shell_reads_a_printed_name_back(name):
    command = ["bash", "-c", f"printf %s {quoted(Path('folder') / name)}"]
    found = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    assert os.fsdecode(found.stdout) == f"folder/{name}"
    if name.isprintable():
        assert shlex.split(quoted(name)) == [name]


def test_data_of_a_name_that_is_no_text_is_refused_before_training(tmp_path, capsys):
    data, out = tmp_path / os.fsdecode(b"by\xffte.npz"), tmp_path / "out"
    with open(data, "wb") as file:
        np.savez(file, tokens=np.zeros((20, 3, 2)) + np.arange(20)[:, None, None])
    arguments = ["--data", data, "--embedding-dim", 2, "--algo", "chain", "--merges", 40]
    assert status("train", *arguments, "--out", out) == 1
    assert "is not UTF-8; choose another name" in refused(capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize("command", WRITERS)
def test_a_name_that_is_no_text_is_refused_before_anything_is_written(
    run, tmp_path, command, capsys
):
    out = tmp_path / os.fsdecode(b"by\xffte")
    assert status(*WRITERS[command](run, out)) == 1
    assert "is not UTF-8; choose another name" in refused(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []
