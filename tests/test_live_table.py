"""What a person sees of runs side by side, with a terminal and without."""

from __future__ import annotations

import pytest

from agents.comparison.jobs import Job, State
from agents.comparison.live_table import LiveTable, Watched
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
        runs.append(Watched(Job(name, (), tmp_path / "log.txt"), RunDirectory(tmp_path / name)))
    (tmp_path / "first" / "metrics.csv").write_text(METRICS)
    return runs


def test_cells_come_from_the_rows_that_are_complete(watched):
    assert watched[0].cells() == ["first", "waiting", "20%", "4", "3,000", "0.5"]
    assert watched[1].cells() == ["second", "waiting", "", "", "", ""]


def test_without_a_terminal_a_line_for_every_change(watched, capsys):
    table = LiveTable("compare", watched)
    table.update()
    assert capsys.readouterr().err == ""
    watched[0].job.state = State.RUNNING
    table.update()
    table.update()
    assert capsys.readouterr().err.splitlines() == [
        "[0/2]  first  running  20%  4 s  3,000 merges  validation 0.5"
    ]
    watched[0].job.state, watched[0].job.reason = State.FAILED, "killed by SIGKILL"
    table.update()
    table.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("[1/2]  first  failed")
    assert line.endswith("killed by SIGKILL")


def test_a_terminal_shows_a_table_of_all(watched, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "40")
    watched[1].job.state = State.RUNNING
    table = LiveTable("compare", watched)
    table.update()
    watched[1].job.state = State.DONE
    table.update()
    table.close()
    shown = capsys.readouterr().err
    for expected in ("compare [0/2]", "running", "compare [1/2]", "done", "waiting", "3,000"):
        assert expected in shown


def test_what_does_not_fit_is_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "20")
    runs = [
        Watched(Job(f"run{number}", (), tmp_path), RunDirectory(tmp_path / str(number)))
        for number in range(30)
    ]
    runs[29].job.state = State.RUNNING
    table = LiveTable("compare", runs)
    table.update()
    table.close()
    shown = capsys.readouterr().err
    assert "... and 18 more" in shown
    assert "run29" in shown  # who trains comes first
    assert "run20" not in shown
