"""Labels and names that are markup, formulas or escape codes: they are shown as they are."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from test_cli import status

ODD = ("[/bold]", r"$\frac{$", "\x1b[31mred\x07\nline", "US$ 5 to US$ 10")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    drawn = np.random.default_rng(0).random((120, 4, 2))
    with open(folder / "data.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["set", "label", "name", "token_name", "[/x]\x1b[2J", "y\nz"])
        for number, tokens in enumerate(drawn):
            odd = ODD[number % len(ODD)]
            rows.writerows(
                [number, odd, f"{odd} {number}", f"{odd} {token}", *place]
                for token, place in enumerate(tokens)
            )
    options = ["--algo", "nearest", "--merges", 40, "--embedding-dim", 4]
    out = folder / "run"
    assert status("train", "--data", folder / "data.csv", *options, "--out", out) == 0
    return out


def test_columns_are_printed_in_one_line(run, tmp_path, capsys):
    options = ["--algo", "chain", "--merges", 40, "--embedding-dim", 2, "--out", tmp_path / "run"]
    assert status("train", "--data", run.parent / "data.csv", *options) == 0
    (line,) = [line for line in capsys.readouterr().out.split("\n") if line.startswith("columns")]
    assert line == r"columns   [/x]\x1b[2J, y z are the numbers of a token"


@pytest.mark.parametrize(
    "command",
    [["evaluate"], ["embed"], ["plot", "--samples", "1"], ["view", "--samples", "1"]],
)
def test_commands_show_odd_names(run, tmp_path, command, capsys):
    name, *options = command
    if name in ("embed", "plot"):
        options += ["--out", str(tmp_path)]
    assert status(name, run, *options) == 0
    printed = capsys.readouterr()
    assert "HTM_TRACEBACK" not in printed.err
    assert all(line.isprintable() for line in printed.out.split("\n"))
    if name == "evaluate":
        assert "US$ 5 to US$ 10" in printed.out
        assert r"\x1b[31mred\x07 line" in printed.out
