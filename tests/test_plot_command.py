"""``htm plot``: which files it writes, and what it says of the others."""

from __future__ import annotations

import numpy as np
import pytest
from test_cli import only_line, status

from agents import Reinforce
from agents.evaluation.figures import write_figure
from agents.registry import algorithm
from htm_env.drawing.rendering import Sample, samples_figure

DATA = {"heights": [2]}


def untrained(algo):
    """Samples of three tokens."""
    entry = algorithm(algo)
    return entry.learner("HTM-Trees-v0", entry.config, env_kwargs=DATA, embedding_dim=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of an untrained policy on samples of three tokens."""
    folder = tmp_path_factory.mktemp("plots") / "run"
    untrained("reinforce").save(folder)
    return folder


def names_of_sample(number, suffix):
    endings = ["charges", "filmstrip", "tree", "tree_by_error"]
    return {f"sample_{number}_{ending}.{suffix}" for ending in endings} | {
        f"sample_{number}_merges.gif"
    }


def test_every_figure_is_written_and_its_path_printed(run, capsys):
    assert status("plot", run, "--samples", "1") == 0
    captured = capsys.readouterr()
    printed = set(captured.out.split())
    written = {str(path) for path in (run / "figures").iterdir()}
    assert printed == written
    names = {path.rpartition("/")[2] for path in written}
    expected = names_of_sample(0, "png") | {"samples_0-0.png"}
    assert expected <= names
    others = names - expected
    assert "sample_0_probabilities_merge_1.png" in others
    assert all(name.startswith("sample_0_probabilities_merge_") for name in others)
    for path in (run / "figures").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert captured.err == ""


def test_other_samples_in_another_format_go_to_another_folder(run, tmp_path):
    arguments = ["--samples", "2", "--first", "1", "--format", "svg", "--split", "validation"]
    assert status("plot", run, *arguments, "--out", tmp_path / "out") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    expected = names_of_sample(1, "svg") | names_of_sample(2, "svg") | {"samples_1-2.svg"}
    assert {name for name in names if "probabilities" not in name} == expected


@pytest.mark.parametrize(
    ("suffix", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")]
)
def test_the_same_figure_gives_the_same_bytes(tmp_path, suffix, start):
    tokens = np.array([[0.0, 0.0], [1.0, 2.0]])
    contents = []
    for name in ("once", "again"):
        figure = samples_figure([Sample(tokens, np.array([[0, 1]]), tokens)], "points")
        write_figure(tmp_path / f"{name}.{suffix}", figure)
        contents.append((tmp_path / f"{name}.{suffix}").read_bytes())
    assert contents[0] == contents[1]
    assert contents[0].startswith(start)


def test_a_fixed_policy_leaves_the_probabilities_out_and_says_so(tmp_path, capsys):
    untrained("nearest").save(tmp_path)
    assert status("plot", tmp_path, "--samples", "1") == 0
    assert "nearest has none" in only_line(capsys.readouterr().err)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == names_of_sample(0, "png") | {"samples_0-0.png"}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--samples", "0"], 2, "--samples is 0"),
        (["--first", "-1"], 2, "--first is -1"),
        (["--threads", "0"], 2, "--threads is 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(run, capsys, arguments, code, says):
    assert status("plot", run, *arguments) == code
    assert says in only_line(capsys.readouterr().err)


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert status("plot", tmp_path) == 1
    assert "holds no run" in only_line(capsys.readouterr().err)


def test_samples_behind_the_end_of_the_data_are_refused(tmp_path, capsys, own_data):
    run = tmp_path / "run"
    Reinforce("HTM-v0", env_kwargs={"dataset": own_data}, embedding_dim=4).save(run)
    assert status("plot", run, "--first", "2") == 2
    assert "the test split has 2 samples" in only_line(capsys.readouterr().err)


def test_a_row_without_trees_cannot_be_plotted(tmp_path, capsys):
    untrained("flat").save(tmp_path)
    assert status("plot", tmp_path) == 1
    assert "flat makes no trees" in only_line(capsys.readouterr().err)
