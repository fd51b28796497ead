"""Rows of a comparison whose trees were searched on."""

from __future__ import annotations

import json

from comparisons import here

from agents.cli import main
from agents.comparison.results import read_results
from htm_env.best_known import FOLDER, BestKnown


def test_every_run_has_a_row_with_a_search_that_is_no_worse(tmp_path, monkeypatch, capsys):
    here(monkeypatch)
    command = ["compare", "--envs", "HTM-Digits-v0", "--mode", "frozen", "--algos", "ward,chain:a"]
    command += ["--seeds", "1", "--merges", "50", "--out", str(tmp_path), "--search", "4"]
    assert main(command) == 0
    rows = {row.algo: row for row in read_results([tmp_path / "results.csv"])}
    assert {"ward", "ward:search4", "chain:a", "chain:a-search4"} <= set(rows)
    for plain, better in (("ward", "ward:search4"), ("chain:a", "chain:a-search4")):
        assert rows[better].nmse < rows[plain].nmse
        assert json.loads(rows[better].options)["search"] == 4
        assert rows[better].merges == rows[plain].merges
    report = (tmp_path / "report.md").read_text()
    known = BestKnown.load(FOLDER / "HTM-Digits-v0.safetensors")
    score = known.score(rows["ward"].nmse, 180).score
    line = next(line for line in report.splitlines() if line.startswith("| `ward` | 1 "))
    assert f"{score:.3g}" in line
    # The same command searches nothing again; a run that was made anew is searched again.
    capsys.readouterr()
    assert main(command) == 0
    assert "search:" not in capsys.readouterr().out
    # A run that is searched last, since it failed at first, is in the same place.
    table, searched = (tmp_path / "results.csv").read_text(), tmp_path / "searched.csv"
    heading, _, *others = searched.read_text().splitlines(keepends=True)
    searched.write_text("".join([heading, *others]))
    assert main(command) == 0
    assert (tmp_path / "results.csv").read_text() == table
    assert main([*command, "--search", "2"]) == 0
    assert "budget 2" in capsys.readouterr().out
