"""What a person sees of runs side by side, with a terminal and without."""

from __future__ import annotations

import pytest

from agents.comparison.live_table import LiveTable, Watched
from agents.engines import Progress, UnitState
from agents.runs.directory import RunDirectory

METRICS = """progress,seconds,merges,updates,validation/nmse
0.1,2.0,1500,7,0.5
0.2,4.0,3000,14,
0.3,6.0,45"""
"""The last row is being written."""


@pytest.fixture
def watched(tmp_path) -> list[Watched]:
    runs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        runs.append(Watched(name, RunDirectory(tmp_path / name)))
    (tmp_path / "first" / "metrics.csv").write_text(METRICS)
    return runs


def test_cells_come_from_the_rows_that_are_complete(watched):
    assert watched[0].cells() == ["first", "waiting", "", "20%", "4", "3,000", "0.5"]
    assert watched[1].cells() == ["second", "waiting", "", "", "", "", ""]


def test_without_a_terminal_a_line_for_every_change(watched, capsys):
    table = LiveTable("compare", watched)
    table.update({})
    assert capsys.readouterr().err == ""
    running = {"first": Progress(UnitState.RUNNING)}
    table.update(running)
    table.update(running)
    assert capsys.readouterr().err.splitlines() == [
        "[0/2]  first  running  20%  4 s  3,000 merges  validation 0.5"
    ]
    table.update({"first": Progress(UnitState.FAILED, "killed by SIGKILL")})
    table.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("[1/2]  first  failed")
    assert line.endswith("killed by SIGKILL")


def test_a_terminal_shows_a_table_of_all(watched, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "40")
    table = LiveTable("compare", watched)
    table.update({"second": Progress(UnitState.RUNNING)})
    table.update({"second": Progress(UnitState.DONE)})
    table.close()
    shown = capsys.readouterr().err
    for expected in ("compare [0/2]", "running", "compare [1/2]", "done", "waiting", "3,000"):
        assert expected in shown


def test_what_does_not_fit_is_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "20")
    runs = [Watched(f"run{number}", RunDirectory(tmp_path / str(number))) for number in range(30)]
    table = LiveTable("compare", runs)
    table.update({"run29": Progress(UnitState.RUNNING)})
    table.close()
    shown = capsys.readouterr().err
    assert "... and 18 more" in shown
    assert "run29" in shown  # who trains comes first
    assert "run20" not in shown


def test_hosts_have_a_column_where_runs_are_elsewhere(watched, capsys, monkeypatch):
    table = LiveTable("compare", watched)
    table.update({"first": Progress(UnitState.RUNNING, host="node7:12")})
    table.update({"first": Progress(UnitState.RUNNING, host="node8:12")})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1:5] for line in lines] == [
        ["first", "running", "on", "node7:12"],
        ["first", "running", "on", "node8:12"],
    ]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    LiveTable("compare", watched).close()
    assert "node8:12" in capsys.readouterr().err
