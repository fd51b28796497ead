"""The benchmark of objectives: which labels count, and what is embedded."""

from __future__ import annotations

import numpy as np
import torch

from agents.config.run import RunConfig
from agents.registry import build_learner
from benchmarks.objectives import PROBLEMS, embeddings, labelled, objectives, trained
from htm_env.views import ViewConfig


def test_labels_with_too_few_training_samples_do_not_count():
    problem = PROBLEMS["digits"]._replace(least=2)
    labels = [np.array([3, 3, 5]), np.array([3, 5]), np.array([5, 3, 3])]
    rows = [np.arange(len(own), dtype=float)[:, None] for own in labels]
    found = labelled(problem, rows, labels)
    assert [split.embeddings[:, 0].tolist() for split in found] == [[0, 1], [0], [1, 2]]
    assert all(set(split.labels) == {3} for split in found)


def test_the_mean_of_inner_nodes_is_that_of_every_merge():
    learner = build_learner(RunConfig("HTM-Digits-v0", algo="balanced_sorted", embedding_dim=4))
    dataset = learner.task.dataset("validation")
    roots, means = embeddings(learner, dataset).values()
    assert roots.shape == means.shape == (180, 4)
    one = dataset.fixed(1)
    merges = learner.plan(one, torch.Generator(), greedy=True)
    nodes = learner.autoencoder.encode(one.tokens, one.present, merges).nodes[0, 16:]
    assert np.allclose(means[0], nodes.detach().mean(dim=0), atol=1e-5)
    assert np.allclose(roots[0], nodes[-1].detach(), atol=1e-5)


def test_reconstruction_alone_has_no_views():
    made = objectives(PROBLEMS["kanji"].views)
    assert made["reconstruction"].views == ViewConfig()
    assert not made["contrast"].views.on
    assert made["agreement"].views.agree
    assert not made["agreement"].views.inner


def test_untrained_has_initial_weights():
    problem = PROBLEMS["digits"]._replace(merges=30)
    first, again, other = (
        trained(problem, objective, 1).autoencoder.weights_hash()
        for objective in ("untrained", "untrained", "reconstruction")
    )
    assert first == again != other
