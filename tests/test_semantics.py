"""Labels read from embeddings: numbers that a person can derive, and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from htm_env.datasets import SPLITS, make_dataset
from htm_env.datasets.width import sorted_tokens
from htm_env.measures.semantics import (
    Labelled,
    effective_rank,
    few_shot_scores,
    pooled_tokens,
    principal_components,
    semantic_scores,
)

SIZES = (60, 30, 40)


def splits(embed, classes: int, seed: int = 0) -> list[Labelled]:
    """``embed(labels, rng)`` for three splits of random labels."""
    rng = np.random.default_rng(seed)
    made = []
    for size in SIZES:
        labels = rng.permutation(np.arange(size) % classes)
        made.append(Labelled(embed(labels, rng), labels))
    return made


def noise(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(len(labels), 4))


def test_embeddings_that_are_the_label_score_one():
    perfect = splits(lambda labels, rng: np.eye(3)[labels] + 0.01 * rng.normal(size=(1, 3)), 3)
    assert semantic_scores(*perfect) == {
        "linear_probe": 1.0,
        "five_nearest": 1.0,
        "nmi": 1.0,
        "five_nearest_standardised": 1.0,
        "nmi_standardised": 1.0,
    }


def test_noise_says_nothing():
    scores = semantic_scores(*splits(noise, 4))
    # A quarter of 40 guesses: 10 with a standard deviation of 2.7.
    for name in ("linear_probe", "five_nearest", "five_nearest_standardised"):
        assert scores[name] <= 0.25 + 3 * 2.74 / 40
    assert scores["nmi"] < 0.3


def test_neighbours_see_what_no_line_can_part():
    """Four far corners, opposite ones of the same label: of four a line has three right at most."""

    def corners(labels, rng):
        first = rng.integers(2, size=len(labels))
        return np.stack([first, first ^ labels], axis=1) * 10 + rng.normal(size=(len(labels), 2))

    scores = semantic_scores(*splits(corners, 2))
    assert scores["five_nearest"] == scores["five_nearest_standardised"] == 1.0
    assert scores["linear_probe"] < 0.9
    assert scores["nmi"] < 0.1  # two clusters are two sides of the square


@settings(max_examples=10)
@given(seed=st.integers(0, 2**16))
def test_five_nearest_is_the_vote_of_a_plain_loop(seed):
    train, validation, test = splits(noise, 3, seed)
    right = 0
    for place, label in zip(*test, strict=True):
        distances = ((train.embeddings - place) ** 2).sum(axis=1)
        votes = np.bincount(train.labels[np.argsort(distances)[:5]])
        right += int(votes.argmax() == label)
    assert semantic_scores(train, validation, test)["five_nearest"] == right / 40


def test_only_what_is_standardised_forgets_units():
    """The label in a small coordinate beside a large one of noise."""

    def small(labels, rng):
        return np.stack(
            [labels + 0.1 * rng.normal(size=len(labels)), 1000 * rng.normal(size=len(labels))],
            axis=1,
        )

    made = splits(small, 2)
    units = np.array([4.0, 0.25]), np.array([0.5, -8.0])
    again = [Labelled(split.embeddings * units[0] + units[1], split.labels) for split in made]
    scores, other = semantic_scores(*made), semantic_scores(*again)
    for name in ("linear_probe", "five_nearest_standardised", "nmi_standardised"):
        assert scores[name] == other[name]
    assert scores["linear_probe"] == scores["five_nearest_standardised"] == 1.0
    assert scores["five_nearest"] < 0.8


def test_the_validation_split_chooses_the_penalty():
    """Noise in many coordinates: the loss is least for weights near zero, which only validation
    data can tell."""
    rng = np.random.default_rng(1)
    made = [Labelled(rng.normal(size=(size, 30)), rng.integers(2, size=size)) for size in SIZES]
    train, _, test = made
    mean, std = train.embeddings.mean(0), train.embeddings.std(0)
    expected = []
    for inverse_penalty in (1e-3, 1e3):
        probe = LogisticRegression(C=inverse_penalty, max_iter=3000)
        probe.fit((train.embeddings - mean) / std, train.labels)
        expected.append(probe.score((test.embeddings - mean) / std, test.labels))
    assert expected[0] != expected[1]
    assert semantic_scores(*made)["linear_probe"] == expected[0]


def test_the_same_scores_again_and_whatever_the_labels_are_called():
    made = splits(lambda labels, rng: labels[:, None] + rng.normal(size=(len(labels), 3)), 4)
    scores = semantic_scores(*made, seed=1)
    assert semantic_scores(*made, seed=1) == scores
    renamed = [Labelled(split.embeddings, split.labels * 7 + 3) for split in made]
    assert semantic_scores(*renamed, seed=1) == pytest.approx(scores)


def test_what_cannot_be_scored_is_refused():
    train, validation, test = splits(noise, 3)
    with pytest.raises(ValueError, match=r"test split has embeddings \(40, 2\) .*\(40, 4\)"):
        semantic_scores(train, validation, Labelled(test.embeddings[:, :2], test.labels))
    with pytest.raises(ValueError, match="60 samples of 1 labels"):
        semantic_scores(Labelled(train.embeddings, train.labels * 0), validation, test)
    with pytest.raises(ValueError, match="validation split has label 9"):
        semantic_scores(train, Labelled(validation.embeddings, validation.labels * 0 + 9), test)
    test.embeddings[3, 1] = np.nan
    with pytest.raises(ValueError, match="test split has embeddings that are not finite"):
        semantic_scores(train, validation, test)


# ---------------------------------------------------------------- few labels, and rank


def test_one_label_a_class_is_enough_where_classes_lie_apart():
    far = splits(lambda labels, rng: 50 * np.eye(3)[labels] + rng.normal(size=(len(labels), 3)), 3)
    scores = few_shot_scores(far[0], far[2])
    assert scores == {1: (1.0, 0.0), 5: (1.0, 0.0), 10: (1.0, 0.0)}


def test_at_one_scale_small_coordinates_stay_small():
    """The label is in the first coordinate; ninety-nine of a thousandth of its size are noise."""

    def places(labels, rng):
        noise = rng.normal(size=(len(labels), 99)) / 1000
        return np.column_stack([labels + rng.normal(size=len(labels)) / 10, noise])

    train, _, test = splits(places, 2)
    each = few_shot_scores(train, test, (1,))[1].mean
    assert few_shot_scores(train, test, (1,), one_scale=True)[1].mean > 0.95 > each + 0.2


def test_few_labels_of_noise_say_nothing():
    train, _, test = splits(noise, 4)
    for mean, error in few_shot_scores(train, test).values():
        # 20 draws of 40 guesses, a quarter right; draws share their test samples.
        assert abs(mean - 0.25) < 0.15
        assert 0 < error < 0.05


def test_more_labels_average_what_is_random_in_one():
    blurred = splits(lambda labels, rng: np.eye(3)[labels] + rng.normal(size=(len(labels), 3)), 3)
    scores = few_shot_scores(blurred[0], blurred[2])
    assert scores[1].mean < scores[5].mean < scores[10].mean


def test_only_classes_with_enough_training_samples_count():
    """The third class has four samples: with it a test sample of it would be wrong or right."""
    places = np.eye(3)
    train_labels, test_labels = np.repeat([0, 1, 2], [6, 5, 4]), np.array([0, 1, 2, 2])
    embeddings = places[np.where(test_labels == 2, 0, test_labels)]
    train = Labelled(places[train_labels], train_labels)
    assert few_shot_scores(train, Labelled(embeddings, test_labels), (5,)) == {5: (1.0, 0.0)}
    with pytest.raises(ValueError, match="1 labels have 6 training samples"):
        few_shot_scores(train, Labelled(embeddings, test_labels), (1, 6))
    with pytest.raises(ValueError, match="no test sample has a label of 5"):
        few_shot_scores(train, Labelled(embeddings[2:], test_labels[2:]), (5,))


def test_every_embedding_gets_the_same_draws():
    train, _, test = splits(lambda labels, rng: np.eye(3)[labels] + rng.normal(size=(1, 3)), 3)
    turned = [Labelled(split.embeddings[:, ::-1].copy(), split.labels) for split in (train, test)]
    assert few_shot_scores(train, test, seed=3) == few_shot_scores(*turned, seed=3)
    blurred = [
        Labelled(
            split.embeddings + np.random.default_rng(0).normal(size=split.embeddings.shape),
            split.labels,
        )
        for split in (train, test)
    ]
    once, again = few_shot_scores(*blurred, seed=3), few_shot_scores(*blurred, seed=4)
    assert once == few_shot_scores(*blurred, seed=3) != again


def test_effective_rank_counts_directions():
    assert effective_rank(np.eye(5)) == pytest.approx(5)
    assert effective_rank(np.outer(np.arange(1.0, 7.0), [1.0, -2.0])) == pytest.approx(1)
    # Singular values 3 and 1: shares 3/4 and 1/4.
    expected = (4 / 3) ** 0.75 * 4**0.25
    assert effective_rank(np.diag([3.0, 1.0])) == pytest.approx(expected)
    assert effective_rank(np.zeros((4, 2))) == 0.0


# ---------------------------------------------------------------- plainer embeddings

TOKENS = np.array([[[2.0, 1.0], [1.0, 9.0], [1.0, 3.0]], [[5.0, 5.0], [4.0, 6.0], [-8.0, 0.0]]])
PRESENT = np.array([[True, True, True], [True, True, False]])


def test_tokens_are_sorted_by_the_first_coordinate_then_the_next():
    expected = [[[1, 3], [1, 9], [2, 1]], [[4, 6], [5, 5], [0, 0]]]
    assert sorted_tokens(TOKENS, PRESENT).tolist() == expected


def test_pooled_tokens_are_means_of_what_is_present():
    mean, std = np.array([1.0, 2.0]), np.array([0.5, 4.0])
    # (4/3, 13/3) and (4.5, 5.5), minus the mean, over the deviation
    expected = [[2 / 3, 7 / 12], [7.0, 0.875]]
    assert pooled_tokens(TOKENS, PRESENT, mean, std) == pytest.approx(np.array(expected))


@given(seed=st.integers(0, 2**16))
def test_the_order_of_the_slots_reaches_no_bit(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(3, 6, 2)).astype(np.float32)
    present, order = np.ones((3, 6), dtype=bool), rng.permutation(6)
    unit = np.zeros(2), np.ones(2)
    for function in (sorted_tokens, lambda *sample: pooled_tokens(*sample, *unit)):
        assert np.array_equal(function(tokens, present), function(tokens[:, order], present))


def test_components_of_sorted_digits_are_those_of_the_pixels():
    datasets = [make_dataset("HTM-Digits-v0", split) for split in SPLITS]
    flat = []
    for dataset in datasets:
        batch = dataset.fixed(dataset.size)
        numbers = sorted_tokens(batch.tokens.numpy(), batch.present.numpy())
        flat.append(numbers.reshape(dataset.size, -1).astype(np.float64))
    pixels = [load_digits().data[dataset.rows] for dataset in datasets]
    pca = PCA(16, svd_solver="full").fit(pixels[0])
    for found, split in zip(principal_components(flat, 16), pixels, strict=True):
        assert np.abs(found) == pytest.approx(np.abs(pca.transform(split)), abs=1e-6)


def test_there_are_no_more_components_than_numbers():
    rng = np.random.default_rng(0)
    (found,) = principal_components([rng.normal(size=(20, 3))], 16)
    assert found.shape == (20, 3)
