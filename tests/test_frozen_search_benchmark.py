"""The benchmark of searches against the best trees known."""

from __future__ import annotations

import json

from benchmarks import frozen_search


def test_more_search_comes_nearer_and_one_tree_is_worse_than_one_for_each(tmp_path):
    command = ["--envs", "HTM-Digits-v0", "--budgets", "0", "4", "--episodes", "20"]
    frozen_search.main([*command, "--proposals", "9", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "frozen_search.json").read_text())["rows"]
    scores = {(row["start"], row["budget"]): row["score"] for row in rows}
    assert scores["ward", 0] < scores["ward", 4] < 1
    assert all(row["over the best known"] > 1 for row in rows)
    shapes = json.loads((tmp_path / "one_shape.json").read_text())["rows"]
    rule, _, found, each = (row["nmse"] for row in shapes)
    assert each < found <= rule  # found for these very images
