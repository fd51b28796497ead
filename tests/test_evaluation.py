"""Scores that a person can work out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import small_autoencoder
from memory import Largest

from agents.evaluation.evaluate import (
    CHUNK,
    PAIRS_AT_A_TIME,
    TREE_SCORES,
    evaluate,
    reference_scores,
    root_errors,
    tree_scores,
)
from agents.fixed import fixed_policy
from htm_env import HTMAutoencoder, make_dataset
from htm_env.forest import pad_merges

TWO_CROSSES = {"num_crosses": [2]}


def predicts_the_mean(dataset) -> HTMAutoencoder:
    """All weights zero: every token is decoded as the training split's mean."""
    autoencoder = HTMAutoencoder(dataset.token_dim, 3, 4)
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter.zero_()
    autoencoder.set_statistics(dataset.mean, dataset.std)
    return autoencoder


def test_predicting_the_mean_scores_the_mean_squared_standard_score():
    data = np.random.default_rng(0).normal(size=(40, 3, 2)).astype(np.float32) * [5, 0.1]
    dataset = make_dataset(data, split="test")
    autoencoder = predicts_the_mean(dataset)
    scores = evaluate(fixed_policy("chain", autoencoder), autoencoder, dataset, 100)
    tokens = dataset.fixed(100).tokens.numpy()
    assert len(tokens) == 4  # a tenth of the rows, each once
    expected = (((tokens - dataset.mean.numpy()) / dataset.std.numpy()) ** 2).mean()
    assert scores["nmse"] == pytest.approx(expected, rel=1e-5)
    assert scores["sampled_nmse"] == pytest.approx(expected, rel=1e-5)
    assert scores["mean_height"] == 2.0  # a chain of three
    assert scores["tree_recall"] is None  # such data has no hierarchy
    assert scores["tree_f1"] is None


def test_samples_weigh_the_same_whatever_their_size():
    # Deviations by hand: the training rows decide mean 0 and standard deviation 1.
    train = [np.array([[1.0], [-1.0]])] * 8
    data = [*train, np.array([[1.0], [1.0], [1.0], [1.0]]), np.array([[3.0], [3.0]])]
    order = make_dataset([np.full((2, 1), float(k)) for k in range(10)], split="train")
    rows = {int(v) for v in order.fixed(8).tokens[:, 0, 0]}  # which rows are for training
    ragged: list = [None] * 10
    rest = [data[8], data[9]]
    for row in range(10):
        ragged[row] = train[0] if row in rows else rest.pop()
    scores = {}
    for split in ("validation", "test"):
        dataset = make_dataset(ragged, split=split)
        autoencoder = predicts_the_mean(dataset)
        policy = fixed_policy("chain", autoencoder)
        scores[split] = evaluate(policy, autoencoder, dataset, 5)["nmse"]
    assert sorted(scores.values()) == [1.0, 9.0]  # 1 squared over four tokens, 3 squared over two


def test_the_datas_own_trees_recall_everything():
    dataset = make_dataset("HTM-Crosses-v0", split="test", **TWO_CROSSES)
    autoencoder = small_autoencoder(4)
    scores = evaluate(fixed_policy("structure", autoencoder), autoencoder, dataset, 20)
    assert (scores["tree_recall"], scores["tree_f1"], scores["mean_height"]) == (1.0, 1.0, 2.0)


def test_the_leaf_classifier_is_scored_on_both_ways():
    """All weights zero: every probability is a half, which counts as a leaf."""
    dataset = make_dataset("HTM-Crosses-v0", split="test")
    autoencoder = predicts_the_mean(dataset)
    scores = evaluate(fixed_policy("nearest", autoencoder), autoencoder, dataset, 20)
    for way in ("encoder", "decoder"):
        assert scores[f"classifier_leaf_{way}"] == 1.0
        assert scores[f"classifier_internal_{way}"] == 0.0


def test_half_right_trees_score_a_half():
    """((a, b), c), d): the pair {a, b} is a cross; {a, b, c} cuts the other one in two."""

    def plan(batch, generator, *, greedy):
        own = batch.merges[:, 0]  # one cross
        leaves = torch.arange(4)
        rest = torch.stack([leaves[~torch.isin(leaves, pair)] for pair in own])
        steps = [
            own,
            torch.stack([torch.full_like(rest[:, 0], 4), rest[:, 0]], 1),
            torch.stack([torch.full_like(rest[:, 0], 5), rest[:, 1]], 1),
        ]
        return pad_merges(torch.stack(steps, dim=1), batch.present.shape[1])

    dataset = make_dataset("HTM-Crosses-v0", split="test", **TWO_CROSSES)
    scores = evaluate(SimpleNamespace(plan=plan), small_autoencoder(4), dataset, 20)
    # One of two crosses found; one of two clades contradicts none: the harmonic mean is a half too.
    assert (scores["tree_recall"], scores["tree_f1"], scores["mean_height"]) == (0.5, 0.5, 3.0)


def test_the_same_scores_again_and_as_of_all_episodes_at_once():
    """Of more episodes than are evaluated at a time."""
    dataset = make_dataset("HTM-Trees-v0", split="test", heights=(2, 3))
    autoencoder = small_autoencoder(2)
    policy = fixed_policy("nearest_sorted", autoencoder)  # draws nothing, so chunks change nothing
    torch.manual_seed(0)
    before = torch.get_rng_state()
    count = CHUNK + 40
    scores = evaluate(policy, autoencoder, dataset, count)
    assert torch.equal(torch.get_rng_state(), before)
    assert evaluate(policy, autoencoder, dataset, count) == scores
    batch = dataset.fixed(count)
    merges = policy.plan(batch, torch.Generator(), greedy=True)
    errors = root_errors(autoencoder, batch, merges, dataset.std)
    assert scores["nmse"] == pytest.approx(float(errors.mean()), rel=1e-5)
    f1 = tree_scores(batch, merges)["tree_f1"]
    assert scores["tree_f1"] == pytest.approx(float(f1.nanmean()), rel=1e-5)


def largest_table(data, tokens: int) -> int:
    """That an evaluation of a few samples makes."""
    dataset = make_dataset(data, split="test")
    assert dataset.max_tokens == tokens
    autoencoder = small_autoencoder(2)
    with Largest() as largest:
        scores = evaluate(fixed_policy("chain", autoencoder), autoencoder, dataset, 4)
    assert (scores["tree_recall"], scores["mean_height"]) == (None, tokens - 1)
    return largest.size


def test_evaluations_without_clades_grow_as_the_tokens():
    """A table of all pairs would be sixteen times as large."""
    numbers = np.random.default_rng(0)
    sizes = [largest_table(numbers.normal(size=(40, n, 2)), n) for n in (64, 256)]
    assert sizes[1] < 5 * sizes[0]


def test_clades_are_compared_a_few_samples_at_a_time():
    """Of so many tokens that a table of all pairs of nodes of all samples would be too large."""
    tokens, count = 255, 2 * PAIRS_AT_A_TIME // 255**2
    dataset = make_dataset("HTM-Trees-v0", split="test", heights=(8,))
    batch = dataset.fixed(count)
    assert batch.present.shape == (count, tokens)
    generator = torch.Generator().manual_seed(0)
    merges = fixed_policy("random", small_autoencoder(2)).plan(batch, generator)
    with Largest() as largest:
        found = tree_scores(batch, merges)
    assert largest.size <= 4 * PAIRS_AT_A_TIME < count * (2 * tokens - 1) ** 2
    last = tree_scores(batch.rows(torch.arange(count - 3, count)), merges[-3:])
    for name, values in last.items():
        torch.testing.assert_close(found[name][-3:], values, rtol=0, atol=0, equal_nan=True)


def test_random_policies_repeat_with_the_seed_and_change_with_it():
    dataset = make_dataset("HTM-Trees-v0", split="test", heights=(3,))
    autoencoder = small_autoencoder(2)
    policy = fixed_policy("random", autoencoder)
    first = evaluate(policy, autoencoder, dataset, 20, seed=1)
    assert evaluate(policy, autoencoder, dataset, 20, seed=1) == first
    assert evaluate(policy, autoencoder, dataset, 20, seed=2)["nmse"] != first["nmse"]


def test_an_error_that_is_not_finite_is_not_averaged_away():
    dataset = make_dataset("HTM-Trees-v0", split="test", heights=(2,))
    autoencoder = small_autoencoder(2)
    with torch.no_grad():
        next(autoencoder.unlifter.parameters()).fill_(float("nan"))
    scores = evaluate(fixed_policy("chain", autoencoder), autoencoder, dataset, 5)
    assert np.isnan(scores["nmse"])


def test_several_roots_are_refused():
    dataset = make_dataset("HTM-Trees-v0", split="test", heights=(2,))

    def plan(batch, generator, *, greedy):
        return torch.full((len(batch.tokens), batch.present.shape[1] - 1, 2), -1)

    with pytest.raises(ValueError, match="one root"):
        evaluate(SimpleNamespace(plan=plan), small_autoencoder(2), dataset, 5)


# ---------------------------------------------------------------- random merges, the own hierarchy


def test_random_merges_find_a_pair_as_often_as_they_should():
    """Four tokens: the first merge is a given pair in 1 of 6 cases, and then the second one is the
    other cross in 1 of 3; so a cross is found in 1/6 + 1/6 * 1/3 = 2/9, as the first or the second.
    """
    dataset = make_dataset("HTM-Crosses-v0", split="test", **TWO_CROSSES)
    references = reference_scores(small_autoencoder(4), dataset, 2000)
    random, own = references["random_merges"], references["own_hierarchy"]
    assert list(random) == list(own) == list(TREE_SCORES)
    assert random["tree_recall"] == pytest.approx(2 / 9, abs=0.03)
    # two clades in the data and two in a tree, so precision, recall and F1 are the same
    assert random["tree_precision"] == random["tree_recall"]
    assert random["tree_exact_f1"] == pytest.approx(1 - random["tree_robinson_foulds"])
    # balanced where the second merge is the other pair (1 of 3), else a chain
    assert random["mean_height"] == pytest.approx(3 - 1 / 3, abs=0.05)
    assert own == dict.fromkeys(TREE_SCORES, 1.0) | {"tree_robinson_foulds": 0.0, "mean_height": 2}


def test_chance_repeats_with_the_seed_and_changes_with_it():
    dataset = make_dataset("HTM-Trees-v0", split="test", heights=(3,))
    autoencoder = small_autoencoder(2)
    first = reference_scores(autoencoder, dataset, 50, seed=1)
    assert reference_scores(autoencoder, dataset, 50, seed=1) == first
    other = reference_scores(autoencoder, dataset, 50, seed=2)
    assert other["random_merges"] != first["random_merges"]
    assert other["own_hierarchy"] == first["own_hierarchy"]  # nothing is drawn


def test_data_without_a_hierarchy_has_a_chance_height_only(own_data):
    dataset = make_dataset(own_data, split="test")
    references = reference_scores(small_autoencoder(3), dataset, 10)
    assert list(references) == ["random_merges"]
    assert references["random_merges"].pop("mean_height") >= 3.0
    assert set(references["random_merges"].values()) == {None}
