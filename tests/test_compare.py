"""``htm compare``: what it trains, what it keeps, and what it says when something goes wrong."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from commands import refusal, status
from comparisons import arguments, contents, here

from agents.cli import main
from agents.cli.command import parse
from agents.comparison.options import CompareOptions
from agents.comparison.plan import plan_runs
from agents.comparison.problems import PROBLEMS, find_problem, task_name
from agents.comparison.results import (
    ResultRow,
    Task,
    metrics_points,
    read_results,
    write_table,
)
from agents.config.errors import UsageError
from agents.engines.process import RETRIES
from agents.learners.replay import ReplayConfig
from agents.registry import ALGORITHMS, build_learner
from agents.runs.lock import locked
from benchmarks.full_comparison import commands

ALGOS = "nearest,flat"
SMALL = {"autoencoder": {"hidden_dim": 8}, "batch_size": 4, "context": {"width": 8}}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch, request):
    if "own_processes" not in request.fixturenames:
        here(monkeypatch)


@pytest.fixture
def own_processes():
    """Every run is a process of its own, as it is for a user."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison") / "out"
    with pytest.MonkeyPatch.context() as patch:
        here(patch)
        assert main(arguments(ALGOS, 96, out, "--seeds", "2")) == 0
    return out


def test_the_table_has_a_row_for_every_run_and_evaluation(finished):
    with open(finished / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:15] == [
        "env",
        "env_kwargs",
        "embedding_dim",
        "algo",
        "encoder",
        "mode",
        "seed",
        "budget",
        "split",
        "seconds",
        "merges",
        "updates",
        "nmse",
        "sampled_nmse",
        "tree_recall",
    ]
    assert {row["encoder"] for row in rows} == {"none"}
    assert {row["options"] for row in rows if row["algo"] == "flat"} == {
        '{"batch_size": 4, "hidden_dim": 8}'
    }
    ends = [row for row in rows if row["split"] == "test"]
    assert [(row["algo"], row["seed"]) for row in ends] == [
        ("flat", "0"),
        ("flat", "1"),
        ("nearest", "0"),
        ("nearest", "1"),
    ]
    for row in ends:
        folder = finished / "runs" / "HTM-Trees-v0" / f"{row['algo']}-{row['seed']}"
        result = json.loads((folder / "result.json").read_text())
        assert float(row["nmse"]) == result["test"]["nmse"]
        assert int(row["merges"]) == result["merges"]
        assert row["weights_hash"] == result["weights_hash"]
        points = metrics_points(folder / "metrics.csv")
        course = [
            r
            for r in rows
            if r["split"] == "validation" and (r["algo"], r["seed"]) == (row["algo"], row["seed"])
        ]
        # Six merges a tree and four trees an update: 4 updates, and no more evaluations than that.
        found = [point.values["validation/nmse"] for point in points]
        assert [float(r["nmse"]) for r in course] == found
        assert len(course) == 4
    flat = next(row for row in ends if row["algo"] == "flat")
    assert flat["tree_recall"] == flat["mean_height"] == ""


def test_all_are_tested_on_the_same_samples(finished):
    """The fixed order ``nearest`` makes the same trees of the same samples, whatever the seed."""
    ends = [row for row in read_results([finished / "results.csv"]) if row.split == "test"]
    recalls = {row.tree_recall for row in ends if row.algo == "nearest"}
    assert len(recalls) == 1
    assert len({row.nmse for row in ends}) == len(ends)  # the autoencoders differ


def test_the_same_command_again_redoes_nothing(finished):
    before = contents(finished / "runs")
    table = (finished / "results.csv").read_bytes()
    assert main(arguments(ALGOS, 96, finished, "--seeds", "2")) == 0
    assert contents(finished / "runs") == before
    assert (finished / "results.csv").read_bytes() == table


def test_more_algorithms_and_seeds_can_follow(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before = contents(out / "runs")
    assert main(arguments("chain", 96, out, "--seeds", "1", "--first-seed", "7")) == 0
    after = contents(out / "runs")
    assert {name: after[name] for name in before} == before
    ends = [row for row in read_results([out / "results.csv"]) if row.split == "test"]
    assert (ends[0].algo, ends[0].seed) == ("chain", 7)
    assert len(ends) == 5
    assert "`chain`" in (out / "report.md").read_text()


def test_the_engine_may_be_another_one_each_time(finished, tmp_path):
    """The same runs as those of ``finished``, half of them by each of two engines."""
    for seeds, engine in (("1", "local"), ("2", "folder")):
        given = arguments(ALGOS, 96, tmp_path / "out", "--seeds", seeds, "--engine", engine)
        assert main(given) == 0
    found, expected = (
        [replace(row, seconds=0.0) for row in read_results([out / "results.csv"])]
        for out in (tmp_path / "out", finished)
    )
    assert found == expected
    assert not list((tmp_path / "out").glob(".*"))


def test_runs_train_on_the_device_that_is_given(tmp_path):
    out = tmp_path / "out"
    assert main(arguments("nearest", 96, out, "--seeds", "1", "--device", "cpu:0")) == 0
    folder = out / "runs" / "HTM-Trees-v0" / "nearest-0"
    assert json.loads((folder / "config.json").read_text())["device"] == "cpu:0"
    assert (folder / "result.json").exists()


def test_a_machine_without_the_device_plans_for_others_that_have_it():
    given = {"envs": "trees7", "algos": "nearest", "seeds": 1, "engine": "slurm"}
    [run], _ = plan_runs(CompareOptions(**given, device="cuda:63"))
    assert run.config.device == "cuda:63"
    with pytest.raises(UsageError, match="--device: Expected one of cpu, cuda"):
        plan_runs(CompareOptions(**given, device="cdua"))


def test_more_seeds_on_another_device_need_another_folder(finished, capsys):
    given = arguments("nearest", 96, finished, "--seeds", "1", "--first-seed", "7")
    assert status(*given, "--device", "cpu:0") == 1
    assert "its device is 'cpu' and not 'cpu:0'; choose another --out" in capsys.readouterr().err


def test_a_folder_that_is_shared_is_no_place_for_other_engines(finished, capsys):
    left = finished / "runs" / "HTM-Trees-v0" / "flat-0" / ".claim" / "1"
    left.mkdir(parents=True)  # by a process that died behind its result
    with locked(finished, shared=True):
        assert main(arguments(ALGOS, 96, finished, "--seeds", "2", "--engine", "folder")) == 0
        assert not left.parent.exists()
        assert main(arguments(ALGOS, 96, finished, "--seeds", "2")) == 1
    assert "is in use by process" in capsys.readouterr().err


def test_more_seeds_with_other_options_need_a_label(finished, capsys):
    before = contents(finished)
    given = arguments("nearest", 96, finished, "--seeds", "1", "--first-seed", "7")
    given[given.index("--algo-options") + 1] = '{"nearest": {"batch_size": 5}}'
    assert status(*given) == 1
    line = capsys.readouterr().err
    assert (
        'nearest-0 has the options {"autoencoder.hidden_dim": 8, "batch_size": 4} and not' in line
    )
    assert "use a label" in line
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--merges", "800"], "its budget.merges is 96 and not 800"),
        (["--algo-options", '{"nearest": {"batch_size": 5}}'], "its config."),
        (["--embedding-dim", "4"], "its embedding_dim is 3 and not 4"),
        (["--device", "cpu:0"], "its device is 'cpu' and not 'cpu:0'"),
        (["--env-kwargs", '{"HTM-Trees-v0": {"heights": [2]}}'], "its env_kwargs"),
    ],
)
def test_another_comparison_in_the_same_folder_is_refused(finished, change, says, capsys):
    before = contents(finished)
    given = arguments("nearest", 96, finished, "--seeds", "1", "--device", "cpu")
    at = given.index(change[0])
    given[at : at + 2] = change
    assert status(*given) == 1
    line = capsys.readouterr().err.strip()
    assert says in line
    assert "choose another --out" in line
    assert len(line.splitlines()) == 1
    assert contents(finished) == before


def test_a_folder_in_use_is_left_alone(finished, capsys):
    with open(finished / ".lock", "w") as lock:  # as a killed comparison leaves it
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert status(*arguments(ALGOS, 96, finished, "--seeds", "2")) == 1
    assert "is in use" in capsys.readouterr().err


def test_tables_of_several_machines_make_one_report(finished, tmp_path, capsys):
    rows = read_results([finished / "results.csv"])
    for seed in (0, 1):
        write_table(tmp_path / f"{seed}.csv", ResultRow, [row for row in rows if row.seed == seed])
    tables = [str(tmp_path / "0.csv"), str(tmp_path / "1.csv")]
    assert main(["compare", "--report", *tables, "--out", str(tmp_path / "both")]) == 0
    assert (tmp_path / "both" / "report.md").read_text() == (finished / "report.md").read_text()
    assert len(read_results([tmp_path / "both" / "results.csv"])) == len(rows)
    # The same table twice says nothing new.
    assert read_results([finished / "results.csv"] * 2) == rows


def test_two_runs_of_one_seed_do_not_go_together(finished, tmp_path):
    rows = read_results([finished / "results.csv"])
    changed = [ResultRow(**vars(row) | {"nmse": 0.5}) for row in rows if row.split == "test"]
    write_table(tmp_path / "other.csv", ResultRow, changed)
    with pytest.raises(ValueError, match="two different runs of flat"):
        read_results([finished / "results.csv", tmp_path / "other.csv"])
    (tmp_path / "other.csv").write_text("env,algo\nx,y\n")
    with pytest.raises(ValueError, match=r"other\.csv line 2 is not a result"):
        read_results([tmp_path / "other.csv"])
    with pytest.raises(FileNotFoundError, match="missing"):
        read_results([tmp_path / "missing.csv"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--algos", "nearest,magic"], "unknown algorithm 'magic'"),
        (["--algos", ","], "--algos is ','"),
        (["--algos", "nearest:../other"], "bad label"),
        (["--envs", "HTM-Nothing-v0"], "trees7"),
        (["--envs", "trees7", "--embedding-dim", '{"trees7": 4}'], "arguments of its own"),
        (["--envs", "trees7", "--env-kwargs", '{"HTM-Trees-v0": {}}'], "expected one of --envs"),
        (["--algos", "nearest", "--algo-options", '{"chain": {}}'], "expected one of --algos"),
        (["--algos", "nearest", "--algo-options", '{"nearest": {"policy": "ward"}}'], "decides"),
        (["--algo-options", "[]"], "not a JSON object"),
        (["--algo-options", '{"reinforce": 3}'], "of reinforce are 3; expected an object"),
        (["--algo-options", '{"ppo": {"speed": 3}}'], "PPOConfig has no field 'speed'"),
        (["--algo-options", '{"ppo": {"policy": {"speed": 3}}}'], "has no field 'speed'"),
        (["--algo-options", '{"ppo": {"policy": 3}}'], "policy is 3; expected an object with"),
        (["--algo-options", '{"ppo": {"n_envs": 0}}'], "n_envs is 0; expected at least 1"),
        (["--algo-options", '{"ppo": {"n_envs": "x"}}'], 'is "x"; expected a whole number'),
        (["--algo-options", '{"ppo": {"n_envs": null}}'], "is null; expected a whole number"),
        (["--algo-options", '{"replay": {"scale_advantages": 1}}'], "expected true or false"),
        (["--algo-options", '{"replay": {"entropy": {"target": [[0]]}}}'], "a list of lists or"),
        (["--algo-options", '{"replay": {"encoder": "lstm"}}'], "unknown encoder 'lstm'"),
        (["--algo-options", '{"ppo": {"encoder": "attention", "context": {"width": 7}}}'], "width"),
        (["--env-kwargs", "{"], "is not JSON"),
        (["--seconds", "1", "--merges", "1"], "two budgets"),
        (["--merges", "0"], "budget is 0"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--device", "cuda:63"], "--device: device 'cuda:63' cannot be used here"),
        (["--mode", "frozen", "--cross-play"], "joint training"),
        (["--engine", "loca"], "unknown engine 'loca' (did you mean 'local'?)"),
        (["--engine", "no_such_module:Mine"], "there is no module 'no_such_module'"),
        (["--engine", "folder", "--engine-options", '{"speed": 3}'], "has no field 'speed'"),
        (["--address", "auto"], "the options of the engine local: NoOptions has no field"),
    ],
)
def test_wrong_usage_exits_2_and_writes_nothing(given, says, capsys, tmp_path):
    assert says in refusal(capsys, "compare", *given, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_needs_a_folder_that_no_comparison_has(finished, tmp_path, monkeypatch, capsys):
    before = contents(finished)
    monkeypatch.chdir(tmp_path)
    given = ["compare", "--report", str(finished)]
    for more, says in (
        ([], "--report needs --out"),
        (["--out", str(finished)], "holds runs of its own"),
        (["--out", "new", "--seeds", "5", "--algo-options", "{}"], "leave out --seeds, --algo-opt"),
    ):
        assert says in refusal(capsys, *given, *more)
    assert contents(finished) == before
    assert not list(tmp_path.iterdir())
    assert CompareOptions().folder == Path("runs/compare")


def test_an_algorithm_can_stand_there_twice_under_a_label(tmp_path):
    given = CompareOptions(
        algos="replay,replay:control",
        envs="trees7",
        seeds=1,
        out=tmp_path,
        algo_options='{"replay:control": {"max_staleness": 0}}',
    )
    runs, _ = plan_runs(given)
    assert [run.config.algo for run in runs] == ["replay", "replay:control"]
    assert [run.config.config["max_staleness"] for run in runs] == [
        ReplayConfig.max_staleness,
        0,
    ]
    assert build_learner(runs[1].config).algo == "replay:control"


def spoil(out: Path) -> Path:
    """A file where the run of ``chain`` wants its folder of figures: the run will fail."""
    obstacle = out / "runs" / "HTM-Trees-v0" / "chain-0" / "figures"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("")
    return obstacle


def test_a_failed_run_is_reported_and_the_rest_goes_on(tmp_path, capsys):
    out = tmp_path / "out"
    obstacle = spoil(out)
    given = arguments("chain,nearest", 48, out, "--seeds", "1")
    assert main(given) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("htm: 1 of the runs failed")
    assert "HTM-Trees-v0/chain-0 (exit status 1" in last
    assert "`nearest`" in (out / "report.md").read_text()
    obstacle.unlink()
    kept = contents(out / "runs" / "HTM-Trees-v0" / "nearest-0")
    assert main(given) == 0
    assert contents(out / "runs" / "HTM-Trees-v0" / "nearest-0") == kept
    assert "`chain`" in (out / "report.md").read_text()


def test_where_all_fail_the_failure_is_said(tmp_path, capsys):
    spoil(tmp_path / "out")
    assert main(arguments("chain", 48, tmp_path / "out", "--seeds", "1")) == 1
    assert "1 of the runs failed" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out" / "report.md").exists()


def test_the_full_comparison_is_made_of_commands_that_exist(tmp_path):
    given = commands(tmp_path, 0.1, 2, 5, first_seed=3)
    parsed = [parse(one) for one in given]
    assert [options.seconds for options in parsed] == [30, 30, 60, 30, 30, 1, None, None]
    for options in parsed[:-2]:
        assert set(options.algos.split(",")) <= set(ALGORITHMS)
        assert (options.first_seed, options.seeds) == (3, 5)
    assert parsed[-2].report == tuple(options.out for options in parsed[:4])
    assert parsed[-1].report == tuple(options.out for options in parsed[4:6])


def test_every_encoder_is_a_row_of_each_algorithm_with_a_policy(tmp_path):
    given = [
        "compare",
        "--envs",
        "trees7",
        "--algos",
        "reinforce,ppo:wide,nearest",
        "--seeds",
        "1",
        "--merges",
        "100",
        "--out",
        str(tmp_path),
        "--encoders",
        "none,attention",
        "--algo-options",
        '{"reinforce:attention": {"context": {"width": 8}}}',
    ]
    runs, _ = plan_runs(parse(given))
    found = {run.algo: run.config.config.get("encoder") for run in runs}
    assert found == {
        "reinforce": "none",
        "reinforce:attention": "attention",
        "ppo:wide": "none",
        "ppo:wide-attention": "attention",
        "nearest": None,
    }
    widths = {run.algo: run.config.config["context"]["width"] for run in runs[:2]}
    assert widths == {"reinforce": 64, "reinforce:attention": 8}
    assert status(*given[:-2], "--encoders", "lstm") == 2


def test_the_encoder_is_a_column(tmp_path, monkeypatch):
    given = arguments("reinforce", 30, tmp_path / "out", "--seeds", "1", "--encoders", "attention")
    given[given.index("--algo-options") + 1] = json.dumps({"reinforce:attention": SMALL})
    assert main(given) == 0
    rows = read_results([tmp_path / "out" / "results.csv"])
    assert {(row.algo, row.encoder) for row in rows} == {("reinforce:attention", "attention")}


def test_structure_is_left_out_where_there_is_none(tmp_path, capsys):
    given = [
        "compare",
        "--envs",
        "digits",
        "--algos",
        "structure,spans:label,nearest",
        "--seeds",
        "1",
        "--merges",
        "100",
        "--out",
        str(tmp_path / "out"),
        "--algo-options",
        '{"nearest": {"autoencoder": {"hidden_dim": 4}, "batch_size": 4}}',
    ]
    assert main(given) == 0
    told = capsys.readouterr().err
    assert "digits has no hierarchy for structure to follow" in told
    assert "digits has no hierarchy for spans:label to follow" in told
    assert {row.algo for row in read_results([tmp_path / "out" / "results.csv"])} == {"nearest"}


def test_named_problems_are_known_by_what_they_are():
    assert find_problem("trees7") is PROBLEMS["trees7"]
    known = Task("HTM-Trees-v0", '{"heights": [3]}', 6, "joint")
    assert task_name(known) == ("trees7", "Trees, 7 tokens, D=6")
    name, title = task_name(known._replace(env_kwargs='{"heights": [2, 3]}'))
    assert name == "HTM-Trees-v0-heights-2-3-6"
    assert title == 'HTM-Trees-v0 {"heights": [2, 3]}, D=6'
    assert find_problem("htm_env:HTM-Digits-v0").embedding_dim == 32
    for name in CompareOptions().envs.split(","):
        assert name in PROBLEMS


# ---------------------------------------------------------------- processes of their own


def process_of(folder: Path) -> int:
    """The process that trains in a folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it has just ended
            if str(folder).encode() in words:
                return int(entry.name)
    raise AssertionError(f"no process trains in {folder}")


def kill_every_attempt(folder: Path) -> None:
    """Kill the process that trains in a folder, and those that go on in its place."""
    killed: set[int] = set()
    while len(killed) <= RETRIES:
        with suppress(AssertionError):  # the next one has not begun yet
            number = process_of(folder)
            if number not in killed:
                os.kill(number, signal.SIGKILL)
                killed.add(number)
        time.sleep(0.02)


class Saboteur(threading.Thread):
    """Does something once a run's table has so many rows."""

    def __init__(self, folder: Path, rows: int, act) -> None:
        super().__init__(daemon=True)
        self.folder, self.rows, self.act, self.acted = folder, rows, act, False

    def run(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if len(metrics_points(self.folder / "metrics.csv", ("progress",))) >= self.rows:
                self.acted = True
                self.act()
                return
            time.sleep(0.02)


@pytest.mark.slow
def test_killed_and_interrupted_it_continues_where_it_was(tmp_path, capfd, own_processes):
    out = tmp_path / "out"
    options = {"chain": {"autoencoder": {"hidden_dim": 8}, "batch_size": 2}}
    given = [
        "compare",
        "--envs",
        "trees7",
        "--algos",
        "chain",
        "--seeds",
        "1",
        "--merges",
        "4200",
        "--out",
        str(out),
        "--algo-options",
        json.dumps(options),
    ]
    chain = out / "runs" / "trees7" / "chain-0"

    saboteur = Saboteur(chain, 25, lambda: kill_every_attempt(chain))
    saboteur.start()
    assert main(given) == 1
    assert saboteur.acted
    error = capfd.readouterr().err
    assert "trees7/chain-0 (killed by SIGKILL)" in error.strip().splitlines()[-1]
    assert read_results([out / "results.csv"])[-1].split == "validation"  # as far as it came

    saboteur = Saboteur(chain, 60, lambda: os.kill(os.getpid(), signal.SIGTERM))
    saboteur.start()
    assert main(given) == 143
    assert saboteur.acted
    assert "interrupted, continue with the same command" in capfd.readouterr().err
    assert not (chain / "result.json").exists()
    rows = (chain / "metrics.csv").read_text()
    with pytest.raises(AssertionError, match="no process trains"):
        process_of(chain)

    assert main(given) == 0
    assert (chain / "metrics.csv").read_text().startswith(rows)  # it went on from its checkpoint
    assert json.loads((chain / "result.json").read_text())["merges"] == 4200
