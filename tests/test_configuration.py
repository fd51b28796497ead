"""Configurations: bounds, files, and flags that win over files."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_cli import only_line, status

from agents import FixedOrder, load
from agents.cli.options import TrainOptions
from agents.cli.train import requested
from agents.comparison.options import CompareOptions, options_from_file
from agents.config.budget import Budget
from agents.config.dataclasses_json import check_bounds, config_from_dict, flattened, nested
from agents.config.errors import UsageError
from agents.config.run import RunConfig
from agents.registry import ALGORITHMS, build_learner

RUN = """
env = "HTM-Trees-v0"
algo = "chain"
seed = 3
env_kwargs = {heights = [2]}
budget = {merges = 40}
[config]
batch_size = 4
autoencoder = {hidden_dim = 8}
"""


@dataclass(frozen=True)
class Config:
    count: int = 3
    rate: float = 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count is 0; expected at least 1"),
        ({"count": 0.5}, "count is 0.5; expected a whole number"),
        ({"count": math.inf}, "count is inf; expected a whole number"),
        ({"rate": 1.5}, "rate is 1.5; expected at least 0 and at most 1"),
        ({"rate": math.nan}, "rate is nan"),
        ({"rate": "x"}, "rate is x"),
    ],
)
def test_numbers_out_of_bounds_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        check_bounds(Config(**changes), count=(1, math.inf), rate=(0, 1))


def test_the_bounds_themselves_are_allowed():
    check_bounds(Config(1, 1), count=(1, 5), rate=(0, 1))
    check_bounds(Config(5, 0.0), count=(1, 5), rate=(0, 1))


# ---------------------------------------------------------------- what a file holds


def test_nested_values_and_dotted_names_are_the_same():
    values = {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
    assert flattened(values) == {"a": 1, "b.c": 2, "b.d.e": 3}
    assert nested(flattened(values)) == values


def test_a_run_is_what_its_configuration_says(tmp_path):
    run = RunConfig(
        "HTM-Trees-v0", {"heights": [2]}, 4, seed=5, algo="chain", config={"batch_size": 4}
    )
    learner = build_learner(run)
    again = learner.run_config(Budget(merges=7))
    assert (again.env, again.env_kwargs, again.algo) == (run.env, run.env_kwargs, run.algo)
    assert (again.embedding_dim, again.seed, again.budget) == (4, 5, Budget(merges=7))
    assert again.config["batch_size"] == 4
    written = json.loads(json.dumps(again.as_dict()))
    assert build_learner(config_from_dict(RunConfig, written)).config == learner.config


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_is_of_a_class_that_loads_it(algo):
    learner = ALGORITHMS[algo].learner
    assert algo in (learner.algorithms or (learner.algo,))
    assert isinstance(ALGORITHMS[algo].config, learner.config_class)


def test_a_file_of_toml_trains_and_flags_win_over_it(tmp_path, capsys):
    file, out = tmp_path / "run.toml", tmp_path / "out"
    file.write_text(RUN)
    flags = ["--seed", "4", "--set", "batch_size=2", "--merges", "24"]
    assert status("train", "--config", file, *flags, "--out", out) == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["seed"], config["env_kwargs"]) == (4, {"heights": [2]})
    assert config["budget"] == {"seconds": None, "merges": 24}
    assert config["config"]["batch_size"] == 2
    assert config["config"]["autoencoder"]["hidden_dim"] == 8
    learner = load(out)
    assert isinstance(learner, FixedOrder)
    assert learner.updates == 24 // (2 * 2)  # two samples an update, two merges each


def test_a_saved_configuration_trains_the_same_run(tmp_path, capsys):
    saved, given = tmp_path / "saved.json", tmp_path / "run.toml"
    given.write_text(RUN)
    assert status("train", "--config", given, "--save-config", saved) == 0
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    for name, file in (("a", given), ("b", saved)):
        assert status("train", "--config", file, "--out", tmp_path / name) == 0
    hashes = [
        json.loads((tmp_path / name / "result.json").read_text())["weights_hash"] for name in "ab"
    ]
    assert hashes[0] == hashes[1]
    # What a run wrote about itself can be given again.
    assert (
        status("train", "--config", tmp_path / "a" / "config.json", "--resume", tmp_path / "a") == 0
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("sed = 3", "RunConfig has no field 'sed'"),
        ('seed = "x"', 'seed is "x"; expected a whole number'),
        ("budget = {merges = 1, seconds = 1}", "two budgets, seconds and merges"),
        ('env_kwargs = "heights"', 'env_kwargs is "heights"; expected an object'),
        ("config = {batch_sice = 4}", "has no field 'batch_sice'"),
        ("config = {policy = 'ward'}", "chain decides policy"),
        ("seed = ", "is not TOML"),
    ],
)
def test_a_wrong_file_is_named_with_its_field(content, says, tmp_path, capsys):
    file = tmp_path / "wrong.toml"
    file.write_text(content)
    assert status("train", "--env", "HTM-Trees-v0", "--algo", "chain", "--config", file) == 2
    line = only_line(capsys.readouterr().err)
    assert str(file) in line
    assert says in line


def test_files_that_are_not_there_or_of_another_kind_are_named(tmp_path):
    for name, says in (("none.toml", "no such file"), ("run.yaml", r"no suffix \.toml or \.json")):
        with pytest.raises(UsageError, match=says):
            requested(TrainOptions(config=tmp_path / name))


@pytest.mark.parametrize("field", ["config", "save_config"])
@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_file_names_no_further_file(command, field, tmp_path, capsys):
    file = tmp_path / "wrong.toml"
    file.write_text(f'{field} = "other.json"')
    given = ["--env", "HTM-Trees-v0", "--algo", "chain"] if command == "train" else []
    assert status(command, *given, "--config", file) == 2
    line = only_line(capsys.readouterr().err)
    assert str(file) in line
    assert f"{field} is" in line or f"'{field}'" in line
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.toml"]


def test_settings_are_json_numbers_or_text():
    options = TrainOptions(
        batch_size=8,
        set=("a.b-c=[1, 2]", "scorer=pair_mlp", "clip=inf", "max_staleness=null", "batch_size=9"),
    )
    assert options.changes == {
        "batch_size": 9,
        "a.b_c": [1, 2],
        "scorer": "pair_mlp",
        "clip": math.inf,
        "max_staleness": None,
    }


def test_a_comparison_can_be_a_file(tmp_path, capsys):
    file, saved = tmp_path / "comparison.toml", tmp_path / "saved.json"
    file.write_text(
        """
        envs = ["HTM-Trees-v0"]
        algos = ["nearest", "chain"]
        merges = 96
        embedding_dim = 3
        env_kwargs = {HTM-Trees-v0 = {heights = [3]}}
        [algo_options.nearest]
        batch_size = 4
        """
    )
    options = options_from_file(file)
    assert (options.envs, options.algos) == ("HTM-Trees-v0", "nearest,chain")
    assert (options.merges, options.embedding_dim, options.seeds) == (96, "3", 3)
    assert json.loads(options.algo_options) == {"nearest": {"batch_size": 4}}
    flags = ["--seconds", "5", "--seeds", "1", "--out", "elsewhere"]
    assert status("compare", "--config", file, *flags, "--save-config", saved) == 0
    changed = options_from_file(saved)
    assert (changed.seconds, changed.merges, changed.seeds) == (5.0, None, 1)
    assert changed.out == Path("elsewhere")
    assert changed.algo_options == options.algo_options
    file.write_text("algo = 'nearest'")
    with pytest.raises(UsageError, match=r"comparison\.toml: CompareOptions has no field 'algo'"):
        options_from_file(file)
    assert options_from_file(saved, with_budget=False).seconds is None
    assert CompareOptions().given == {}


def test_numbers_beyond_64_bits_name_their_option():
    with pytest.raises(UsageError, match=r"--seed is 99999999999999999999; expected .*64 bits"):
        TrainOptions(seed=99999999999999999999)
    with pytest.raises(UsageError, match=r"--threads is 99999999999999999999; expected .*64 bits"):
        TrainOptions(threads=99999999999999999999)


def test_a_setting_that_is_nested_too_deeply_is_a_text():
    deep = "[" * 100_000
    assert TrainOptions(set=(f"x={deep}",)).changes == {"x": deep}
