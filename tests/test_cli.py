"""The command: what it says, what it writes, and its exit status."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict

import gymnasium as gym
import numpy as np
import pytest
from commands import status
from dummy_learner import DummyConfig, DummyLearner

from agents import registry as algorithms
from agents.config.dataclasses_json import flattened
from agents.fixed import FIXED_POLICIES
from agents.learners.fixed_order import FixedOrder
from agents.learners.replay import ReplayConfig
from agents.registry import ALGORITHMS, Algorithm, load_learner
from htm_env import HTMAutoencoder

TINY = [
    "--env",
    "HTM-Trees-v0",
    "--env-kwargs",
    '{"heights": [2]}',
    "--batch-size",
    "4",
    "--set",
    "autoencoder.hidden_dim=8",
]
"""Samples of three tokens: two merges each, eight an update."""


def only_line(captured: str) -> str:
    lines = captured.strip().splitlines()
    assert len(lines) == 1, captured
    return lines[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run of five updates."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert status("train", *TINY, "--algo", "nearest", "--merges", "40", "--out", folder) == 0
    return folder


def test_every_algorithm_of_the_contract_is_there():
    learned = {"reinforce", "rloo", "replay", "ppo", "maskable_ppo", "original", "original_policy"}
    names = {*learned, *FIXED_POLICIES, "flat", "glom", "retrained"}
    assert set(ALGORITHMS) == names


def test_a_run_writes_what_it_promises(run):
    result = json.loads((run / "result.json").read_text())
    assert list(result)[:8] == [
        "env",
        "env_kwargs",
        "algo",
        "seed",
        "seconds",
        "merges",
        "updates",
        "test",
    ]
    assert (result["env"], result["algo"], result["seed"]) == ("HTM-Trees-v0", "nearest", 0)
    assert (result["merges"], result["updates"]) == (40, 5)
    assert set(result["test"]) == {
        "nmse",
        "sampled_nmse",
        "tree_recall",
        "tree_f1",
        "mean_height",
        "tree_precision",
        "tree_exact_f1",
        "tree_robinson_foulds",
        "classifier_leaf_encoder",
        "classifier_internal_encoder",
        "classifier_leaf_decoder",
        "classifier_internal_decoder",
    }
    assert result["test"]["mean_height"] == 2.0  # three tokens
    assert result["embedding_dim"] == 8
    assert result["mode"] == "joint"
    config = json.loads((run / "config.json").read_text())
    assert config["budget"] == {"seconds": None, "merges": 40}
    assert config["config"]["batch_size"] == 4
    assert config["config"]["autoencoder"]["hidden_dim"] == 8
    assert len((run / "metrics.csv").read_text().splitlines()) == 1 + 5
    assert (run / "figures" / "validation.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    names = {path.name for path in (run / "checkpoint").iterdir()}
    assert names == {"training.safetensors", "autoencoder.safetensors"}


def test_the_saved_autoencoder_works_in_the_environment(run):
    path = run / "checkpoint" / "autoencoder.safetensors"
    env = gym.make("HTM-Trees-v0", heights=(2,), autoencoder=str(path))
    hash_ = json.loads((run / "result.json").read_text())["weights_hash"]
    assert env.unwrapped.autoencoder.weights_hash() == hash_


def test_training_ends_with_scores_and_paths(tmp_path, capsys):
    out = tmp_path / "run"
    assert status("train", *TINY, "--algo", "chain", "--merges", "16", "--out", out) == 0
    printed = capsys.readouterr().out
    for expected in ("nmse", "mean_height", f"tensorboard --logdir {out}", "validation.png"):
        assert expected in printed


def test_evaluate_repeats_the_result_of_the_run(run, capsys):
    assert status("evaluate", run, "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    result = json.loads((run / "result.json").read_text())
    for name, value in result["test"].items():
        assert scores[name] == value
    assert scores["weights_hash"] == result["weights_hash"]
    assert scores["episodes"] == 1000
    assert scores["random_merges"]["mean_height"] == 2.0  # three tokens
    assert scores["own_hierarchy"]["tree_recall"] is None  # and no clade among them


def test_evaluate_can_merge_in_rounds(run, tmp_path, capsys):
    learned = tmp_path / "learned"
    options = ("--algo", "reinforce", "--candidates", "knn", "--k", "3", "--merges", "40")
    seven = ("--env-kwargs", '{"heights": [3]}')
    assert status("train", *TINY, *options, "--out", learned) == 0
    capsys.readouterr()
    scores = {}
    for rounds in ((), ("--merge-rounds",)):
        assert status("evaluate", learned, "--json", "--episodes", "20", *seven, *rounds) == 0
        scores[bool(rounds)] = json.loads(capsys.readouterr().out)
        assert scores[bool(rounds)]["merge_rounds"] == bool(rounds)
    assert scores[True]["sampled_nmse"] == scores[False]["sampled_nmse"]
    assert scores[True]["nmse"] != scores[False]["nmse"]
    assert status("evaluate", run, "--merge-rounds") == 1
    assert "nearest has no policy network" in capsys.readouterr().err


def test_evaluate_takes_other_data_and_prints_a_table(run, capsys):
    arguments = ["--env-kwargs", '{"heights": [3]}', "--episodes", "50"]
    assert status("evaluate", run, *arguments) == 0
    table = capsys.readouterr().out
    weights_hash = json.loads((run / "result.json").read_text())["weights_hash"]
    assert weights_hash in table
    assert "sampled_nmse" in table and "random merges" in table and "own hierarchy" in table
    rows = [line.strip("│").split("│") for line in table.splitlines() if line.startswith("│")]
    cells = {name.strip(): [cell.strip() for cell in others] for name, *others in rows}
    assert all(map(all, cells.values()))  # no cell is empty
    assert len(cells["tree_recall"]) == 3 and len(cells["nmse"]) == 1
    assert status("evaluate", run, *arguments, "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["env_kwargs"] == {"heights": [3]}
    assert 3.0 <= scores["mean_height"] <= 6.0  # seven tokens: from balanced to a chain


def test_own_data_through_env_kwargs(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", tokens=rng.normal(size=(30, 4, 3)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    arguments = [
        "--env",
        "HTM-v0",
        "--env-kwargs",
        '{"dataset": "mine.npz"}',
        "--merges",
        "60",
        "--batch-size",
        "4",
        "--set",
        "autoencoder.hidden_dim=8",
    ]
    assert status("train", *arguments, "--algo", "chain", "--out", "run") == 0
    monkeypatch.chdir("/")  # the run knows where its data is
    capsys.readouterr()
    assert status("evaluate", tmp_path / "run", "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["episodes"] == 3
    assert scores["tree_recall"] is None
    assert scores["mean_height"] == 3.0
    assert status("evaluate", tmp_path / "run") == 0
    table = capsys.readouterr().out
    assert "tree_recall" not in table and table.count("random merges") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--algo", "chain"], "--env"),
        (["train", "--env", "HTM-Trees-v0"], "--algo"),
        (["train", "--env", "HTM-Nothing-v0", "--algo", "chain"], "HTM-Trees-v0"),
        (["train", "--env", "HTM-Trees-v0", "--algo", "nothing"], "structure_canonical"),
        (["train", *TINY, "--algo", "chain", "--env-kwargs", "{"], "JSON"),
        (["train", *TINY, "--algo", "chain", "--env-kwargs", "[1]"], "JSON object"),
        (["train", *TINY, "--algo", "chain", "--seconds", "1", "--merges", "1"], "two budgets"),
        (["train", *TINY, "--algo", "chain", "--merges", "-1"], "-1"),
        (["train", *TINY, "--algo", "chain", "--set", "policy=ward"], "decides policy"),
        (["train", "--env", "HTM-Trees-v0", "--algo", "chain", "--no-such-flag"], "no-such-flag"),
        (["train", *TINY, "--algo", "chain", "--mode", "both"], "both"),
        (["train", *TINY, "--algo", "chain", "--embedding-dim", "0"], "embedding_dim is 0"),
        (["train", *TINY, "--algo", "chain", "--device", "abacus"], "device 'abacus' cannot be"),
        (["train", *TINY, "--algo", "reinforce", "--baseline", "foo"], "leave_one_out"),
        (["train", *TINY, "--algo", "reinforce", "--discount", "2"], "discount is 2.0"),
        (["train", *TINY, "--algo", "reinforce", "--policy-hidden-dim", "0"], "policy_hidden_dim"),
        (
            ["train", *TINY, "--algo", "chain", "--set", "autoencoder.noise_std=nan"],
            "noise_std is nan",
        ),
        (
            [
                "train",
                *TINY,
                "--algo",
                "reinforce",
                "--set",
                "demonstration_share=[[0.5, 1], [0.1, 0]]",
            ],
            "demonstration_share is ((0.5, 1.0), (0.1, 0.0))",
        ),
        (["train", *TINY, "--algo", "reinforce", "--set", "entropy.target=[[0, 7]]"], "target is"),
        (
            ["train", *TINY, "--algo", "chain", "--set", "autoencoder.loss.cycle=-1"],
            "cycle is -1.0",
        ),
        (
            [
                "train",
                "--env",
                "HTM-Digits-v0",
                "--algo",
                "reinforce",
                "--merges",
                "9",
                "--demonstrations",
                "structure",
            ],
            "hierarchy",
        ),
        (["train", *TINY, "--algo", "ppo", "--n-envs", "0"], "n_envs is 0"),
        (
            ["train", *TINY, "--algo", "maskable_ppo", "--set", "clip-range=-1"],
            "clip_range is -1.0",
        ),
        (["train", *TINY[:4], "--algo", "flat", "--batch-size", "0"], "batch_size is 0"),
        (["train", *TINY, "--algo", "replay", "--set", "lambda_=2"], "lambda_ is 2.0"),
        (["train", *TINY, "--algo", "replay", "--set", "rho_bar=0"], "rho_bar is 0.0"),
        (["evaluate", "nowhere", "--episodes", "0"], "--episodes is 0"),
        (["nothing"], "nothing"),
        ([], "train"),
        (["pretrain", "--env", "HTM-v0"], "HTM-Digits-v0"),
        (["pretrain", "--env", "HTM-Digits-v0", "--merges", "0"], "budget is 0 merges"),
        (["train", *TINY, "--algo", "chain", "--env-kwargs", '{"wings": 2}'], "wings"),
        (["train", *TINY, "--algo", "chain", "--env-kwargs", '{"split": "test"}'], "'split'"),
        (["train", "--env", "HTM-v0", "--algo", "chain"], "dataset="),
        (["compare", "--envs", "HTM-v0"], "dataset="),
        (
            ["compare", "--envs", "HTM-Trees-v0", "--env-kwargs", '{"HTM-Trees-v0": {"wings": 2}}'],
            "wings",
        ),
        (["train", *TINY, "--algo", "chain", "--threads", "0"], "--threads is 0"),
        (["evaluate", "nowhere", "--threads", "-1"], "--threads is -1"),
        *(
            (
                [
                    "train",
                    *TINY,
                    "--algo",
                    "reinforce",
                    f"--{name.replace('_', '-')}",
                    "4000000000",
                ],
                f"{name} is 4000000000; expected at least 1 and at most 1048576",
            )
            for name in ("policy_hidden_dim", "trees_per_sample", "batch_size")
        ),
        (
            ["train", *TINY, "--algo", "reinforce", "--candidates", "knn", "--k", "70000"],
            "k is 70000: expected a whole number from 1 to 65536",
        ),
        (["train", *TINY, "--algo", "chain", "--seed", "-1"], "--seed is -1; expected at least 0"),
        (
            ["train", *TINY, "--algo", "chain", "--device", "meta"],
            "device 'meta' cannot be used here: its tensors hold no numbers",
        ),
    ],
)
def test_wrong_usage_exits_2(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status(*arguments) == 2
    captured = capsys.readouterr()
    assert says in captured.err + captured.out
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            [
                "train",
                "--env",
                "HTM-v0",
                "--algo",
                "chain",
                "--env-kwargs",
                '{"dataset": "missing.npz"}',
            ],
            "missing.npz",
        ),
        (["train", "--env", "HTM-Digits-v0", "--algo", "structure"], "hierarchy"),
        (["evaluate", "nowhere"], "nowhere holds no run"),
    ],
)
def test_failures_exit_1_with_one_line_and_nothing_written(
    arguments, says, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert status(*arguments) == 1
    assert says in only_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_evaluating_on_data_that_cannot_be_is_wrong_usage(run, capsys):
    assert status("evaluate", run, "--env-kwargs", '{"height": [3]}') == 2
    assert "no keyword 'height'" in only_line(capsys.readouterr().err)


def test_errors_advise_the_help_of_their_command(capsys):
    assert status("train", "--no-such-flag") == 2
    assert "htm train --algo NAME --help-all" in only_line(capsys.readouterr().err)


def test_a_folder_with_a_run_is_not_overwritten(run, capsys):
    before = (run / "result.json").read_bytes()
    assert status("train", *TINY, "--algo", "chain", "--merges", "40", "--out", run) == 1
    assert "--resume" in only_line(capsys.readouterr().err)
    assert (run / "result.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--merges", "80"], "keeps the budget of 40 merges"),
        (["--seed", "1"], "seed is 1, but was 0"),
        (["--env-kwargs", '{"heights": [3]}'], "env_kwargs is"),
        (["--batch-size", "8"], "batch_size is 8, but was 4"),
        (["--out", "elsewhere"], "elsewhere"),
    ],
)
def test_a_resumed_run_keeps_its_settings(run, change, says, capsys):
    assert status("train", "--resume", run, *change) == 2
    assert says in only_line(capsys.readouterr().err)


def test_the_way_to_a_larger_budget_is_told(run, tmp_path, capsys):
    for budget in (["--seconds", "7"], ["--merges", "80"]):
        assert status("train", "--resume", run, *budget) == 2
        way = only_line(capsys.readouterr().err).rsplit("htm ", 1)[1]
        assert " ".join(budget) in way
    new = tmp_path / "new"
    assert status(*[str(new) if word == "NEW" else word for word in way.split()]) == 0
    before, after = (json.loads((each / "result.json").read_text()) for each in (run, new))
    assert after["merges"] >= 80 > before["merges"]
    assert after["algo"] == before["algo"]


def test_resuming_a_finished_run_with_all_its_settings_changes_nothing(run):
    def course() -> dict:
        result = json.loads((run / "result.json").read_text())
        clock = ("seconds", "spent", "digest")
        return {name: value for name, value in result.items() if name not in clock}

    before, rows = course(), (run / "metrics.csv").read_text()
    arguments = [*TINY, "--algo", "nearest", "--merges", "40", "--resume", run, "--out", run]
    assert status("train", *arguments) == 0
    assert course() == before
    assert (run / "metrics.csv").read_text() == rows


def test_resuming_nothing_starts_where_the_rest_is_said(tmp_path, capsys):
    assert status("train", "--resume", tmp_path / "new") == 2
    assert "holds no run" in only_line(capsys.readouterr().err)
    arguments = [*TINY, "--algo", "chain", "--merges", "16", "--resume", tmp_path / "new"]
    assert status("train", *arguments) == 0
    assert (tmp_path / "new" / "result.json").exists()


def test_training_that_does_not_stay_finite_exits_1_and_keeps_the_checkpoint(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(ALGORITHMS, "dummy", Algorithm(DummyLearner, DummyConfig()))
    out = tmp_path / "run"
    arguments = [
        "--env",
        "HTM-Trees-v0",
        "--env-kwargs",
        '{"heights": [2]}',
        "--algo",
        "dummy",
        "--merges",
        "400",
        "--set",
        "fail_at=25",
        "--out",
        out,
    ]
    assert status("train", *arguments) == 1
    line = capsys.readouterr().err.splitlines()[-1]  # a slow machine shows its progress before it
    assert "not finite" in line
    assert str(out / "checkpoint") in line
    learner = load_learner(out)
    assert learner.updates == 24  # 40 updates, a checkpoint at every second one
    assert not (out / "result.json").exists()


def test_a_defect_is_one_line_too(monkeypatch, capsys, tmp_path):
    class Defective(DummyLearner):
        def update(self, progress):
            return 1 / 0

    monkeypatch.setitem(ALGORITHMS, "dummy", Algorithm(Defective, DummyConfig()))
    arguments = ["--env", "HTM-Trees-v0", "--env-kwargs", '{"heights": [2]}', "--algo", "dummy"]
    assert status("train", *arguments, "--out", tmp_path / "run") == 1
    assert "ZeroDivisionError" in only_line(capsys.readouterr().err)


def test_damaged_runs_are_named(run, tmp_path, capsys):
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    checkpoint = damaged / "checkpoint" / "training.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert status("evaluate", damaged, "--episodes", 2) == 0
    line = only_line(capsys.readouterr().err)
    assert str(checkpoint) in line
    assert "the checkpoint before it is used" in line
    shutil.rmtree(damaged / "checkpoint.before")
    assert status("evaluate", damaged) == 1
    assert str(checkpoint) in only_line(capsys.readouterr().err)
    (damaged / "config.json").write_text('{"env": ')
    assert status("evaluate", damaged) == 1
    assert "config.json" in only_line(capsys.readouterr().err)
    assert status("train", "--resume", damaged) == 1
    assert "config.json" in only_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            ["train"],
            [
                "--env",
                "--algo",
                "--env-kwargs",
                "--embedding-dim",
                "--mode",
                "--seconds",
                "--merges",
                "--seed",
                "--out",
                "--resume",
                "--threads",
                "--discount",
            ],
        ),
        (["train", "--algo", "chain"], ["--batch-size", "--set"]),
        (["evaluate"], ["--env-kwargs", "--episodes", "--json"]),
        (["pretrain"], ["--env", "--merges", "--out"]),
        (["bench"], ["--list", "--quick"]),
    ],
)
def test_help_lists_every_option_with_what_it_does(command, options, capsys):
    assert status(*command, "--help") == 0
    text = capsys.readouterr().out
    for option in options:
        assert f"{option} " in text
    if command == ["train"]:
        assert "Autoencoder: untrained and learning too" in " ".join(text.split())


def test_help_of_an_algorithm_is_one_screen_and_all_of_it_more(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    shown = {}
    for flag in ("--help", "--help-all"):
        assert status("train", "--algo", "replay", flag) == 0
        shown[flag] = capsys.readouterr().out
    assert len(shown["--help"].splitlines()) <= 40
    assert f"(default: {ReplayConfig.replays})" in shown["--help"]
    assert "--n-envs" not in shown["--help"]  # of ppo
    for path in flattened(asdict(ReplayConfig())):
        assert f" {path} " in shown["--help-all"]
    assert "--policy_hidden_dim" not in shown["--help-all"]
    assert ":func:" not in shown["--help-all"]


def test_save_and_load_from_python_continue_bit_for_bit(tmp_path):
    config = algorithms.algorithm("ward").config
    agent = FixedOrder("HTM-Trees-v0", config, env_kwargs={"heights": (2,)}, embedding_dim=3)
    agent.train(merges=300)
    agent.save(tmp_path / "agent")
    again = FixedOrder.load(tmp_path / "agent")
    assert again.algo == "ward"
    assert again.updates == agent.updates
    for learner in (agent, again):
        learner.train(merges=300)
    assert again.autoencoder.weights_hash() == agent.autoencoder.weights_hash()
    assert again.updates > 2
    with pytest.raises(ValueError, match="ward; expected a DummyLearner"):
        DummyLearner.load(tmp_path / "agent")
    with pytest.raises(FileNotFoundError, match="nothing"):
        FixedOrder.load(tmp_path / "nothing")


def test_an_agent_of_own_arrays_takes_its_data_along(tmp_path, own_data):
    ragged = [sample[: 2 + row % 4] for row, sample in enumerate(own_data)]
    agent = FixedOrder("HTM-v0", env_kwargs={"dataset": ragged}, embedding_dim=3)
    agent.save(tmp_path / "agent")
    (tmp_path / "agent").rename(tmp_path / "moved")
    again = FixedOrder.load(tmp_path / "moved")
    assert again.dataset.fixed(9).tokens.equal(agent.dataset.fixed(9).tokens)


def test_pretrain_writes_weights_that_the_environment_takes(tmp_path, capsys):
    arguments = ["--env", "HTM-Digits-v0", "--merges", "20000", "--out", tmp_path]
    assert status("pretrain", *arguments) == 0
    printed = capsys.readouterr().out
    rules = FIXED_POLICIES.values()
    usable = [rule.name for rule in rules if not rule.needs_hierarchy and rule.need is None]
    assert all(name in printed for name in usable)  # digits have no hierarchy of their own
    autoencoder = HTMAutoencoder.load(tmp_path / "HTM-Digits-v0.safetensors")
    assert autoencoder.embedding_dim == 32
    assert math.isfinite(float(autoencoder.token_std.sum()))
    assert autoencoder.weights_hash() in printed


def test_looking_at_a_run_leaves_what_it_is_writing(run, tmp_path, capsys):
    """Somebody evaluates a run that is training: its next checkpoint is half written."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    half = folder / "checkpoint" / ".training.safetensors.tmp"
    half.write_bytes(b"half")
    assert status("evaluate", folder, "--episodes", 2) == 0
    assert half.read_bytes() == b"half"
