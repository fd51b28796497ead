"""Probes of labels in embeddings that were learned without them, and plainer embeddings beside.

Labels serve for the analysis of results only. Everything is numpy; scikit-learn fits.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, normalized_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from htm_env.datasets.width import sorted_tokens
from htm_env.measures.intervals import Mean, mean_with_error

NEIGHBOURS = 5
INVERSE_PENALTIES = tuple(10.0**power for power in range(-3, 4))
"""Scikit-learn's ``C`` of the linear probe's squared weights; the validation split chooses."""
PATIENCE = 2
"""Weaker penalties in a row that are worse than the best one, after which no other is tried."""
ITERATIONS = 3000
"""At most, of the linear probe; on Digits it converges within some hundreds."""
EXACT = 1024
"""Numbers of a sample, above which principal components are estimated."""
INITIALISATIONS = 10
"""Initialisations of k-means, of which the tightest clusters count."""
SHOTS = (1, 5, 10)
"""Labels a class of :func:`few_shot_scores`."""
DRAWS = 20
"""Draws of these labels."""
FIXED_INVERSE_PENALTY = 1.0
"""Scikit-learn's ``C`` where there is no validation split to choose it by."""


class Labelled(NamedTuple):
    """The samples of one split."""

    embeddings: Float[np.ndarray, "N F"]
    labels: Int64[np.ndarray, "N"]


def semantic_scores(
    train: Labelled, validation: Labelled, test: Labelled, *, seed: int = 0
) -> dict[str, float]:
    """Scores of labels read from embeddings, on the test split; each is 1 at best.

    ``linear_probe`` is the accuracy of multinomial logistic regression on standardised embeddings,
    its penalty the one with the least cross-entropy on the validation split (Alain and Bengio 2016,
    "Understanding intermediate layers using linear classifier probes"). ``five_nearest`` is the
    accuracy of the vote of the five nearest training samples, and ``nmi`` the normalised mutual
    information of labels and of clusters that k-means found in the training split, as many as there
    are labels, without seeing one (Strehl and Ghosh 2002); both as the embeddings are, and again
    under ``..._standardised`` with every coordinate divided by its deviation. Only the training
    split fits anything; ``seed`` starts k-means.

    Raises ``ValueError`` where the splits differ in width, an embedding has no label or is not
    finite, the training split has fewer than two labels or fewer than five samples, or another
    split has a label that it has not.
    """
    _check(train, validation, test)
    scores = {"linear_probe": _linear_probe(train, validation, test)}
    scaler = StandardScaler().fit(train.embeddings)
    known = [Labelled(scaler.transform(split.embeddings), split.labels) for split in (train, test)]
    for suffix, (fitted, held_out) in (("", (train, test)), ("_standardised", known)):
        vote = KNeighborsClassifier(NEIGHBOURS).fit(*fitted)
        scores[f"five_nearest{suffix}"] = float(vote.score(*held_out))
        clusters = KMeans(
            len(np.unique(fitted.labels)), n_init=INITIALISATIONS, random_state=seed
        ).fit(fitted.embeddings)
        found = clusters.predict(held_out.embeddings)
        scores[f"nmi{suffix}"] = float(normalized_mutual_info_score(held_out.labels, found))
    return scores


def _linear_probe(train: Labelled, validation: Labelled, test: Labelled) -> float:
    def probe(inverse_penalty: float) -> tuple[float, float]:
        logistic = LogisticRegression(C=inverse_penalty, max_iter=ITERATIONS)
        model = make_pipeline(StandardScaler(), logistic).fit(*train)
        guess = model.predict_proba(validation.embeddings)
        loss = log_loss(validation.labels, guess, labels=model.classes_)
        return float(loss), float(model.score(*test))

    found: list[tuple[float, float]] = []
    for inverse_penalty in INVERSE_PENALTIES:
        found.append(probe(inverse_penalty))
        if min(found) not in found[-PATIENCE:]:
            break  # the weakest penalties take longest
    return min(found)[1]


# ---------------------------------------------------------------- few labels


def few_shot_classes(
    labels: Int64[np.ndarray, "N"], shots: Sequence[int] = SHOTS
) -> Int64[np.ndarray, "K"]:
    """The classes with at least as many samples as the most of ``shots``."""
    classes, counts = np.unique(labels, return_counts=True)
    chosen: np.ndarray = classes[counts >= max(shots)]
    return chosen


def few_shot_scores(
    train: Labelled,
    test: Labelled,
    shots: Sequence[int] = SHOTS,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    one_scale: bool = False,
) -> dict[int, Mean]:
    """Accuracy on the test split after as many labels a class as each of ``shots``, with its
    standard error over the draws.

    A draw takes ``shots`` training samples of every class; a multinomial logistic regression
    (``C = 1``) is fitted to them. Embeddings are standardised by the whole training split, whose
    labels are not read for that: every coordinate by its own standard deviation, or, with
    ``one_scale``, all by the root of their mean variance, which leaves small principal components
    small. Only the :func:`few_shot_classes` count, and the test samples of
    these. Classes, draws and test samples follow from the labels and ``seed`` alone, so that all
    embeddings of the same samples are compared on the same ones.

    Raises ``ValueError`` where fewer than two classes have enough training samples, the test split
    has no sample of these, or embeddings are not finite.
    """
    for name, split in (("training", train), ("test", test)):
        if not np.isfinite(split.embeddings).all():
            raise ValueError(f"the {name} split has embeddings that are not finite")
    classes = few_shot_classes(train.labels, shots)
    if len(classes) < 2:
        raise ValueError(
            f"{len(classes)} labels have {max(shots)} training samples; expected at least 2"
        )
    counted = np.isin(test.labels, classes)
    if not counted.any():
        raise ValueError(f"no test sample has a label of {max(shots)} training samples")
    scaler = StandardScaler().fit(train.embeddings)
    if one_scale:
        scaler.scale_[:] = np.sqrt(scaler.var_.mean()) or 1.0
    known, unknown = (scaler.transform(split.embeddings) for split in (train, test))
    held_out = unknown[counted], test.labels[counted]
    rng, scores = np.random.default_rng(seed), {}
    for count in shots:
        accuracies = []
        for _ in range(draws):
            rows = _drawn(train.labels, classes, count, rng)
            model = LogisticRegression(C=FIXED_INVERSE_PENALTY, max_iter=ITERATIONS)
            with warnings.catch_warnings():  # that one sample a class is no classification
                warnings.filterwarnings("ignore", "The number of unique classes")
                model.fit(known[rows], train.labels[rows])
            accuracies.append(model.score(*held_out))
        found = mean_with_error(np.array(accuracies))
        assert found is not None  # an accuracy is a number
        scores[count] = found
    return scores


def _drawn(
    labels: Int64[np.ndarray, "N"],
    classes: Int64[np.ndarray, "K"],
    count: int,
    rng: np.random.Generator,
) -> Int64[np.ndarray, "R"]:
    """Rows of ``count`` different samples of every class."""
    rows = (np.flatnonzero(labels == label) for label in classes)
    return np.concatenate([rng.choice(of_class, count, replace=False) for of_class in rows])


# ---------------------------------------------------------------- rank


def effective_rank(embeddings: Float[np.ndarray, "N F"]) -> float:
    """The number of directions that embeddings use: ``exp`` of the entropy of their singular
    values, as shares of their sum (RankMe, Garrido et al. 2023, arXiv 2210.02885).

    Between 1 and the lesser of ``N`` and ``F``; 0 where all numbers are 0. As in the paper, the
    embeddings are neither centred nor scaled.
    """
    singular = np.linalg.svd(embeddings.astype(np.float64), compute_uv=False)
    if not singular.sum() > 0:
        return 0.0
    shares = singular / singular.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


# ---------------------------------------------------------------- plainer embeddings


def pooled_tokens(
    tokens: Float[np.ndarray, "N P T"],
    present: Bool[np.ndarray, "N P"],
    mean: Float[np.ndarray, "T"],
    std: Float[np.ndarray, "T"],
) -> Float[np.ndarray, "N T"]:
    """The mean of the standardised tokens of every sample: an embedding without any order."""
    # Sorted first, so that the order of the slots does not even reach the last bit.
    sums = sorted_tokens(tokens, present).astype(np.float64).sum(axis=1)
    means: np.ndarray = (sums / present.sum(axis=1)[:, None] - mean) / std
    return means


def principal_components(
    splits: Sequence[Float[np.ndarray, "_ F"]], dim: int
) -> list[Float[np.ndarray, "_ D"]]:
    """Every split along the first ``dim`` principal components of the first of them.

    As many as there are, where ``dim`` is more.
    """
    most = min(splits[0].shape)
    solver = "full" if splits[0].shape[1] <= EXACT else "randomized"
    pca = PCA(min(dim, most), svd_solver=solver, random_state=0).fit(splits[0])
    return [pca.transform(split) for split in splits]


def principal_reconstruction(
    training: Float[np.ndarray, "_ F"], rows: Float[np.ndarray, "N F"], dim: int
) -> Float[np.ndarray, "N F"]:
    """What the first ``dim`` principal components of ``training`` give back of ``rows``.

    All components, where ``dim`` is more than there are.
    """
    # Of thousands of numbers the solver estimates the first components, from this seed.
    with np.errstate(invalid="ignore"):  # equal rows: no variance to share
        pca = PCA(min(dim, *training.shape), random_state=0).fit(training)
    back: np.ndarray = pca.inverse_transform(pca.transform(rows))
    return back


# ---------------------------------------------------------------- checks


def _check(train: Labelled, validation: Labelled, test: Labelled) -> None:
    width, classes = train.embeddings.shape[1], np.unique(train.labels)
    if len(classes) < 2 or len(train.labels) < NEIGHBOURS:
        raise ValueError(
            f"the training split has {len(train.labels)} samples of {len(classes)} labels; "
            f"expected at least {NEIGHBOURS} samples of at least 2"
        )
    for name, split in (("training", train), ("validation", validation), ("test", test)):
        if split.embeddings.shape != (len(split.labels), width):
            raise ValueError(
                f"the {name} split has embeddings {split.embeddings.shape} for "
                f"{len(split.labels)} labels; expected ({len(split.labels)}, {width})"
            )
        if not np.isfinite(split.embeddings).all():
            raise ValueError(f"the {name} split has embeddings that are not finite")
        unknown = np.setdiff1d(split.labels, classes)
        if len(unknown):
            raise ValueError(f"the {name} split has label {unknown[0]}, the training split has not")
