"""The throughput benchmarks run in tiny settings, and their rows say what was asked for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_autoencoder

from agents.cli import main as htm
from benchmarks import (
    against_reference,
    environment,
    joint_training,
    limit,
    matrix_products,
    running,
    scaling,
    time_to_error,
)
from benchmarks.__main__ import main as bench_main
from htm_env.forest import action_mask

TREES7 = {"env": "HTM-Trees-v0", "geometry": {"heights": (3,)}, "trees": 4, "target": 5}


def at_once(measure, *arguments):
    """In place of a process of its own, which takes seconds to start."""
    return measure(*arguments)


@pytest.mark.slow
def test_ours_is_compared_with_the_plain_reference(monkeypatch):
    monkeypatch.setattr(against_reference, "own_process", at_once)
    rows = against_reference.rows_of(TREES7, seconds=0.0)
    assert [row["algo"] for row in rows] == ["plain reference", *against_reference.CONFIGS]
    assert [row["target"] for row in rows] == [None, 5, None, None]
    for row in rows:
        assert (row["tokens"], row["trees a step"]) == (7, 4)
        assert row["times the reference"] * rows[0]["merges/s"] == pytest.approx(row["merges/s"])


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
    row = scaling.measure(name, 16, seconds=0.0)
    assert (row["way"], row["tokens"], row["limits"]) == (name, 16, "")
    assert row["seconds"] > 0
    assert row["memory, GB"] >= 0


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

    seen = matrix_products.rows_seen([autoencoder], step)
    lifter, *others = autoencoder.children()
    assert [limit.rows_of(seen, network) for network in (lifter, *others)] == [6, 4, 4, 6, 0]
    for network in (lifter, *others):
        for layer in network.modules():
            if isinstance(layer, torch.nn.Linear):
                rows = seen[layer]
                assert rows.weight_gradients == rows.forward
                first = network is lifter and layer is not lifter.last
                assert rows.input_gradients == (0 if first else rows.forward)
    with torch.no_grad():
        without = matrix_products.rows_seen([autoencoder.merger], step)
    assert {(rows.forward, rows.weight_gradients) for rows in without.values()} == {(4, 0)}


def test_products_are_those_of_the_rows(monkeypatch):
    """Of 5 rows, 3 with the weight's gradient and 2 with the input's; and in two parts."""
    layer, made = torch.nn.Linear(4, 6), []
    seen = {layer: matrix_products.Rows(5, 3, 2)}

    class Counting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), kwargs=None):
            if function is torch.Tensor.__matmul__:
                made.append(tuple(operand.shape for operand in arguments))
            return function(*arguments, **(kwargs or {}))

    with Counting():
        matrix_products.products(seen)()
    assert made == [((5, 4), (4, 6)), ((6, 3), (3, 4)), ((2, 6), (6, 4))]
    monkeypatch.setattr(matrix_products, "MOST", 4)
    with Counting():
        matrix_products.products(seen)()
    assert made[3:] == 2 * [((2, 4), (4, 6)), ((6, 1), (1, 4)), ((1, 6), (6, 4))]


@pytest.mark.slow
@pytest.mark.parametrize("algo", joint_training.ALGORITHMS)
def test_joint_training_of_every_learner_is_measured(algo, monkeypatch):
    small = joint_training.SIZES[7]._replace(trees=16, candidates=("all", "knn"))
    monkeypatch.setattr(joint_training, "SIZES", {7: small})
    for name, tokens, candidates in joint_training.cases(7):
        if name != algo:
            continue
        row = joint_training.measure(name, tokens, candidates, seconds=0.0)
        assert (row["algo"], row["tokens"], row["candidates"]) == (algo, 7, candidates)
        assert row["share"] == pytest.approx(row["merges/s"] / row["products alone, merges/s"])


@pytest.mark.parametrize("algo", joint_training.ALGORITHMS)
def test_an_update_makes_as_many_trees_as_the_size_says(algo, monkeypatch):
    small = joint_training.SIZES[7]._replace(trees=16)
    monkeypatch.setattr(joint_training, "SIZES", {7: small})
    learner = joint_training.learner(algo, 7, "all")
    learner.update(0.5)
    assert learner.merges_made == 16 * 6


# ---------------------------------------------------------------- time to a given error


@pytest.mark.slow
def test_ours_stops_as_soon_as_it_is_as_good(monkeypatch):
    monkeypatch.setattr(time_to_error, "own_process", at_once)
    monkeypatch.setattr(time_to_error, "ALGORITHMS", ("reinforce", "nearest"))
    monkeypatch.setattr(time_to_error, "EPISODES", 20)
    rows = time_to_error.rows_of("trees7", seed=0, seconds=1.0)
    assert [row["algo"] for row in rows] == ["original", "reinforce", "nearest"]
    assert rows[0]["to reach"] is None
    assert rows[0]["times as fast"] == 1
    for row in rows[1:]:
        assert row["to reach"] == rows[0]["held-out nmse"]
        assert row["held-out nmse"] <= row["to reach"]
        assert row["seconds"] < rows[0]["seconds"]


@pytest.mark.slow
def test_what_is_not_reached_has_no_time():
    row = time_to_error.measure("trees7", "random", 0, seconds=0.1, enough=0.0)
    assert row["seconds"] is None
    assert row["held-out nmse"] > 0


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
    "matrix_products",
    "measuring",
    "plain_reference",
    "running",
    "table",
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

    monkeypatch.setattr(running.subprocess, "run", pretended)
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
    monkeypatch.setattr("agents.bench.find_spec", lambda name: None)
    assert htm(["bench"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "not part of the installed package" in line
