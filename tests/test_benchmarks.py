"""The throughput benchmarks run in tiny settings, and their rows say what was asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_autoencoder
from episodes import random_policy

from agents import Reinforce
from agents.cli import main as htm
from benchmarks import (
    against_reference,
    candidates,
    environment,
    joint_training,
    limit,
    lit_pixels,
    matrix_products,
    measuring,
    neighbour_lists,
    running,
    scaling,
    shards,
    time_to_error,
)
from benchmarks.__main__ import main as bench_main
from benchmarks.table import origin, report
from htm_env.datasets import make_dataset
from htm_env.forest import action_mask

TREES7 = {"env": "HTM-Trees-v0", "geometry": {"heights": (3,)}, "trees": 4, "target": 5}
SEVEN = joint_training.SIZES[0]


def at_once(measure, *arguments):
    """In place of a process of its own, which takes seconds to start."""
    return measure(*arguments)


@pytest.mark.slow
def test_ours_is_compared_with_the_plain_reference():
    rows = against_reference.rows_of(TREES7, seconds=0.0, run=at_once)
    assert [row["algo"] for row in rows] == ["plain reference", *against_reference.CONFIGS]
    assert [row["target"] for row in rows] == [None, 5, None, None]
    for row in rows:
        assert (row["tokens"], row["trees a step"]) == (7, 4)
        assert row["times the reference"] * rows[0]["merges/s"] == pytest.approx(row["merges/s"])


def test_the_ratio_to_the_reference_is_that_of_speeds_or_of_times():
    """Among rows with as many tokens; of 31 there is no reference."""
    rows = [
        {"way": "ours", "tokens": 7, "steps/s": 30.0, "seconds": 2.0},
        {"way": "the plain reference", "tokens": 7, "steps/s": 10.0, "seconds": 8.0},
        {"way": "ours", "tokens": 31, "steps/s": 3.0, "seconds": 9.0},
    ]
    for column, ratio in (("steps/s", 3.0), ("seconds", 4.0)):
        measuring.add_ratios(rows, "way", lambda row: row["tokens"], column)
        assert [row["times the reference"] for row in rows] == [ratio, 1.0, None]


@pytest.mark.slow  # what an optimizer imports takes seconds
@pytest.mark.parametrize("algo", against_reference.CONFIGS)
def test_an_update_of_ours_makes_as_many_merges_as_a_step_of_the_reference(algo):
    learner = against_reference.learner(TREES7, algo)
    learner.update(0.5)
    assert learner.merges_made == 4 * 6


# ---------------------------------------------------------------- scaling


def test_exponents_are_slopes_over_their_range():
    """Time grows as the square within the range and otherwise outside it; memory as the tokens."""
    name = "knn, matching rounds"
    rows = [
        {"way": name, "tokens": tokens, "seconds": tokens**2.0, "memory, GB": tokens / 1024}
        for tokens in (256, 512, 1024, 2048)
    ]
    rows.append({"way": name, "tokens": 4096, "seconds": 1.0, "memory, GB": 4.0})
    time, memory = scaling.exponents(rows)
    assert time["exponent"] == pytest.approx(2.0)
    assert (time["from"], time["to"], time["target, at most"]) == (256, 2048, 1.3)
    assert memory["exponent"] == pytest.approx(1.0)
    assert (memory["from"], memory["to"], memory["target, at most"]) == (1024, 4096, 1.1)


def test_one_row_has_no_exponent():
    rows = [{"way": "training, knn", "tokens": 64, "seconds": 1.0, "memory, GB": 0.0}]
    assert all(row["exponent"] is None for row in scaling.exponents(rows))


@pytest.mark.slow
@pytest.mark.parametrize("name", scaling.WAYS)
def test_every_way_of_merging_is_measured(name):
    peaks = iter((2.0, 3.5))  # before the work and after it
    row = scaling.measure(name, 16, seconds=0.0, peak=lambda device: next(peaks))
    assert (row["way"], row["tokens"], row["limits"]) == (name, 16, "")
    assert row["seconds"] > 0
    assert row["memory, GB"] == 1.5


def test_lists_as_long_as_there_are_others_remember_all_of_them():
    row = neighbour_lists.repairs(neighbour_lists.K + 1, seconds=0.0)
    assert row["true neighbours listed before that"] == 1.0


def test_lists_are_repaired_after_a_merge_and_made_anew_without_the_merged_slot():
    made = []

    def count(work, seconds, device):
        made.append(work())
        return float(len(made))

    row = neighbour_lists.repairs(64, seconds=0.0, timed=count)
    assert list(row.values())[:3] == [64, 1e3, 2e3]
    assert 0.0 < row["true neighbours listed before that"] < 1.0
    repaired, anew = made
    (gone,) = (anew.partners[0] < 0).all(1).nonzero()[:, 0].tolist()  # has no list
    for lists in (repaired, anew):
        assert not (lists.partners == gone).any()
        assert (lists.partners[0, gone] == -1).all()
    assert repaired.fresh[0, 0].any()  # the parent has a list
    assert anew.fresh.sum() == (anew.partners >= 0).sum() == 63 * scaling.K


def test_a_row_of_4096_tokens_says_whether_it_keeps_its_limits():
    limits = [
        scaling.within("knn, matching rounds", 4096, seconds, memory)
        for seconds, memory in ((0.9, 0.9), (1.1, 0.9), (0.9, 1.1))
    ]
    assert [limit.rsplit(maxsplit=1)[1] for limit in limits] == ["kept", "missed", "missed"]


# ---------------------------------------------------------------- the matrix-product limit


def test_the_rows_of_every_network_are_counted():
    """Two samples of three tokens: 6 tokens lifted, 2 merges each, 4 states and 6 leaves back."""
    autoencoder = small_autoencoder(2)
    tokens = torch.randn(2, 3, 2)
    merges = torch.tensor([[[0, 1], [3, 2]]] * 2)
    present = torch.ones(2, 3, dtype=torch.bool)

    def step():
        roots = autoencoder.encode(tokens, present, merges).roots
        autoencoder.decode(roots, merges, present)

    seen = matrix_products.rows_seen(step)
    lifter, *others = autoencoder.children()
    assert [limit.rows_of(seen, network) for network in (lifter, *others)] == [6, 4, 4, 6, 0]
    for network in (lifter, *others[:-1]):
        for layer in network.modules():
            if isinstance(layer, torch.nn.Linear):
                rows = seen[matrix_products.key_of(layer.weight)]
                assert rows.weight_gradients == rows.forward
                first = network is lifter and layer is not lifter.last
                assert rows.input_gradients == (0 if first else rows.forward)
    with torch.no_grad():
        without = matrix_products.rows_seen(step)
    assert without.keys() == seen.keys()
    assert {rows.weight_gradients for rows in without.values()} == {0}


@pytest.mark.parametrize("network", ["pointer", "pair_mlp"])
def test_every_linear_layer_of_a_policy_is_counted(network):
    policy = random_policy(network)
    layers = [layer for layer in policy.modules() if isinstance(layer, torch.nn.Linear)]
    tokens = torch.randn(2, 3, policy.embedding_dim)
    counts = torch.ones(2, 3, dtype=torch.int64)

    def step():
        features = policy.features(tokens, counts)
        policy.scores(features.first, features.second)
        policy.values(features.pooled, torch.ones(2, 1, 3))

    seen = matrix_products.rows_seen(step)
    parameters = sum(layer.weight.numel() for layer in layers)
    assert sum(shape.numel() for _, shape in seen) == parameters
    assert all(rows.forward > 0 for rows in seen.values())


def test_products_are_those_of_the_rows():
    """Of 5 rows, 3 with the weight's gradient and 2 with the input's; and in two parts."""
    made = []
    seen = {(0, torch.Size((6, 4))): matrix_products.Rows(5, 3, 2)}

    class Counting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), kwargs=None):
            if function is torch.Tensor.matmul:
                made.append(tuple(operand.shape for operand in arguments))
            return function(*arguments, **(kwargs or {}))

    with Counting():
        matrix_products.products(seen)()
    assert made == [((5, 4), (4, 6)), ((6, 3), (3, 4)), ((2, 6), (6, 4))]
    with Counting():
        matrix_products.products(seen, most_rows=4)()
    assert made[3:] == 2 * [((2, 4), (4, 6)), ((6, 1), (1, 4)), ((1, 6), (6, 4))]


@pytest.mark.slow
@pytest.mark.parametrize("algo", joint_training.ALGORITHMS)
def test_joint_training_of_every_learner_is_measured(algo):
    cases = [
        among for name, size, among in joint_training.cases(31) if (name, size.tokens) == (algo, 31)
    ]
    assert cases == (["all"] if algo == "nearest" else ["all", "knn"])
    for among in cases:
        row = joint_training.measure(algo, SEVEN._replace(trees=16), among, seconds=0.0)
        assert (row["algo"], row["tokens"], row["candidates"]) == (algo, 7, among)
        assert row["share"] == pytest.approx(row["merges/s"] / row["products alone, merges/s"])


def test_the_reference_stands_beside_every_learner_up_to_128_tokens():
    cases = joint_training.cases(512)
    known = [size.tokens for name, size, _ in cases if name == measuring.REFERENCE]
    assert known == [7, 15, 31, 64, 128]
    small = SEVEN._replace(trees=4)
    row = joint_training.measure(measuring.REFERENCE, small, "all", seconds=0.0)
    assert row["merges/s"] > 0
    assert row["share"] is None


@pytest.mark.parametrize("algo", joint_training.ALGORITHMS)
def test_the_merger_learns_from_every_merge(algo):
    """Of replay in the fresh update of a round; it also encodes what it does not learn from."""
    learner = joint_training.learner(algo, SEVEN._replace(trees=16), "all")
    seen = matrix_products.rows_seen(lambda: learner.update(0.5))
    weight = next(learner.autoencoder.merger.parameters())
    rows = seen[matrix_products.key_of(weight)]
    times = 2 if learner.config.autoencoder.loss.cycle else 1  # that loss merges once more
    assert rows.weight_gradients == times * 16 * 6 <= rows.forward


@pytest.mark.parametrize("algo", joint_training.ALGORITHMS)
def test_an_update_makes_as_many_trees_as_the_size_says(algo):
    learner = joint_training.learner(algo, SEVEN._replace(trees=16), "all")
    learner.update(0.5)
    assert learner.merges_made == 16 * 6


# ---------------------------------------------------------------- candidates, and lit pixels


def test_errors_among_candidates_are_compared_by_their_medians():
    errors = {"all": (0.1, 0.3, 0.2), "knn": (0.5, 0.15, 0.22)}
    rows = [{"candidates": way, "held-out nmse": error} for way in errors for error in errors[way]]
    found = candidates.ratio(rows)
    assert (found["median nmse, all"], found["median nmse, knn"]) == (0.2, 0.22)
    assert found["knn / all"] == pytest.approx(1.1)


@pytest.mark.slow
@pytest.mark.parametrize("way", candidates.WAYS)
def test_a_run_among_candidates_is_measured(way):
    row = candidates.measure(way, 2, seed=0, merges=100, split="validation", episodes=4)
    assert (row["candidates"], row["seed"]) == (way, 0)
    assert row["held-out nmse"] > 0


@pytest.fixture(scope="module")
def images():
    return lit_pixels.scaled_digits()


def test_digits_as_large_as_mnists_have_a_hundred_to_two_hundred_points(images, tmp_path):
    assert images.shape == (1726, 28, 28)
    lit_pixels.write_idx(tmp_path / "images", images)
    dataset = make_dataset(
        "HTM-v0", dataset=str(tmp_path / "images"), threshold=lit_pixels.THRESHOLD
    )
    counts = dataset.fixed(10**4).num_tokens
    assert 100 <= int(counts.min()) <= int(counts.max()) <= 200
    x, y = dataset.fixed(1).tokens[0, : int(counts[0])].T
    assert (x.min(), y.min()) >= (4, 4)  # within the frame
    assert max(x.max(), y.max()) < 24


@pytest.mark.slow
def test_training_on_lit_pixels_is_measured(images):
    evaluated = []

    class Noted(Reinforce):
        def evaluate(self, *arguments, **named):
            evaluated.append(super().evaluate(*arguments, **named))
            return evaluated[-1]

    row = lit_pixels.measure(
        images[:40],
        *(0.5, 0, "validation"),
        make=partial(Noted, config=replace(lit_pixels.CONFIG, batch_size=2)),
        peak=lambda device: 1.5 * len(evaluated),
    )
    assert row["peak memory, GB"] == 1.5  # the evaluation included
    assert row["images"] == 40
    assert 100 <= row["tokens, median"] <= row["tokens, most"] <= 200
    assert row["held-out nmse"] > 0


# ---------------------------------------------------------------- time to a given error


class Scripted:
    """A learner whose held-out errors are given, one an evaluation; an update takes a second."""

    device = torch.device("cpu")

    def __init__(self, errors: list[float]) -> None:
        self.errors, self.merges_made, self.seconds, self.task = iter(errors), 0, 0.0, self

    def dataset(self, split: str) -> None:
        assert split == "test"

    def update(self, progress: float) -> None:
        assert progress == pytest.approx(self.seconds / 4)
        self.seconds += 1
        self.merges_made += 10

    def evaluate(self, data: None, count: int, *, sampled: bool) -> dict[str, float]:
        return {"nmse": next(self.errors)}


def test_times_are_the_first_at_which_the_last_error_of_the_published_recipe_is_reached():
    made = {
        "original": Scripted([0.5, 0.3, 0.4, 0.3]),
        "reinforce": Scripted([0.3]),
        "replay": Scripted([0.6, 0.4, 0.31, 0.1]),
        "ppo": Scripted([0.6, 0.5, 0.5, 0.31]),
    }

    def scripted(measure, name, algo, seed, seconds, enough, device):
        assert (measure, name, seed, device) == (time_to_error.measure, "trees7", 0, "cpu")
        clock = lambda: made[algo].seconds  # noqa: E731
        return {"algo": algo, **time_to_error.reach(made[algo], seconds, enough, clock)}

    rows = time_to_error.rows_of("trees7", seed=0, seconds=4.0, run=scripted)
    assert [row["algo"] for row in rows] == list(made)
    assert [row["seconds"] for row in rows] == [2.0, 1.0, 4.0, None]
    assert [row["merges"] for row in rows] == [40, 10, 40, 40]
    assert [row["times as fast"] for row in rows] == [1.0, 2.0, 0.5, None]
    assert [row["to reach"] for row in rows] == [None, 0.3, 0.3, 0.3]


@pytest.mark.slow
def test_shares_are_of_what_is_measured_in_the_same_run():
    rows = {row["what"]: row for row in limit.shares(seconds=0.0, trees=4)}
    fastest = rows["matrix products"]
    assert fastest["share of products"] == 1 == rows["whole networks"]["share of networks"]
    for row in rows.values():
        assert row["share of products"] == pytest.approx(
            fastest["milliseconds"] / row["milliseconds"]
        )
        assert row["merges/s"] * row["milliseconds"] == pytest.approx(4 * 14 * 1e3)


@pytest.mark.slow
def test_joint_steps_are_compared_with_the_autoencoders_part():
    rows = limit.joint_steps(seconds=0.0, trees=4)
    assert [row["trees a step of the autoencoder"] for row in rows] == [4, 32]
    for row in rows:
        assert row["joint step, ms"] > row["autoencoder, ms"] > 0


# ---------------------------------------------------------------- the environment


def test_random_actions_are_legal_and_all_of_them_are_drawn():
    """Three of four slots are active: six ordered pairs."""
    active = np.tile(np.array([True, False, True, True]), (600, 1))
    actions = environment.random_legal(active, np.random.default_rng(0))
    legal = action_mask(torch.from_numpy(active[:1]))[0].nonzero()[:, 0].tolist()
    assert sorted(set(actions.tolist())) == legal
    assert len(legal) == 6


@pytest.mark.parametrize("way", environment.WAYS)
@pytest.mark.parametrize("reward", environment.REWARDS)
def test_every_way_to_have_copies_is_measured(way, reward):
    copies = 1 if way == "single" else 2
    row = environment.measure(way, "7", copies, reward, seconds=0.01)
    assert (row["way"], row["tokens"], row["copies"], row["target"]) == (way, "7", copies, None)
    assert row["steps/s"] > 0


@pytest.mark.parametrize("way", environment.WAYS)
def test_copies_go_from_all_tokens_to_one_and_start_again(way):
    """Seven tokens are merged six times; only behind sb3 does the same step start the next."""
    copies = 1 if way == "single" else 2
    env_id, geometry = environment.GEOMETRIES["7"]
    step = environment.WAYS[way](env_id, copies, autoencoder="untrained", **geometry)
    generator, active = np.random.default_rng(0), step(None)
    counts = [active.sum(1).tolist()]
    for _ in range(7):
        active = step(environment.random_legal(active, generator))
        counts.append(active.sum(1).tolist())
    last = [7, 6] if way == "sb3" else [1, 7]
    assert counts == [[count] * copies for count in (7, 6, 5, 4, 3, 2, *last)]


# ---------------------------------------------------------------- htm bench

HELPERS = {
    "__init__",
    "__main__",
    "glyph_outlines",  # data of a comparison
    "hierarchical_training",  # one training of hierarchical_original
    "matrix_products",
    "measuring",
    "neighbour_lists",  # measured by scaling
    "originals",
    "plain_environment",
    "plain_reference",
    "running",
    "table",
    "wholes",  # data of glom
}


def test_every_benchmark_is_listed(capsys):
    folder = Path(running.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - HELPERS == set(running.BENCHMARKS)
    assert htm(["bench", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[2:].split()[0] for line in lines] == list(running.BENCHMARKS)
    assert [line[2:].split()[0] for line in lines if line[0] == "*"] == list(running.THROUGHPUT)


@pytest.mark.parametrize(
    ("arguments", "modules"),
    [
        (["text", "limit"], ["text", "limit"]),
        ([], list(running.THROUGHPUT)),
        (["--quick"], [name for name in running.THROUGHPUT if name in running.QUICK]),
    ],
)
def test_benchmarks_run_in_processes_of_their_own_and_failures_are_named(
    monkeypatch, capsys, arguments, modules
):
    """Every ``limit`` fails here; the others are run all the same."""
    commands = []

    def pretended(command, check):
        commands.append(command)
        return subprocess.CompletedProcess(command, int("benchmarks.limit" in command))

    monkeypatch.setattr(subprocess, "run", pretended)
    assert htm(["bench", *arguments]) == 1
    assert capsys.readouterr().err == "htm: benchmarks that failed: limit\n"
    assert [command[2] for command in commands] == [f"benchmarks.{name}" for name in modules]
    quick = "--quick" in arguments
    assert [command[3:] for command in commands] == [
        running.QUICK[name] if quick else [] for name in modules
    ]
    assert bench_main(arguments) == 1


def test_an_unknown_benchmark_is_wrong_usage(capsys):
    assert htm(["bench", "speed"]) == 2
    assert "unknown benchmark 'speed'; choose from ['against_reference'," in capsys.readouterr().err
    assert bench_main(["speed"]) == 1


def test_without_the_repository_one_sentence_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "benchmarks", None)  # as where it cannot be found
    assert htm(["bench"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "not part of the installed package" in line


def test_one_file_holds_the_tables_of_a_run_and_no_older_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    running.RESULTS.mkdir(parents=True)
    (running.RESULTS / "older.json").write_text("{}")
    os.utime(running.RESULTS / "older.json", (0, 0))

    def pretended(command, check):
        (running.RESULTS / "limit.json").write_text('{"rows": [1]}')
        (running.RESULTS / "joint_step.json").write_text('{"rows": [2]}')
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", pretended)
    assert htm(["bench", "limit", "--json", str(tmp_path / "all.txt")]) == 0
    tables = json.loads((tmp_path / "all.txt").read_text())
    assert tables == {"joint_step": {"rows": [2]}, "limit": {"rows": [1]}}


def test_a_file_in_no_folder_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", None)
    assert htm(["bench", "limit", "--json", str(tmp_path / "none" / "all.json")]) == 1
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("folder", [["--out", "docs"], ["--out=docs"], ["--folder", "docs"]])
def test_the_command_of_a_table_is_told_without_its_folder(folder):
    made_by = origin("benchmarks.speed", ["--seconds", "5", *folder, "--most", "7"])
    assert made_by["command"] == "python -m benchmarks.speed --seconds 5 --most 7"


def test_a_table_is_printed_and_kept_for_programs_and_for_people(tmp_path, capsys):
    rows = [{"algo": "one", "merges/s": 12345.6, "share": None}, {"algo": "two", "merges/s": 7}]
    rows[1]["share"] = 0.25
    report("speed", rows, tmp_path)
    printed = capsys.readouterr().out
    assert "12,346" in printed and "0.25" in printed
    kept = json.loads((tmp_path / "speed.json").read_text())
    assert kept["rows"] == rows
    title, machine, table = (tmp_path / "speed.md").read_text().strip().split("\n\n")
    assert title == "# speed"
    assert f"torch: {torch.__version__}" in machine and "device: cpu" in machine
    assert table.splitlines() == [
        "| algo | merges/s | share |",
        "| --- | ---: | ---: |",
        "| one | 12,346 |  |",
        "| two | 7 | 0.25 |",
    ]


def test_rows_are_shown_as_soon_as_they_are_there(capsys):
    seen = []

    def measure(name, number):
        seen.append(capsys.readouterr().err)
        return {"way": name, "steps/s": number}

    rows = measuring.one_by_one([("one", 1234.5), ("two", None)], measure)
    assert rows == [{"way": "one", "steps/s": 1234.5}, {"way": "two", "steps/s": None}]
    assert seen == ["", "[1/2]  way one  steps/s 1,234\n"]
    assert capsys.readouterr().err == "[2/2]  way two  steps/s \n"


def test_a_row_whose_process_is_killed_is_an_error_and_no_endless_wait():
    with pytest.raises(BrokenProcessPool):
        measuring.own_process(os._exit, 9)


@pytest.mark.slow
def test_training_on_shards_is_measured_beside_the_array(tmp_path):
    options = ["--tokens", "3000", "--of-shard", "1000", "--seconds", "0.1", "--turn", "0.1"]
    shards.main([*options, "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "shards.json").read_text())["rows"]
    array, in_shards, first = rows
    assert array["merges per second, times the array"] == 1.0
    assert in_shards["merges"] > 0 and in_shards["GB resident at most"] > 0
    assert first["merges"] is None
    assert 3000 / 20 <= array["sets"] <= 3000 / 12 + 3
