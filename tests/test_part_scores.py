"""Retrieval and probes of parts on rankings that a person can make."""

from __future__ import annotations

import numpy as np
import pytest

from htm_env.measures.parts import Clades, Nodes, part_scores, probe_scores, retrieval_scores


def directions(*degrees: float) -> np.ndarray:
    """Unit vectors at these angles and opposite ones, so that their mean is the origin."""
    turns = np.deg2rad([*degrees, *(angle + 180 for angle in degrees)])
    return np.stack([np.cos(turns), np.sin(turns)], axis=1)


def nodes(labels, samples, *degrees: float) -> Nodes:
    """Nodes at these angles; their opposites are unlabelled nodes of a sample of their own."""
    opposite = [-1] * len(labels)
    samples = [*samples, *[99] * len(labels)]
    return Nodes(directions(*degrees), np.array([*labels, *opposite]), np.array(samples))


def clades(labels, samples) -> Clades:
    return Clades(np.array(labels), np.array(samples))


def test_average_precision_of_a_ranking_made_by_hand():
    """From the query at 0 degrees: 10 relevant, 20 not, 30 relevant, so (1 + 2/3) / 2. From 10:
    first 0 and 20 equally far, so they are moved apart. The nodes of one sample do not count."""
    made = nodes([7, 7, 3, 7], [0, 1, 2, 3], 0, 11, 20, 31)
    known = clades([7, 7, 3, 7], [0, 1, 2, 3])
    # 0: 11 right, 20, 31 right. 11: 20, 0 right, 31 right. 31: 11 degrees to 20, 11 right, 0 right.
    # Of label 3 there is no other, so it is no query.
    expected = np.mean([(1 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2])
    assert retrieval_scores(made, known) == pytest.approx((expected, expected))


def test_nodes_of_the_own_sample_are_not_retrieved():
    made = nodes([7, 7, 7], [0, 0, 1], 0, 1, 40)
    known = clades([7, 7, 7], [0, 0, 1])
    # Each of the first two finds the third first; the third finds 1, then 0.
    assert retrieval_scores(made, known) == pytest.approx((1.0, 1.0))


def test_a_clade_that_its_tree_lacks_counts_nothing():
    """Of four clades two are found, and find each other; each of the four has three others."""
    made = nodes([7, 7, -1, -1], [0, 1, 2, 3], 0, 1, 90, 91)
    known = clades([7, 7, 7, 7], [0, 1, 2, 3])
    strict, of_found = retrieval_scores(made, known)
    assert strict == pytest.approx((1 / 3 + 1 / 3) / 4)
    assert of_found == pytest.approx(1.0)


def test_without_a_part_that_two_samples_have_there_is_no_retrieval():
    assert retrieval_scores(nodes([7, 8], [0, 1], 0, 90), clades([7, 8], [0, 1])) == (None, None)
    lacking = nodes([7, -1], [0, 1], 0, 90)
    assert retrieval_scores(lacking, clades([7, 7], [0, 1])) == (0.0, None)


def test_the_probe_counts_what_is_lacking_as_wrong_and_leaves_rare_labels_out():
    rng = np.random.default_rng(0)
    labels = np.repeat([4, 5, 6], [20, 20, 3])
    places = np.array([[-9.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    train = Nodes(places[labels - 4] + rng.normal(size=(43, 2)), labels, np.arange(43))
    known = Clades(labels, np.arange(43))
    test = Nodes(places[[0, 1, 2, 1]], np.array([4, 5, 6, -1]), np.arange(4))
    asked = Clades(np.array([4, 5, 6, 5]), np.arange(4))
    # Label 6 has three training clades; the last clade is of label 5, but the tree lacks it.
    assert probe_scores(train, known, test, asked) == pytest.approx((2 / 3, 1.0))
    scores = part_scores(train, known, test, asked)
    assert scores.found == 3 / 4
    assert (scores.probe, scores.probe_of_found) == pytest.approx((2 / 3, 1.0))


def test_a_probe_needs_two_labels():
    train = Nodes(np.eye(12), np.full(12, 4), np.arange(12))
    known = Clades(np.full(12, 4), np.arange(12))
    assert probe_scores(train, known, train, known) == (None, None)
