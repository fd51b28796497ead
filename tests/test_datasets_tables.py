"""Tables in long form, a token a line, which are read by pandas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.cli import main
from htm_env.datasets import ArrayDataset

KEYS = np.arange(24, dtype=np.int64)
LENGTHS = np.array([2, 5, 3, 4, 2, 5, 6, 2, 3, 6, 2, 2])
ROWS = [
    np.random.default_rng(row).normal(size=(length, 3)).astype(np.float32)
    for row, length in enumerate(LENGTHS)
]
SETS = [f"{row:03d}" for row in range(12)][::-1]  # the order is that of the lines
LABELS = ["ant", "bee", "NA"] * 4
SPLIT = ["train"] * 8 + ["validation"] * 2 + ["test"] * 2


def frame() -> Any:
    """The rows as a table, their tokens mixed among each other in the order of their places."""
    import pandas

    lines = [
        (SETS[row], LABELS[row], SPLIT[row], f"t{place}", *token.tolist())
        for place in range(6)
        for row, tokens in enumerate(ROWS)
        for token in tokens[place : place + 1]
    ]
    return pandas.DataFrame(lines, columns=["set", "label", "split", "token_name", "x", "y", "z"])


def written(table: Any, folder: Path, suffix: str) -> Path:
    path = folder / f"own{suffix}"
    if suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_a_table_is_the_same_data_as_a_list(tmp_path: Path, suffix: str) -> None:
    path = written(frame(), tmp_path, suffix)
    for split in ("train", "validation", "test"):
        found = ArrayDataset(path, split)
        expected = ArrayDataset(ROWS, split, split_of=SPLIT, labels=LABELS)
        assert torch.equal(found.episodes(KEYS).tokens, expected.episodes(KEYS).tokens)
        assert (found.places(KEYS) == expected.places(KEYS)).all()
        assert found.fingerprint() == expected.fingerprint() | {"name": path.name}
        assert found.label_names == ["NA", "ant", "bee"]
        assert (found.labels(KEYS) == expected.labels(KEYS)).all()
        assert found.row_names == [SETS[row] for row in found.rows]
        assert found.token_names == [
            [f"t{place}" for place in range(LENGTHS[row])] for row in found.rows
        ]


def test_columns_are_found_by_their_names(tmp_path: Path) -> None:
    table = frame()[["set", "label", "x", "y"]].rename(columns={"set": "id", "label": "species"})
    table["title"] = "set " + table["id"]
    path = written(table, tmp_path, ".csv")
    given = {"set_column": "id", "label_column": "species", "name_column": "title"}
    dataset = ArrayDataset(path, **given)
    assert torch.equal(
        dataset.fixed(9).tokens, ArrayDataset([row[:, :2] for row in ROWS]).fixed(9).tokens
    )
    assert dataset.row_names == [f"set {SETS[row]}" for row in dataset.rows]
    assert dataset.label_names == ["NA", "ant", "bee"]
    turned = ArrayDataset(path, set_column="id", coordinates=["y"])
    assert turned.token_dim == 1 and not turned.has_labels
    assert turned.row_names == [SETS[row] for row in turned.rows]


@pytest.mark.parametrize(
    ("change", "keywords", "message"),
    [
        ({}, {"set_column": "id"}, "own.csv has no column 'id': expected one of set, label, split"),
        ({}, {"coordinates": ["x", "w"]}, "has no column 'w'"),
        ({}, {"coordinates": "x"}, "coordinates is 'x': expected a list of columns"),
        ({}, {"label_column": "class"}, "has no column 'class'"),
        ({"x": (4, None)}, {}, "own.csv: line 4 has no value in column 'x'"),
        ({"label": (5, None)}, {}, "line 5 has no value in column 'label'"),
        (
            {"y": (6, "n/a")},
            {},
            "line 6 has 'n/a' in column 'y': expected numbers, or coordinates=",
        ),
        ({"label": (13, "cat")}, {}, "column 'label' of set '010' has 'bee' and 'cat'"),
        ({"split": (0, "dev"), "set": (0, "new")}, {}, "own.csv: row 0 has one token"),
    ],
)
def test_lines_that_cannot_be_used_are_named(
    tmp_path: Path, change: dict[str, Any], keywords: dict[str, Any], message: str
) -> None:
    table = frame().astype(object)
    for column, (line, value) in change.items():
        table.loc[line, column] = value
    with pytest.raises(ValueError, match=message):
        ArrayDataset(written(table, tmp_path, ".csv"), **keywords)


def test_row_numbers_of_pandas_are_no_coordinate(tmp_path: Path) -> None:
    table = frame()
    table.to_csv(tmp_path / "index.csv")  # what pandas does unless it is told otherwise
    message = r"index.csv: column 0 has no heading \('Unnamed: 0'\), as pandas .*index=False"
    with pytest.raises(ValueError, match=message):
        ArrayDataset(tmp_path / "index.csv")
    named = ArrayDataset(tmp_path / "index.csv", coordinates=["x", "y", "z"])
    path = written(table, tmp_path, ".csv")
    assert named.fingerprint() == ArrayDataset(path).fingerprint() | {"name": "index.csv"}
    table.rename(columns={"y": " "}).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"column 5 has no heading \(' '\)"):
        ArrayDataset(path)


def test_it_says_which_columns_it_took(tmp_path: Path) -> None:
    path = written(frame(), tmp_path, ".csv")
    assert ArrayDataset(path).column_names == ["x", "y", "z"]
    assert ArrayDataset(path, coordinates=["z", "x"]).column_names == ["z", "x"]
    assert ArrayDataset(ROWS).column_names is None


@pytest.mark.slow
def test_training_prints_the_columns_that_it_took(tmp_path: Path, capsys: Any) -> None:
    path = written(frame(), tmp_path, ".csv")
    out = str(tmp_path / "run")
    given = ["--data", str(path), "--embedding-dim", "2", "--merges", "10", "--out", out]
    assert main(["train", "--algo", "nearest", *given]) == 0
    assert "columns   x, y, z are the numbers of a token\n" in capsys.readouterr().out


def test_files_that_are_no_tables_are_named(tmp_path: Path) -> None:
    (tmp_path / "own.parquet").write_bytes(b"PAR1 and nothing else")
    (tmp_path / "own.csv").write_bytes(b"set,x\n1,2\n3,4,5,6\n")
    (tmp_path / "heading.csv").write_text("set,x,y\n")
    for name in ("own.parquet", "own.csv"):
        with pytest.raises(ValueError, match=f"{name} is not a readable table"):
            ArrayDataset(tmp_path / name)
    with pytest.raises(ValueError, match=r"heading\.csv"):
        ArrayDataset(tmp_path / "heading.csv")
    with pytest.raises(FileNotFoundError, match=r"gone\.csv"):
        ArrayDataset(tmp_path / "gone.csv")


@pytest.mark.slow
def test_without_pandas_one_line_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("set,x,y\n1,2,3\n")
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        "from htm_env import make_dataset\n"
        "try: make_dataset('own.csv')\n"
        "except ValueError as error: print(error)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.count("\n") == 1
    assert (
        "own.csv is a table, which needs more packages: pip install 'htm-rl[tables]'" in done.stdout
    )
