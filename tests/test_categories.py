"""Categories among the coordinates of tokens, and weights of coordinates, from data to errors."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

import htm_env
from agents import FixedOrder
from agents.inspection.traces import traces_of
from agents.learners.fixed_order import FixedOrderConfig
from agents.learners.flat import Flat, FlatConfig
from agents.optim.autoencoder_trainer import AutoencoderConfig
from htm_env.autoencoder import HTMAutoencoder
from htm_env.datasets import make_dataset
from htm_env.datasets.coordinates import Coordinates
from htm_env.losses import reconstruction_loss
from htm_env.measures.metrics import category_error_rate, nmse_per_sample

SPLIT = (0.5, 0.25, 0.25)


def coloured(rows=20, tokens=5, seed=0):
    """Points (x, colour, y): the colour of three is the third of the plane that x lies in."""
    generator = np.random.default_rng(seed)
    x, y = generator.random((2, rows, tokens))
    return np.stack([x, np.floor(3 * x), 4 * y], axis=2)


# ---------------------------------------------------------------- coordinates


def test_numbers_come_first_and_categories_become_ones_and_zeros():
    coordinates = Coordinates.of(3, {1: 3})
    tokens = np.array([[[0.5, 2, 7.0], [0.25, 0, 8.0]]], dtype=np.float32)
    expanded = coordinates.expand("mine", tokens, np.array([2]))
    assert expanded.tolist() == [[[0.5, 7, 0, 0, 1], [0.25, 8, 1, 0, 0]]]
    assert coordinates.collapse(torch.from_numpy(expanded)).tolist() == tokens.tolist()
    assert (coordinates.token_dim, coordinates.values) == (5, (3,))


def test_the_most_probable_value_is_the_category():
    tokens = torch.tensor([[7.5, 0.2, 0.5, 0.3, 0.4, 0.6]])
    assert Coordinates.of(3, {2: 2, 0: 3}).collapse(tokens).tolist() == [[1.0, 7.5, 1.0]]


def test_padding_is_never_a_category():
    coordinates = Coordinates.of(2, {0: 2})
    tokens = np.full((1, 2, 2), -9.0, dtype=np.float32)
    tokens[0, 0] = [1, 5]
    assert coordinates.expand("mine", tokens, np.array([1])).tolist() == [[[5, 0, 1], [0, 0, 0]]]


@pytest.mark.parametrize("value", [3, -1, 0.5])
def test_a_value_that_is_no_category_is_refused_with_its_place(value):
    tokens = coloured()
    tokens[4, 2, 1] = value
    with pytest.raises(ValueError, match=rf"row 4, token 2 has {value} in column 1.*0 to 2"):
        make_dataset(tokens, categorical={1: 3})


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"categorical": {3: 2}}, "a column of categorical is 3: expected .* 0 to 2"),
        ({"categorical": {1: 1}}, r"categorical\[1\] is 1: expected .* from 2"),
        ({"categorical": [1]}, r"categorical is \[1\]: expected {column: number of values}"),
        ({"weights": [1, 1]}, r"weights is \[1, 1\]: expected 3 numbers"),
        ({"weights": [1, 0, 1]}, r"weights\[1\] is 0: expected a number above 0"),
        ({"weights": [1, 1, -1]}, r"weights\[2\] is -1: expected a number above 0"),
        ({"weights": [1, np.inf, 1]}, r"weights\[1\] is inf: expected a finite number$"),
        ({"weights": [1, 1, -2]}, r"weights\[2\] is -2"),
    ],
)
def test_wrong_arguments_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        make_dataset(coloured(), **keywords)


def test_columns_may_be_texts_as_json_has_them():
    assert Coordinates.of(3, {"1": 3}) == Coordinates.of(3, {1: 3})


# ---------------------------------------------------------------- units of the error


def test_the_means_of_the_training_split_have_error_one():
    """Whatever the categories and weights: a column counts by its weight, not by its values."""
    tokens = coloured(rows=200)
    for keywords in (
        {},
        {"categorical": {1: 3}},
        {"weights": [1, 5, 2]},
        {"categorical": {1: 7}, "weights": [1, 5, 2]},
    ):
        data = make_dataset(tokens, **keywords)
        batch = data.fixed(data.size)
        means = data.mean.expand_as(batch.tokens)
        error = nmse_per_sample(means, batch.tokens, batch.present, data.std).mean()
        assert float(error) == pytest.approx(1.0, abs=1e-4)


def test_weights_change_the_share_of_a_coordinate_in_the_error():
    tokens = coloured()
    data = make_dataset(tokens, weights=[2, 1, 1])
    plain, batch = make_dataset(tokens), data.fixed(4)
    wrong = batch.tokens + torch.tensor([1.0, 0, 0]) * plain.std
    assert float(nmse_per_sample(wrong, batch.tokens, batch.present, plain.std)[0]) == (
        pytest.approx(1 / 3)
    )
    error = float(nmse_per_sample(wrong, batch.tokens, batch.present, data.std)[0])
    assert error == pytest.approx(2 / 4)


def test_a_category_is_brier_score_over_that_of_the_frequencies():
    """Three values equally often: 1 - 3/9 = 2/3 is the unit; certain and wrong is 2 of it."""
    tokens = np.tile(np.array([[0.0], [1.0], [2.0]]), (8, 1, 1))
    data = make_dataset(tokens, categorical={0: 3}, split_fractions=SPLIT)
    batch = data.fixed(1)
    wrong = batch.tokens.roll(1, dims=2)
    error = nmse_per_sample(wrong, batch.tokens, batch.present, data.std)
    assert float(error) == pytest.approx(2 / (2 / 3))


def test_one_value_only_has_a_finite_unit():
    tokens = np.stack([np.zeros((8, 2)), np.arange(16).reshape(8, 2)], axis=2)
    data = make_dataset(tokens, categorical={0: 2}, split_fractions=SPLIT)
    assert data.std.isfinite().all() and (data.std > 0).all()


# ---------------------------------------------------------------- loss


def test_cross_entropy_by_hand():
    """One number and two values: squared error and entropy over the unit squared, their mean."""
    autoencoder = HTMAutoencoder(3, categories=[2])
    autoencoder.set_statistics(torch.tensor([0.0, 0.75, 0.25]), torch.tensor([1.0, 0.5, 0.5]))
    target = autoencoder.standardise(torch.tensor([[[3.0, 0.0, 1.0]]]))[0]
    predicted = torch.tensor([[1.0, 0.0, 0.0]])  # of the category: the frequencies
    loss = reconstruction_loss(autoencoder, predicted, target, torch.ones(1))
    assert float(loss) == pytest.approx((4 + math.log(4) / 0.25) / 3)
    assert autoencoder.to_tokens(predicted)[0].tolist() == pytest.approx([1.0, 0.75, 0.25])


def test_probabilities_add_up_to_one():
    data = make_dataset(coloured(), categorical={1: 3})
    autoencoder = HTMAutoencoder(5, 4, categories=data.categories)
    autoencoder.set_statistics(data.mean, data.std)
    batch = data.fixed(3)
    merges = torch.tensor([[0, 1], [2, 3], [5, 6], [7, 4]]).expand(3, -1, -1)
    encoding = autoencoder.encode(batch.tokens, batch.present, merges)
    decoded = autoencoder.decode(encoding.roots, merges, batch.present)
    assert torch.allclose(decoded[..., 2:].sum(-1), torch.ones(3, 5))
    assert (decoded[..., 2:] >= 0).all()


def test_error_rate_counts_wrong_categories():
    tokens = torch.tensor([[[0.0, 1, 0], [0.0, 0, 1], [0.0, 0, 0]]])
    decoded = torch.tensor([[[9.0, 0.6, 0.4], [9.0, 0.6, 0.4], [9.0, 0.1, 0.9]]])
    present = torch.tensor([[True, True, False]])
    assert category_error_rate(decoded, tokens, present, [2]).tolist() == [0.5]
    assert category_error_rate(decoded, tokens, present, []).isnan().all()


# ---------------------------------------------------------------- files and environments


def test_a_file_of_weights_knows_its_categories(tmp_path):
    autoencoder = HTMAutoencoder(5, 4, categories=[3], generator=torch.Generator())
    autoencoder.save(tmp_path / "weights.safetensors")
    loaded = HTMAutoencoder.load(tmp_path / "weights.safetensors")
    assert loaded.categories == (3,)
    assert loaded.weights_hash() == autoencoder.weights_hash()
    assert "categories" not in HTMAutoencoder(5, 4).config


def test_an_autoencoder_of_other_categories_is_refused():
    data = {"dataset": coloured(), "categorical": {1: 3}}
    with pytest.raises(ValueError, match=r"no values, but those of HTM-v0 have \(3,\)"):
        gym.make("htm_env:HTM-v0", **data, autoencoder=HTMAutoencoder(5, 4))


def test_rewards_add_up_to_the_fall_of_the_error():
    data = {"dataset": coloured(), "categorical": {1: 3}, "weights": [1, 2, 1]}
    env = gym.make("htm_env:HTM-v0", **data, embedding_dim=6)
    _, info = env.reset(seed=0)
    first, total, done = info["error"], 0.0, False
    while not done:
        action = int(np.flatnonzero(info["action_mask"])[0])
        _, reward, done, _, info = env.step(action)
        total += reward
    assert total == pytest.approx(first - info["error"], abs=1e-5)
    assert env.unwrapped.autoencoder.categories == (3,)


def test_to_user_and_back():
    tokens = coloured()
    data = make_dataset(tokens, categorical={1: 3})
    batch = data.fixed(2)
    given = data.to_user(batch.tokens)
    assert given.shape == (2, 5, 3)
    assert torch.equal(torch.from_numpy(data.from_user(given.numpy())), batch.tokens)
    with pytest.raises(ValueError, match="5 numbers a token: expected 3"):
        data.from_user(batch.tokens.numpy())
    plain = make_dataset(tokens)
    assert plain.to_user(batch.tokens) is batch.tokens


# ---------------------------------------------------------------- learning


def category_run(learner_class, config, merges=1500):
    """A learner of coloured points, trained a little, and its held-out scores."""
    data = {"dataset": coloured(rows=100), "categorical": {1: 3}}
    learner = learner_class("HTM-v0", config, env_kwargs=data, embedding_dim=10)
    learner.train(merges=merges)
    return learner, learner.evaluate(learner.task.dataset("test"))


@pytest.mark.slow
def test_trees_of_categories_are_learned(tmp_path):
    small = AutoencoderConfig(hidden_dim=32)
    config = FixedOrderConfig(policy="nearest_sorted", autoencoder=small, batch_size=8)
    learner, scores = category_run(FixedOrder, config, merges=6000)
    assert scores["error_rate"] < 0.4 < 2 / 3  # of three colours
    assert scores["nmse"] < 0.9
    learner.save(tmp_path / "agent")
    again = FixedOrder.load(tmp_path / "agent")
    assert again.autoencoder.categories == (3,)
    assert again.evaluate(again.task.dataset("test")) == scores


@pytest.mark.slow
def test_sets_of_categories_are_learned_without_a_tree():
    _, scores = category_run(Flat, FlatConfig(hidden_dim=16, batch_size=8), merges=400)
    assert 0 <= scores["error_rate"] <= 1 and scores["nmse"] > 0


@pytest.mark.slow
def test_categories_are_drawn_and_generated(tmp_path):
    learner, _ = category_run(FixedOrder, FixedOrderConfig(policy="chain", batch_size=8), 200)
    assert learner.figure(learner.task.dataset("validation")).axes
    sets = coloured(rows=3)
    restored = learner.reconstruct(sets)
    assert restored.shape == sets.shape
    assert set(restored[..., 1].flatten().tolist()) <= {0.0, 1.0, 2.0}
    made = htm_env.generate(learner.autoencoder, torch.from_numpy(learner.embed(sets)))
    given = learner.dataset.to_user(made.tokens)
    assert given.shape[2] == 3
    assert set(given[..., 1].flatten().tolist()) <= {0.0, 1.0, 2.0}
    trace = traces_of(learner, learner.dataset, [0])[0]
    assert trace.tokens.shape == (5, 3) and trace.reconstructions.shape == (5, 5, 3)
