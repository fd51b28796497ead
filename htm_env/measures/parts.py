"""Retrieval and probes of parts: what the embedding of an inner node says of what its clade is.

Labels serve for the analysis of results only. Everything is numpy; scikit-learn fits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from htm_env.measures.semantics import FIXED_INVERSE_PENALTY
from htm_env.types import NONE

FEWEST = 10
"""Training clades of a label that the probe is fitted to, at least."""
QUERIES = 256
"""Queries whose rankings are computed at once."""
ITERATIONS = 200
"""Of the probe, at most."""


class Nodes(NamedTuple):
    """Inner nodes of the trees of many samples, those over whole samples left out."""

    embeddings: Float[np.ndarray, "M D"]
    labels: Int64[np.ndarray, "M"]
    """Of the labelled clade that the node's leaves are exactly; -1 where they are none."""
    samples: Int64[np.ndarray, "M"]
    """The sample of each node."""


class Clades(NamedTuple):
    """All labelled clades of the same samples, whether the trees have them or not."""

    labels: Int64[np.ndarray, "K"]
    samples: Int64[np.ndarray, "K"]


class PartScores(NamedTuple):
    """Scores of parts, between 0 and 1; None where there is nothing to score."""

    found: float | None
    """The share of the labelled clades that the trees have."""
    retrieval: float | None
    """Mean average precision over all labelled clades."""
    retrieval_of_found: float | None
    """The same over the clades that the trees have, as if there were no others."""
    probe: float | None
    """Accuracy of a linear probe over all labelled clades."""
    probe_of_found: float | None
    """The same over the clades that the trees have."""


def part_scores(train: Nodes, train_clades: Clades, test: Nodes, test_clades: Clades) -> PartScores:
    """Retrieval among the nodes of the test split, and a probe from training nodes to these."""
    retrieval, of_found = retrieval_scores(test, test_clades)
    probe, probe_of_found = probe_scores(train, train_clades, test, test_clades)
    found = float((test.labels != NONE).sum() / len(test_clades.labels))
    return PartScores(found, retrieval, of_found, probe, probe_of_found)


def retrieval_scores(nodes: Nodes, clades: Clades) -> tuple[float | None, float | None]:
    """Mean average precision of finding the same part in other samples.

    A query is a labelled clade, through the node that is exactly this clade. The nodes of all other
    samples are ranked by the cosine of their embeddings with its own, the mean of all nodes taken
    off first; relevant are those with its label. The average precision of a query is the mean, over
    what is relevant, of the precision down to its rank (Manning et al. 2008, "Introduction to
    Information Retrieval", 8.4).

    The first score is over all labelled clades that have their label in common with one of another
    sample. A clade that its own tree lacks counts 0 as a query, and one that another tree lacks is
    relevant and never found, so trees of few right parts score little. The second score leaves out
    both. None where there is no such query.
    """
    possible = _others(clades.labels, clades.samples, clades.labels, clades.samples)
    is_query = (nodes.labels != NONE).nonzero()[0]
    labels, samples = nodes.labels[is_query], nodes.samples[is_query]
    relevant = _others(labels, samples, clades.labels, clades.samples)
    present = _others(labels, samples, nodes.labels, nodes.samples)
    directions = centred_directions(nodes.embeddings)
    summed = np.zeros(len(is_query))  # the precisions at all relevant nodes
    for start in range(0, len(is_query), QUERIES):
        rows = slice(start, start + QUERIES)
        similarities = directions[is_query[rows]] @ directions.T  # (Q, M)
        own = nodes.samples == samples[rows, None]
        ranked = np.argsort(np.where(own, np.inf, -similarities), axis=1, kind="stable")
        hits = (nodes.labels == labels[rows, None]) & ~own
        hits = np.take_along_axis(hits, ranked, axis=1)
        precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
        summed[rows] = (precision * hits).sum(axis=1)
    queries, here = int((possible > 0).sum()), present > 0
    precisions = summed / np.maximum(relevant, 1)
    return (
        float(precisions.sum() / queries) if queries else None,
        float((summed[here] / present[here]).mean()) if here.any() else None,
    )


def centred_directions(embeddings: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "M D"]:
    """Embeddings minus their mean, of length 1, whose products are cosines; zeros where nothing is
    left."""
    centred = embeddings.astype(np.float64) - embeddings.mean(axis=0, dtype=np.float64)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    directions: np.ndarray = centred / np.where(lengths > 0, lengths, 1.0)
    return directions


def probe_scores(
    train: Nodes, train_clades: Clades, test: Nodes, test_clades: Clades
) -> tuple[float | None, float | None]:
    """Accuracy of a multinomial logistic regression (``C = 1``) that reads the label of a clade
    from the standardised embedding of its node.

    It is fitted to the training nodes that are labelled clades, and scored on the clades of the
    test split. Labels of fewer than 10 clades of the training split, found or not, are left out. A
    clade that its tree lacks counts as wrong in the first score, and is left out of the second.
    None where the training nodes have fewer than two labels, or nothing is to be scored.
    """
    names, counts = np.unique(train_clades.labels, return_counts=True)
    names = names[counts >= FEWEST]
    known, asked = np.isin(train.labels, names), np.isin(test.labels, names)
    total = int(np.isin(test_clades.labels, names).sum())
    if not total:
        return None, None
    if not asked.any():
        return 0.0, None
    if len(np.unique(train.labels[known])) < 2:
        return None, None
    logistic = LogisticRegression(C=FIXED_INVERSE_PENALTY, max_iter=ITERATIONS, tol=1e-3)
    model = make_pipeline(StandardScaler(), logistic)
    model.fit(train.embeddings[known], train.labels[known])
    right: Bool[np.ndarray, "_"] = model.predict(test.embeddings[asked]) == test.labels[asked]
    return float(right.sum() / total), float(right.mean())


def _others(
    labels: Int64[np.ndarray, "Q"],
    samples: Int64[np.ndarray, "Q"],
    among: Int64[np.ndarray, "K"],
    of: Int64[np.ndarray, "K"],
) -> Int64[np.ndarray, "Q"]:
    """How many of ``among``, which are ``of`` these samples, have each label in other samples."""
    same = labels[:, None] == among
    counts: np.ndarray = (same & (samples[:, None] != of)).sum(axis=1)
    return counts
