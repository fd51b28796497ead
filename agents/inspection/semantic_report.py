"""Measures of what embeddings and trees mean, of one run and of others beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from agents.config.run import Task
from agents.evaluation.evaluate import CHUNK, EVALUATION_SEED, tree_scores
from agents.evaluation.yardsticks import bounded
from agents.inspection.embeddings import root_embeddings
from agents.inspection.parts import LabelledTrees, labelled_trees
from agents.inspection.probes import MOST_SAMPLES, labelled_roots, spread_keys
from agents.learners.base import Learner
from htm_env.datasets import Dataset
from htm_env.measures.intervals import Interval, Mean, bootstrap_interval, mean_with_error
from htm_env.measures.parts import Nodes, PartScores, part_scores
from htm_env.measures.semantics import (
    SHOTS,
    Labelled,
    effective_rank,
    few_shot_classes,
    few_shot_scores,
    principal_components,
    semantic_scores,
)
from htm_env.measures.stability import Changed, jittered, stability, without_one
from htm_env.types import TokenBatch

THIS_RUN = "root"
"""The row of the run that is evaluated: the name of its embedding among the plainer ones."""
AGREEMENT = ("tree_f1", "tree_recall", "tree_exact_f1", "tree_robinson_foulds")
"""Scores of agreement that get an interval."""


class Change(NamedTuple):
    """A way to change samples."""

    least_tokens: int
    """Tokens of a sample, below which all trees are the same afterwards."""
    make: Callable[[TokenBatch, Dataset, torch.Generator], Changed]


CHANGES = {
    "jittered": Change(
        3,
        lambda batch, dataset, generator: jittered(
            batch, dataset.std, generator, categories=sum(dataset.categories)
        ),
    ),
    "one_token_dropped": Change(4, lambda batch, _, generator: without_one(batch, generator)),
}
"""Changes that a tree should survive."""


@dataclass(frozen=True)
class SemanticReport:
    """Measures by the name of the embedding or run; what the data has no labels or clades for is
    left out."""

    embeddings: dict[str, dict[str, float]]
    """Scores of :func:`semantic_scores` where the data has labels, and ``effective_rank``."""
    few_shot: dict[str, dict[int, Mean]]
    """By the number of labels a class. Every coordinate has a scale of its own; principal
    components also all one scale, in a row ``pca_D, one scale``."""
    few_shot_classes: int
    few_shot_samples: int
    """Test samples of these classes."""
    parts: dict[str, PartScores]
    """Also of ``pca_D``: principal components of the tokens under each node of the first run."""
    part_queries: int
    """Labelled clades of the test samples."""
    agreement: dict[str, dict[str, Interval]]
    """Of the greedy trees with the data's own clades, over the test samples."""
    stability: dict[str, dict[str, Mean]]
    """Share of a tree's clades that are still there after a change, over the test samples."""

    def as_dict(self) -> dict[str, Any]:
        """Nested dictionaries of numbers, as JSON holds them."""
        found = asdict(self)
        for name, of in (("few_shot", found["few_shot"]), ("agreement", found["agreement"])):
            found[name] = {
                row: {str(key): value._asdict() for key, value in values.items()}
                for row, values in of.items()
            }
        found["stability"] = {
            row: {key: value._asdict() for key, value in values.items()}
            for row, values in self.stability.items()
        }
        found["parts"] = {row: scores._asdict() for row, scores in self.parts.items()}
        return found


def semantic_report(
    learner: Learner,
    task: Task,
    against: Mapping[str, Learner],
    embeddings: Mapping[str, list[Labelled]],
    scores: Mapping[str, Mapping[str, float]],
    count: int,
    on_measure: Callable[[str], None] = lambda what: None,
) -> SemanticReport:
    """All measures of a learner, of ``against``, other learners by their names, and of plainer
    embeddings of the same samples.

    Trees and roots are those of greedy merges. Embeddings are compared on what
    :func:`agents.inspection.probes.labelled_embeddings` takes, parts on as many samples of the
    training and the test split, agreement and stability on the first ``count`` test samples (fewer
    of large sets).

    Args:
        learner: its rows are called ``root``.
        task: the data of all rows.
        against: learners of tokens of the same dimension.
        embeddings: of the learner, those of ``labelled_embeddings``; empty without labels.
        scores: of these, from ``semantic_scores``; empty without labels.
        count: test samples.
        on_measure: is told what is measured next, in a few words.
    """
    learners = {THIS_RUN: learner, **against}
    train, test = task.dataset("train"), task.dataset("test")
    splits = dict(embeddings)
    table = {name: dict(row) for name, row in scores.items()}
    if embeddings:
        for name, other in against.items():
            on_measure(f"roots of {name}")
            splits[name] = labelled_roots(other, task)
            table[name] = semantic_scores(*splits[name])
        ranked = {name: found[0].embeddings for name, found in splits.items()}
    else:
        ranked = {
            name: root_embeddings(one, train, MOST_SAMPLES).roots for name, one in learners.items()
        }
    for name, rows in ranked.items():
        table.setdefault(name, {})["effective_rank"] = effective_rank(rows)
    on_measure("few labels")
    few_shot, classes, samples = _few_shot(splits)
    parts: dict[str, PartScores] = {}
    queries = 0
    agreement, stable = {}, {}
    for name, one in learners.items():
        shown = "this run" if name == THIS_RUN else name
        on_measure(f"trees of {shown}")
        tested = labelled_trees(one, test, test.fixed_keys(bounded(count, test)))
        if tested is None:
            continue
        agreement[name] = _agreement(tested)
        stable[name] = _stability(one, test, tested)
        if test.clade_label_names is None:
            continue
        trees = [labelled_trees(one, split, spread_keys(split)) for split in (train, test)]
        labelled = [split for split in trees if split is not None]
        queries = len(labelled[1].as_clades().labels)
        if not queries:
            continue
        on_measure(f"parts of {shown}")
        parts[name] = _parts(labelled, [split.as_nodes() for split in labelled])
        if name == THIS_RUN:
            dim = labelled[1].nodes.shape[2]
            parts[f"pca_{dim}"] = _parts(labelled, _principal_parts(labelled, dim))
    return SemanticReport(table, few_shot, classes, samples, parts, queries, agreement, stable)


def _few_shot(
    splits: Mapping[str, list[Labelled]],
) -> tuple[dict[str, dict[int, Mean]], int, int]:
    """Scores by embedding, classes and test samples, for as many labels a class as two classes
    have."""
    if not splits:
        return {}, 0, 0
    train, _, test = next(iter(splits.values()))
    shots = [count for count in SHOTS if len(few_shot_classes(train.labels, (count,))) > 1]
    classes = few_shot_classes(train.labels, shots)
    samples = int(np.isin(test.labels, classes).sum())
    if not samples:
        return {}, 0, 0
    found = {}
    for name, (fitted, _, held_out) in splits.items():
        found[name] = few_shot_scores(fitted, held_out, shots)
        if re.fullmatch(r"pca_\d+", name):
            found[f"{name}, one scale"] = few_shot_scores(fitted, held_out, shots, one_scale=True)
    return found, len(classes), samples


def _parts(trees: Sequence[LabelledTrees], nodes: Sequence[Nodes]) -> PartScores:
    """Scores of the nodes of the training and the test split."""
    (train, test), (train_clades, test_clades) = nodes, [split.as_clades() for split in trees]
    return part_scores(train, train_clades, test, test_clades)


def _principal_parts(trees: Sequence[LabelledTrees], dim: int) -> list[Nodes]:
    """The same nodes with principal components of their sorted tokens as embeddings."""
    components = principal_components([split.sorted_parts() for split in trees], dim)
    return [
        split.as_nodes()._replace(embeddings=embeddings)
        for split, embeddings in zip(trees, components, strict=True)
    ]


def _agreement(trees: LabelledTrees) -> dict[str, Interval]:
    generator = np.random.default_rng(EVALUATION_SEED)
    scores = tree_scores(trees.batch, trees.merges)
    found = {
        name: bootstrap_interval(scores[name].double().numpy(), generator) for name in AGREEMENT
    }
    return {name: interval for name, interval in found.items() if interval is not None}


def _stability(learner: Learner, test: Dataset, trees: LabelledTrees) -> dict[str, Mean]:
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    found = {}
    for name, change in CHANGES.items():
        rows = (trees.batch.num_tokens >= change.least_tokens).nonzero()[:, 0]
        if not len(rows):
            continue
        batch, merges = trees.batch.rows(rows), trees.merges[rows]
        changed = change.make(batch, test, generator)
        made = _greedy(learner, changed.batch)
        shares = [
            stability(*part)
            for part in zip(
                batch.parts(CHUNK),
                merges.split(CHUNK),
                _changed_parts(changed),
                made.split(CHUNK),
                strict=True,
            )
        ]
        mean = mean_with_error(torch.cat(shares).double().numpy())
        if mean is not None:
            found[name] = mean
    return found


def _changed_parts(changed: Changed) -> list[Changed]:
    slots: tuple[Int64[Tensor, "_ P"], ...] = changed.slots.split(CHUNK)
    return [
        Changed(batch, here) for batch, here in zip(changed.batch.parts(CHUNK), slots, strict=True)
    ]


@torch.no_grad()
def _greedy(learner: Learner, batch: TokenBatch) -> Int64[Tensor, "B M 2"]:
    """Trees with other random numbers than those of :func:`labelled_trees`: a policy that draws is
    not stable because it draws the same."""
    generator = torch.Generator(learner.device).manual_seed(EVALUATION_SEED + 1)
    parts = batch.to(learner.device).parts(CHUNK)
    return torch.cat([learner.greedy_trees(part, generator).cpu() for part in parts])
