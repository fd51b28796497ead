"""Errors of other means beside a run's, and what they say of its training."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import small_autoencoder

from agents import FixedOrder, FixedOrderConfig, Reinforce, ReinforceConfig
from agents.cli import main
from agents.evaluation.evaluate import evaluate
from agents.evaluation.yardsticks import plain_yardsticks, tree_yardsticks
from agents.fixed import fixed_policy
from agents.inspection.probes import errors_by_label, probed_samples, semantic_table
from agents.inspection.trained import FEW_UPDATES, why_not_trained, why_not_trained_on_test
from htm_env.datasets import make_dataset


def splits(data):
    return make_dataset(data, split="test"), make_dataset(data, split="train")


def test_the_mean_of_the_tokens_has_an_error_of_one():
    """Every row is the same, so its tokens have the mean and deviation of the training split."""
    test, train = splits(np.broadcast_to(np.random.default_rng(0).normal(size=(5, 3)), (30, 5, 3)))
    assert plain_yardsticks(test, train, 2)["mean"] == pytest.approx(1.0, abs=1e-5)


def test_components_give_back_what_varies_in_so_many_directions():
    """Two numbers a row move all tokens, without changing their order: two components hold all."""
    rng = np.random.default_rng(0)
    tokens = np.arange(4.0)[:, None] * 10 + rng.uniform(-1, 1, size=(60, 1, 1)) * [1.0, 0.0]
    tokens = tokens + rng.uniform(-1, 1, size=(60, 1, 1)) * [0.0, 1.0]
    test, train = splits(tokens)
    errors = [plain_yardsticks(test, train, dim)["principal_components"] for dim in (1, 2, 50)]
    assert errors[0] > 1e-5
    assert errors[1:] == pytest.approx([0, 0], abs=1e-8)


def test_components_know_how_many_tokens_there_are_and_not_their_order():
    rng = np.random.default_rng(0)
    sets = [rng.normal(size=(n, 2)) for n in rng.integers(2, 5, 80)]
    test, train = splits(sets)
    found = plain_yardsticks(test, train, 8)
    assert found["principal_components"] == pytest.approx(0, abs=1e-8)  # 4 tokens of 2 numbers
    turned, same = splits([one[::-1] for one in sets])
    assert plain_yardsticks(turned, same, 3) == pytest.approx(plain_yardsticks(test, train, 3))


def test_fixed_orders_go_through_the_runs_own_autoencoder():
    test = make_dataset("HTM-Crosses-v0", split="test", num_crosses=2)
    autoencoder = small_autoencoder(4)
    found = tree_yardsticks(autoencoder, test, 20)
    assert list(found) == ["nearest_sorted", "nearest", "random", "own_hierarchy"]
    policy = fixed_policy("nearest_sorted", autoencoder)  # draws nothing
    expected = evaluate(policy, autoencoder, test, 20, sampled=False)["nmse"]
    assert found["nearest_sorted"] == pytest.approx(expected)
    again = tree_yardsticks(autoencoder, test, 20)
    assert again == found


# ---------------------------------------------------------------- trained enough


SMALL = {"env_kwargs": {"heights": [2]}, "embedding_dim": 4}
ENOUGH = {"random": 0.5, "mean": 1.0}


@pytest.mark.parametrize(
    ("nmse", "updates", "yardsticks", "says"),
    [
        (0.1, FEW_UPDATES, ENOUGH, None),
        (0.1, 7, ENOUGH, "7 updates"),
        (0.48, FEW_UPDATES, ENOUGH, "0.48, that of random merges 0.5"),
        (0.99, FEW_UPDATES, {"mean": 1.02}, "predicting the mean 1.02"),
        (math.nan, FEW_UPDATES, {"mean": 1.0}, "nmse is nan"),
    ],
)
def test_a_run_is_held_against_its_updates_the_mean_and_chance(nmse, updates, yardsticks, says):
    learner = Reinforce("HTM-Trees-v0", **SMALL)
    learner.updates = updates
    found = why_not_trained(learner, nmse, yardsticks)
    assert found is None if says is None else says in found


def test_many_updates_of_few_steps_are_not_enough():
    learner = Reinforce("HTM-Trees-v0", ReinforceConfig(batch_size=4), **SMALL)
    learner.update(0.9)
    learner.updates = 1000
    steps = learner.trainer.optimizers["merger"].updates
    assert f"{steps} steps of its autoencoder" in why_not_trained(learner, 0.1, ENOUGH)
    learner.trainer.optimizers["merger"].updates = learner.config.autoencoder.merger.warm_up_updates
    assert why_not_trained(learner, 0.1, ENOUGH) is None


def test_given_trees_are_not_held_against_chance_and_frozen_ones_against_nothing():
    learner = FixedOrder("HTM-Trees-v0", FixedOrderConfig(policy="random"), **SMALL)
    learner.updates = FEW_UPDATES
    assert why_not_trained(learner, 0.5, ENOUGH) is None
    frozen = FixedOrder("HTM-Trees-v0", mode="frozen")
    assert why_not_trained(frozen, 0.5, ENOUGH) is None
    assert "0 updates" in why_not_trained(Reinforce("HTM-Trees-v0", mode="frozen"), 0.1, ENOUGH)


def test_every_command_gives_the_same_reason(tmp_path, capsys):
    """The test rows lie twice as far from the mean as the training rows: the mean's error is 4."""
    data = np.random.default_rng(0).choice([-1.0, 1.0], size=(60, 3, 2))
    data[50:] *= 2
    split_of = ["train"] * 40 + ["validation"] * 10 + ["test"] * 10
    kwargs = {"dataset": data, "split_of": split_of}
    learner = Reinforce("HTM-v0", env_kwargs=kwargs, embedding_dim=2)
    learner.updates = FEW_UPDATES
    learner.save(tmp_path)
    reason = why_not_trained_on_test(learner)
    assert float(reason.rsplit(" ", 1)[1]) == pytest.approx(4, abs=0.4)
    for command in (["embed", "--split", "train"], ["evaluate"]):
        assert main([command[0], str(tmp_path), *command[1:]]) == 0
        assert f"not trained enough to use: {reason}" in capsys.readouterr().out.splitlines()


# ---------------------------------------------------------------- labels


def labelled(rows=60, classes=3, **more):
    """A learner on sets that lie at a place of their label."""
    rng = np.random.default_rng(0)
    labels = np.arange(rows) % classes
    data = rng.normal(size=(rows, 3, 2)) + 10 * labels[:, None, None]
    kwargs = {"dataset": data, "labels": [f"kind {label}" for label in labels], **more}
    return FixedOrder("HTM-v0", env_kwargs=kwargs, embedding_dim=4)


def test_every_labelled_dataset_has_the_semantic_table():
    table = semantic_table(labelled())
    assert list(table) == ["root", "pca_4", "tokens", "pooled"]  # a sample has 6 numbers
    assert table["pooled"]["five_nearest"] == 1.0  # the label is the place


def test_errors_by_label_add_up_to_the_error():
    agent = labelled()
    test = agent.task.dataset("test")
    found = errors_by_label(agent, test, 100)
    assert set(found) <= {"kind 0", "kind 1", "kind 2"}
    total = sum(row["samples"] * row["nmse"] for row in found.values()) / test.size
    assert total == pytest.approx(agent.evaluate(test, sampled=False)["nmse"], rel=1e-4)
    errors = [row["nmse"] for row in found.values()]
    assert errors == sorted(errors, reverse=True)


def test_labels_that_training_never_saw_are_left_out():
    split_of = ["train"] * 40 + ["validation"] * 10 + ["test"] * 10
    agent = labelled(split_of=split_of, labels=["a", "b"] * 29 + ["new", "a"])
    assert semantic_table(agent)["root"]["five_nearest"] >= 0
    assert probed_samples(agent.task) == 9  # of ten
    alone = labelled(split_of=split_of, labels=["a"] * 60)
    with pytest.raises(ValueError, match="of 1 labels"):
        semantic_table(alone)
