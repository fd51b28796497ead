"""Retraining and cross-play, on runs small enough to follow."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comparisons import arguments, contents, here

from agents.cli import main
from agents.comparison.compare import collect
from agents.comparison.diagnoses import (
    CrossPlayRow,
    Retrained,
    RetrainedConfig,
    read_cross_play,
)
from agents.comparison.results import read_results, write_table
from agents.registry import load_learner
from agents.runs.directory import RunDirectory
from htm_env.autoencoder import HTMAutoencoder

RUNS = Path("runs") / "HTM-Trees-v0"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnoses") / "out"
    given = arguments("reinforce,chain,flat", 96, folder, "--seeds", "1")
    with pytest.MonkeyPatch.context() as patch:
        here(patch)
        assert main([*given, "--retrain", "--cross-play"]) == 0
    return folder


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def measured(capsys) -> list[tuple[str, int]]:
    """The policies that were measured, and through how many autoencoders each."""
    said = re.findall(r"the trees of HTM-Trees-v0/(\S+) through (\d+)", capsys.readouterr().out)
    return [(name, int(number)) for name, number in said]


def test_the_diagonal_is_the_runs_own_error(out):
    rows = read_cross_play(out / "cross_play.csv")
    own = {row.algo: row.nmse for row in rows if row.own}
    assert own == {
        algo: result_of(out / RUNS / f"{algo}-0")["test"]["nmse"] for algo in ("reinforce", "chain")
    }
    # flat makes no trees, and takes none.
    assert [(row.algo, row.autoencoder_algo) for row in rows] == [
        (policy, other) for policy in ("reinforce", "chain") for other in ("reinforce", "chain")
    ]


def test_the_rest_is_a_policys_trees_through_another_autoencoder(out):
    rows = {
        (row.algo, row.autoencoder_algo): row.nmse
        for row in read_cross_play(out / "cross_play.csv")
    }
    policy = load_learner(out / RUNS / "reinforce-0")
    other = load_learner(out / RUNS / "chain-0")
    dataset = policy.task.dataset("test")
    batch = dataset.fixed(1000)
    merges = policy.plan(batch, torch.Generator(), greedy=True)  # greedy: draws nothing
    with torch.no_grad():
        roots = other.autoencoder.encode(batch.tokens, batch.present, merges).roots
        decoded = other.autoencoder.decode(roots, merges, batch.present)
    error = ((decoded - batch.tokens) / dataset.std).square().mean()
    assert rows["reinforce", "chain"] == pytest.approx(float(error), rel=1e-5)


def test_only_the_learned_policy_is_retrained(out):
    rows = [row for row in read_results([out / "retrained.csv"]) if row.split == "test"]
    assert [(row.algo, row.seed) for row in rows] == [("reinforce", 0)]
    own = read_results([out / "results.csv"])
    assert {row.options for row in rows} == {row.options for row in own if row.algo == "reinforce"}
    assert "policy_hidden_dim" in rows[0].options
    config = json.loads(
        (out / "retrained" / "HTM-Trees-v0" / "reinforce-0" / "config.json").read_text()
    )
    assert config["budget"] == {"seconds": None, "merges": 96}
    assert config["config"]["autoencoder"]["hidden_dim"] == 256  # fresh, and the default one
    report = (out / "report.md").read_text()
    assert "## Retrained" in report
    assert "## Cross-play" in report


def test_the_retrained_autoencoder_sees_the_frozen_policys_greedy_trees(out):
    retrained = load_learner(out / "retrained" / "HTM-Trees-v0" / "reinforce-0")
    policy = load_learner(out / RUNS / "reinforce-0")
    batch = policy.dataset.fixed(20)
    before = retrained.autoencoder.weights_hash()
    expected = policy.plan(batch, torch.Generator(), greedy=True)
    for greedy in (True, False):
        assert retrained.plan(batch, torch.Generator(), greedy=greedy).equal(expected)
    retrained.train(merges=600)
    assert retrained.autoencoder.weights_hash() != before
    # Its policy still looks at the old autoencoder, and did not move.
    assert retrained.plan(batch, torch.Generator(), greedy=True).equal(expected)


def test_the_same_command_again_computes_nothing(out, monkeypatch, capsys):
    here(monkeypatch)
    before = contents(out)
    given = arguments("reinforce,chain,flat", 96, out, "--seeds", "1")
    assert main([*given, "--retrain", "--cross-play"]) == 0
    assert "cross-play" not in capsys.readouterr().out
    after = contents(out)
    same = ("runs", "retrained/", "cross_play.csv")
    for name, content in before.items():
        if name.startswith(same):
            assert after[name] == content
        else:
            assert after[name][1] == content[1], f"{name} has other bytes"


def test_a_report_of_several_tables_keeps_their_diagnoses(out, tmp_path):
    joined = tmp_path / "joined"
    assert main(["compare", "--report", str(out), "--out", str(joined)]) == 0
    for name in ("retrained.csv", "cross_play.csv"):
        assert (joined / name).read_text() == (out / name).read_text()


def test_a_second_run_adds_its_pairs_only(out, tmp_path, monkeypatch, capsys):
    here(monkeypatch)
    folder = tmp_path / "out"
    shutil.copytree(out, folder)
    before = {row.pair: row for row in read_cross_play(folder / "cross_play.csv")}
    capsys.readouterr()
    given = arguments("chain,nearest", 96, folder, "--seeds", "1", "--cross-play")
    assert main(given) == 0
    assert measured(capsys) == [("chain-0", 1), ("nearest-0", 2)]
    after = {row.pair: row for row in read_cross_play(folder / "cross_play.csv")}
    assert before.items() <= after.items()
    added = [(row.algo, row.autoencoder_algo) for row in list(after.values())[len(before) :]]
    assert added == [("chain", "nearest"), ("nearest", "chain"), ("nearest", "nearest")]


def test_the_pairs_of_a_run_that_was_made_anew_are_computed_again(
    out, tmp_path, monkeypatch, capsys
):
    here(monkeypatch)
    folder = tmp_path / "out"
    shutil.copytree(out, folder)
    anew = RunDirectory(folder / RUNS / "chain-0")
    autoencoder = HTMAutoencoder.load(anew.autoencoder_path)
    autoencoder.token_mean += 1.0
    autoencoder.save(anew.autoencoder_path)
    other = autoencoder.weights_hash()
    result = anew.load_result()
    assert result is not None and result["weights_hash"] != other
    anew.save_result(result | {"weights_hash": other})
    # A report of what is there by now leaves out what is no longer of it.
    rows = collect(folder)
    assert main(["compare", "--report", str(folder), "--out", str(tmp_path / "joined")]) == 0
    kept = read_cross_play(tmp_path / "joined" / "cross_play.csv")
    assert [(row.algo, row.autoencoder_algo) for row in kept] == [("reinforce", "reinforce")]
    assert {row.weights_hash for row in rows if row.algo == "chain"} == {"", other}
    table = folder / "cross_play.csv"
    marked = [replace(row, nmse=0.5) for row in read_cross_play(table)]
    write_table(table, CrossPlayRow, marked)
    capsys.readouterr()
    given = arguments("reinforce,chain,flat", 96, folder, "--seeds", "1", "--cross-play")
    assert main(given) == 0
    assert measured(capsys) == [("reinforce-0", 1), ("chain-0", 2)]
    again = [row.nmse != 0.5 for row in read_cross_play(table)]
    assert again == [False, True, True, True]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (lambda out: RetrainedConfig(), "needs the folder of a run"),
        (lambda out: RetrainedConfig(run=str(out / RUNS / "flat-0")), "flat makes no trees"),
        (lambda out: RetrainedConfig(run=str(out / "nowhere")), "holds no run"),
    ],
)
def test_what_cannot_be_retrained_on(config, says, out):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        Retrained("HTM-Trees-v0", config(out), env_kwargs={"heights": [3]})


def test_a_run_on_other_data_is_refused(out):
    config = RetrainedConfig(run=str(out / RUNS / "chain-0"))
    with pytest.raises(ValueError, match="was trained on HTM-Trees-v0"):
        Retrained("HTM-Crosses-v0", config)


def test_a_damaged_table_is_named(tmp_path):
    path = tmp_path / "cross_play.csv"
    path.write_text("env,algo\nx,y\n")
    with pytest.raises(ValueError, match="line 2 is not of cross-play"):
        read_cross_play(path)
