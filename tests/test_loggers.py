"""What is written can be read back with the tools that people use."""

from __future__ import annotations

import csv
import io
import sys

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.runs.directory import CSVLogger
from agents.runs.loop import Position
from agents.runs.progress import ProgressBar
from agents.runs.tensorboard import TensorBoardLogger


def position(updates: int) -> Position:
    return Position(updates / 10, float(updates), 100 * updates, updates)


def read_csv(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_one_row_a_log_point_and_nothing_for_none(tmp_path):
    logger = CSVLogger(tmp_path / "metrics.csv")
    logger.write(position(1), {"train/nmse": 0.1})
    logger.write(position(2), {"train/nmse": 0.25, "validation/tree_recall": None})
    logger.write(position(3), {"train/nmse": 1 / 3, "validation/tree_recall": 0.5})
    text = (tmp_path / "metrics.csv").read_text().splitlines()
    assert text[0] == "progress,seconds,merges,updates,train/nmse,validation/tree_recall"
    assert text[1] == "0.1,1.0,100,1,0.1,"
    assert text[2] == "0.2,2.0,200,2,0.25,"
    assert float(read_csv(tmp_path / "metrics.csv")[2]["train/nmse"]) == 1 / 3  # exactly


def test_a_resumed_csv_forgets_rows_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.csv"
    first = CSVLogger(path)
    first.write(position(1), {"a": 1.0})
    rows = list(first.rows)  # the checkpoint
    first.write(position(2), {"a": 2.0, "b": 2.0})
    again = CSVLogger(path, rows)
    assert len(read_csv(path)) == 1
    again.write(position(2), {"a": 2.5})
    assert path.read_text().splitlines() == [
        "progress,seconds,merges,updates,a",
        "0.1,1.0,100,1,1.0",
        "0.2,2.0,200,2,2.5",
    ]


def events_of(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def test_tensorboard_has_scalars_pictures_and_hyperparameters_in_one_folder(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.write(position(1), {"train/nmse": 0.5, "validation/tree_recall": None})
    logger.write(position(2), {"train/nmse": 0.25})
    logger.image("validation/merge_trees", np.full((4, 6, 3), 7, np.uint8), 200)
    logger.hyperparameters({"algo": "chain", "seed": 3, "schedule": (1, 2)}, {"test/nmse": 0.125})
    logger.close()
    assert all(path.is_file() for path in tmp_path.iterdir())  # no run of its own for add_hparams

    events = events_of(tmp_path)
    nmse = [(event.step, event.value) for event in events.Scalars("train/nmse")]
    assert nmse == [(100, 0.5), (200, 0.25)]
    assert "validation/tree_recall" not in events.Tags()["scalars"]
    assert events.Scalars("test/nmse")[0].value == 0.125
    picture = events.Images("validation/merge_trees")[0]
    assert (picture.step, picture.width, picture.height) == (200, 6, 4)
    from tensorboard.plugins.hparams.metadata import (
        SESSION_START_INFO_TAG,
        parse_session_start_info_plugin_data,
    )

    content = events.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    values = parse_session_start_info_plugin_data(content).hparams
    assert values["algo"].string_value == "chain"
    assert values["seed"].number_value == 3
    assert values["schedule"].string_value == "(1, 2)"


def test_a_resumed_run_hides_what_was_written_after_its_checkpoint(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    for updates in (1, 2, 3):
        logger.write(position(updates), {"train/nmse": float(updates)})
    logger.close()
    logger = TensorBoardLogger(tmp_path, resumed_at=200)
    logger.write(position(3), {"train/nmse": 30.0})
    logger.close()
    nmse = [(event.step, event.value) for event in events_of(tmp_path).Scalars("train/nmse")]
    assert nmse == [(100, 1.0), (200, 2.0), (300, 30.0)]


def test_without_a_terminal_the_bar_is_a_line_now_and_then(monkeypatch):
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", stream)
    bar = ProgressBar("Trees chain", clock=lambda: now[0])
    for updates in range(1, 26):
        now[0] = float(updates)
        bar.update(position(updates), {"train/return": -0.5, "train/nmse": 0.25, "loss/a": 9.0})
    bar.write(position(25), {"validation/nmse": 0.125, "time/merges_per_second": 12345.0})
    bar.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2  # after 10 s and 20 s
    assert lines[0] == "Trees chain  100%  10 s  1000 merges  return -0.5  nmse 0.25"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_bar_shows_reward_error_and_speed(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    bar = ProgressBar("Trees chain")
    bar.update(position(5), {"train/return": -0.5, "train/nmse": 0.25})
    bar.write(position(5), {"validation/nmse": 0.125, "time/merges_per_second": 12345.0})
    bar.close()
    for shown in ("Trees chain", "50%", "return -0.5", "nmse 0.25", "validation 0.125", "12,345"):
        assert shown in stream.getvalue()
