"""``htm tune``: the values that it draws, who goes on to the next rung, and the whole command."""

from __future__ import annotations

import csv
import json
import math
import re
from typing import ClassVar

import numpy as np
import pytest
from commands import refusal
from comparisons import contents, here

from agents.cli import main
from agents.config.budget import Budget
from agents.tuning.samplers import RandomSampler, check_sampler, make_sampler
from agents.tuning.space import Choice, Range, Values, draw, space_from_dict
from agents.tuning.tune import budgets, survivors

RATE = "autoencoder.merger.learning_rate"
SPACE = json.dumps({"batch_size": [2, 4], RATE: {"low": 1e-4, "high": 0.1, "log": True}})


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    here(monkeypatch)


# ---------------------------------------------------------------- spaces


def test_values_lie_in_their_ranges_and_fill_them():
    space = space_from_dict(
        {
            "choice": ["a", [1, 2]],
            "whole": {"low": 2, "high": 4},
            "number": {"low": 0.0, "high": 1.0},
            "log": {"low": 1e-4, "high": 1.0, "log": True},
        }
    )
    generator = np.random.default_rng(0)
    drawn = [draw(space, generator) for _ in range(3000)]
    counts = [sum(one["whole"] == value for one in drawn) for value in (2, 3, 4)]
    assert sum(counts) == 3000
    assert all(850 < count < 1150 for count in counts)  # a third each
    assert {json.dumps(one["choice"]) for one in drawn} == {'"a"', "[1, 2]"}
    numbers = np.array([[one["number"], one["log"]] for one in drawn])
    assert numbers.min() >= 0 and numbers.max() <= 1
    assert abs(np.median(numbers[:, 0]) - 0.5) < 0.05
    assert 0.5e-2 < np.median(numbers[:, 1]) < 2e-2  # the middle of the logarithm


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "it names no option"),
        ({"a": []}, "a is []; expected a list of values, or an object"),
        ({"a": 3}, "a is 3; expected a list"),
        ({"a": {"low": 2, "high": 1}}, "expected low below high"),
        ({"a": {"low": 0, "high": 1, "log": True}}, "expected a number above 0 where log"),
        ({"a": {"low": 0}}, "needs 'high'"),
        ({"a": {"low": "x", "high": 1}}, "low is"),
    ],
)
def test_what_is_no_space_is_refused(given, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        space_from_dict(given)


# ---------------------------------------------------------------- halving


def test_budgets_grow_by_the_factor_up_to_the_whole_one():
    assert budgets(Budget(merges=900), 3, 3) == [
        Budget(merges=100),
        Budget(merges=300),
        Budget(merges=900),
    ]
    assert budgets(Budget(seconds=10.0), 2, 4) == [Budget(seconds=2.5), Budget(seconds=10.0)]
    assert budgets(Budget(merges=5), 1, 3) == [Budget(merges=5)]


def test_the_best_third_goes_on():
    errors = {0: 0.5, 1: 0.1, 2: math.inf, 3: 0.3, 4: 0.1, 5: 0.2, 6: 0.9}
    assert survivors(errors, 3) == [1, 4]
    assert survivors({7: math.inf, 8: 1.0}, 3) == [8]


# ---------------------------------------------------------------- samplers


def test_the_same_seed_draws_the_same_whatever_is_asked_at_a_time():
    space = {"a": Range(0.0, 1.0), "b": Choice((1, 2, 3))}
    whole = RandomSampler(space, 3).ask(6)
    parts = RandomSampler(space, 3)
    assert parts.ask(2) + parts.ask(4) == whole
    assert RandomSampler(space, 4).ask(6) != whole


def test_optuna_learns_where_errors_are_small():
    pytest.importorskip("optuna")
    space = {"x": Range(0.0, 1.0), "whole": Range(1, 3), "kind": Choice(("good", "bad"))}
    sampler = make_sampler("optuna", space, 0)
    assert sampler.learns
    asked = []
    for _ in range(30):
        for values in sampler.ask(2):
            error = abs(values["x"] - 0.2) + (values["kind"] == "bad")
            sampler.tell(values, math.inf if values["x"] > 0.95 else error)
            asked.append(values)
    late = asked[-20:]
    assert sum(abs(one["x"] - 0.2) < 0.2 for one in late) >= 13  # by chance 8
    assert {type(one["whole"]) for one in late} == {int}


class Given:
    """Somebody's own sampler."""

    learns = True
    told: ClassVar[list[float]] = []

    def __init__(self, space, seed):
        self.next = 0

    def ask(self, count):
        return [{"batch_size": 2 + self.next + k} for k in range(count)]

    def tell(self, values, error):
        self.next += 1
        self.told.append(error)


class NoSampler:
    """It takes what samplers take, and has none of their methods."""

    def __init__(self, space, seed):
        pass


def test_unknown_samplers_are_refused():
    with pytest.raises(ValueError, match=r"unknown sampler 'rndom' \(did you mean 'random'\?\)"):
        check_sampler("rndom")
    with pytest.raises(ValueError, match="has no learns, ask and tell"):
        make_sampler(f"{__name__}:NoSampler", {}, 0)


# ---------------------------------------------------------------- the command


def arguments(out, *more: str) -> list[str]:
    return [
        *("tune", "--env", "HTM-Trees-v0", "--env-kwargs", '{"heights": [2]}'),
        *("--embedding-dim", "3", "--algo", "nearest", "--merges", "72", "--space", SPACE),
        *("--algo-options", '{"autoencoder": {"hidden_dim": 8}}', "--out", str(out), *more),
    ]


def table(out) -> list[dict[str, str]]:
    with open(out / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_trials_are_halved_and_the_best_is_a_configuration(tmp_path, capsys):
    out = tmp_path / "out"
    more = ("--trials", "2", "--rungs", "2", "--factor", "2")
    assert main(arguments(out, *more)) == 0
    rows = table(out)
    assert [(row["rung"], row["budget"]) for row in rows] == [
        *[("1", "36 merges")] * 2,
        ("2", "72 merges"),
    ]
    first, second = ([row for row in rows if row["rung"] == rung] for rung in "12")
    ranked = sorted(first, key=lambda row: float(row["error"]))
    assert {row["trial"] for row in second} == {row["trial"] for row in ranked[:1]}
    assert all(row["options"] == first[int(row["trial"])]["options"] for row in second)
    for row in rows:
        folder = out / "runs" / f"rung{row['rung']}" / f"trial{row['trial']}-0"
        result = json.loads((folder / "result.json").read_text())
        assert float(row["error"]) == result["validation"]["nmse"]
    best = json.loads((out / "best.json").read_text())
    winner = json.loads(min(second, key=lambda row: float(row["error"]))["options"])
    assert best["config"]["batch_size"] == winner["batch_size"]
    found = best["config"]["autoencoder"]["merger"]["learning_rate"]
    assert found == winner[RATE]
    assert best["budget"] == {"seconds": None, "merges": 72}
    before = contents(out / "runs")
    assert main(arguments(out, *more)) == 0
    assert contents(out / "runs") == before
    assert table(out) == rows
    again = ["train", "--config", str(out / "best.json"), "--out", str(tmp_path / "again")]
    assert main(again) == 0
    capsys.readouterr()
    assert main(arguments(out, *more, "--sampler-seed", "1")) == 1
    assert "belongs to another search, its config." in capsys.readouterr().err


def test_a_sampler_of_ones_own_hears_of_every_batch(tmp_path):
    more = ("--trials", "2", "--rungs", "1", "--batch", "1", "--seeds", "2", "--device", "cpu:0")
    assert main(arguments(tmp_path / "out", *more, "--sampler", f"{__name__}:Given")) == 0
    rows = table(tmp_path / "out")
    assert [json.loads(row["options"]) for row in rows] == [
        {"batch_size": 2},
        {"batch_size": 3},
    ]
    assert Given.told == [float(row["error"]) for row in rows]
    assert json.loads((tmp_path / "out" / "best.json").read_text())["device"] == "cpu:0"
    runs = tmp_path / "out" / "runs" / "rung1"
    results = [json.loads((runs / f"trial0-{seed}" / "result.json").read_text()) for seed in (0, 1)]
    errors = [result["validation"]["nmse"] for result in results]
    assert float(rows[0]["error"]) == sum(errors) / 2


class Sparing(RandomSampler):
    """Gives a trial less than it is asked for."""

    def ask(self, count: int) -> list[Values]:
        return super().ask(count - 1)


def test_a_sampler_that_gives_too_few_trials_is_named(tmp_path, capsys):
    assert main(arguments(tmp_path / "out", "--sampler", f"{__name__}:Sparing")) == 1
    assert "Sparing' gave the values of 8 trials; expected 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--space", "{"], "is not JSON"),
        (["--space", '{"speed": [1]}'], "the options of nearest: "),
        (["--space", '{"batch_size": 3}'], "--space: batch_size is 3; expected a list"),
        (["--trials", "3", "--rungs", "3"], "need at least 9"),
        (["--rungs", "1000000000"], "need at least"),
        (["--sampler", "rndom"], "--sampler: unknown sampler 'rndom'"),
        (["--engine", "loca"], "--engine: unknown engine 'loca'"),
        (["--seconds", "1"], "two budgets"),
        (["--factor", "1"], "--factor is 1"),
        (["--device", "cuda:63"], "--device: device 'cuda:63' cannot be used here"),
    ],
)
def test_wrong_usage_exits_2_and_writes_nothing(tmp_path, more, says, capsys):
    assert says in refusal(capsys, *arguments(tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()
