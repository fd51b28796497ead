"""Run folders of somebody else: links that lead out of them, and files that never end."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from comparisons import arguments, run_here
from test_cli import TINY, status
from test_outputs import refused

from agents import load
from agents.comparison import workshop
from agents.comparison.compare import collect
from agents.comparison.live_table import Watched
from agents.comparison.results import run_rows
from agents.runs.directory import RunDirectory
from agents.runs.lock import locked
from htm_env.autoencoder import HTMAutoencoder
from htm_env.best_known import BestKnown
from htm_env.datasets import make_dataset
from htm_env.files import DIGEST, write_json


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("links") / "run"
    assert status("train", *TINY, "--algo", "nearest", "--merges", 40, "--out", folder) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize("name", [".lock", "config.json", "metrics.csv", "log.txt", "other"])
def test_nothing_is_written_through_a_link_in_a_run_folder(run, tmp_path, name, capsys):
    elsewhere = tmp_path / "elsewhere"
    own = run / name
    if own.exists():
        own.rename(elsewhere)
    else:
        elsewhere.write_text("kept")
    content = elsewhere.read_bytes()
    own.symlink_to(elsewhere)
    assert status("train", "--resume", run) == 1
    assert str(own) in refused(capsys.readouterr().err)
    assert elsewhere.read_bytes() == content


def test_nothing_is_removed_through_a_link_in_a_run_folder(run, tmp_path, capsys):
    home = (run / "checkpoint").rename(tmp_path / "home")
    (home / ".profile").write_text("kept")
    (run / "checkpoint").symlink_to(home)
    assert status("train", "--resume", run) == 1
    assert str(run / "checkpoint") in refused(capsys.readouterr().err)
    assert (home / ".profile").read_text() == "kept"


@pytest.mark.parametrize(("command", "name"), [("plot", "figures"), ("embed", "embeddings")])
def test_what_is_made_of_a_run_stays_in_its_folder(run, tmp_path, command, name, capsys):
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).symlink_to(tmp_path / "elsewhere")
    assert status(command, run, "--samples", 4) == 1
    assert str(run / name) in refused(capsys.readouterr().err)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_comparison_writes_through_no_link(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workshop, "run_units", run_here)
    command = arguments("nearest", 40, tmp_path / "compared", "--seeds", "1")
    assert status(*command) == 0
    (own,) = (tmp_path / "compared" / "runs").glob("*/*")
    (own / "result.json").unlink()
    (tmp_path / "elsewhere").write_text("kept")
    (own / "log.txt").symlink_to(tmp_path / "elsewhere")
    capsys.readouterr()
    assert status(*command) == 1
    assert str(own / "log.txt") in refused(capsys.readouterr().err)
    assert (tmp_path / "elsewhere").read_text() == "kept"


def test_the_lock_of_a_folder_is_no_link(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("kept")
    with pytest.raises(ValueError, match=r"out/\.lock is a link"), locked(tmp_path / "out"):
        pass
    assert (tmp_path / "elsewhere").read_text() == "kept"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["config.json", "metrics.csv", "result.json", "own.toml"])
@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_a_file_that_never_ends_is_refused(run, tmp_path, name, kind, capsys):
    path = run / name
    path.unlink(missing_ok=True)
    if kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    compared = tmp_path / "compared"
    command = {
        "config.json": ["evaluate", run],
        "own.toml": ["train", "--config", path],
    }.get(name, ["compare", "--report", path, "--out", compared])
    assert status(*command) in (1, 2)
    assert str(path) in refused(capsys.readouterr().err)


@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_metrics_hangs_no_reader(run, tmp_path, capsys):
    """Opening one for reading waits until a process writes to it, which none does."""
    directory = RunDirectory(run)
    directory.metrics_path.unlink()
    os.mkfifo(directory.metrics_path)
    compared = tmp_path / "compared" / "runs" / "trees"
    compared.mkdir(parents=True)
    for finished in (True, False):
        if not finished:
            directory.result_path.unlink()
        for read in (lambda: run_rows(directory), Watched("mine", directory).cells):
            with pytest.raises(ValueError, match=r"metrics\.csv .*it is not a file"):
                read()
        shutil.copytree(run, compared / "mine", ignore=shutil.ignore_patterns("metrics.csv"))
        os.mkfifo(compared / "mine" / "metrics.csv")
        with pytest.raises(ValueError, match=r"metrics\.csv .*it is not a file"):
            collect(tmp_path / "compared")
        shutil.rmtree(compared / "mine")
    assert status("evaluate", run, "--episodes", 1) == 0  # it reads no metrics
    capsys.readouterr()
    assert status("train", "--resume", run) == 1
    assert str(directory.metrics_path) in refused(capsys.readouterr().err)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["own.npz", "own.npy", "own-idx3-ubyte", "own.csv", "own.parquet"])
def test_a_pipe_in_the_place_of_data_or_weights_hangs_no_reader(tmp_path, name):
    os.mkfifo(tmp_path / name)
    for read in (lambda path: make_dataset(str(path)), HTMAutoencoder.load, BestKnown.load):
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(name)):
            read(tmp_path / name)


def test_a_shape_that_no_data_has_is_refused(tmp_path):
    data, run = tmp_path / "data.npz", tmp_path / "run"
    np.savez(data, tokens=np.random.default_rng(0).normal(size=(30, 3, 2)))
    options = ["--algo", "nearest", "--merges", 40, "--embedding-dim", 2]
    assert status("train", "--data", data, *options, "--out", run) == 0
    data.unlink()
    values = json.loads((run / "config.json").read_text())
    values.pop(DIGEST)
    values["data"]["tokens"] = 10**10
    write_json(run / "config.json", values)
    with pytest.raises(ValueError, match="of memory or more"):
        load(run)
