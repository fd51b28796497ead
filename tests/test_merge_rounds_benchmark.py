"""The benchmark of merge rounds runs, and says what it says it says."""

from __future__ import annotations

import json

import pytest

from benchmarks import merge_rounds


@pytest.mark.slow
def test_rounds_make_lower_trees(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    merge_rounds.main(["--seconds", "2", "--most", "5", "--episodes", "20"])
    rows = json.loads((tmp_path / "runs/benchmarks/merge_rounds.json").read_text())["rows"]
    assert [row["tokens"] for row in rows] == [15, 31]
    for row in rows:
        assert row["samples"] == 20
        assert row["height, in rounds"] < row["height, one at a time"]
        assert row["height, in rounds"] >= 4  # fifteen tokens need four levels
        errors = row["nmse, in rounds"], row["nmse, one at a time"]
        assert row["nmse, ratio"] == pytest.approx(errors[0] / errors[1])
