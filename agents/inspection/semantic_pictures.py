"""Pictures of what roots, inner nodes and trees of test samples mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64, UInt8
from sklearn.manifold import TSNE

from agents.config.run import Task
from agents.evaluation.yardsticks import bounded
from agents.inspection.embeddings import RootEmbeddings, root_embeddings
from agents.inspection.parts import LabelledTrees, labelled_trees
from agents.learners.base import Learner
from htm_env.datasets import Dataset
from htm_env.drawing.figures.parts import (
    MOST_COLOURS,
    Neighbours,
    Part,
    SampleWithGroups,
    islands_of_parts_figure,
    label_map_figure,
    neighbours_figure,
    trees_beside_groups_figure,
)
from htm_env.drawing.figures.roots import principal_plane, thumbnails
from htm_env.measures.parts import Nodes, centred_directions
from htm_env.trees.merge_tree import MergeTree
from htm_env.types import NONE

QUERIES, NEIGHBOURS = 6, 7
"""Rows of a picture of neighbours, and neighbours of a row."""
MAPPED = 800
"""Nodes of a map, at most."""
SHOWN = 24
"""Samples beside a map of nodes."""
SAMPLES = 6
"""Trees beside the groups of the data."""
READABLE = (5, 9)
"""Tokens of these samples, where the data has six such."""
FEWEST = 12
"""Embeddings of a map by neighbourhoods; fewer are along principal components."""


def semantic_figures(learner: Learner, task: Task, count: int) -> Iterator[tuple[str, Any]]:
    """Matplotlib figures by their names, of the first ``count`` test samples (fewer of large sets).

    ``roots_map`` and ``roots_nearest`` where the data has labels, ``parts_nearest`` and
    ``parts_map`` where it has labelled clades, ``trees`` where it has clades. Nothing of trees
    where the learner makes none. Samples are taken in the order of the split, not by how well they
    look.
    """
    test = task.dataset("test")
    count = bounded(count, test)
    if test.has_labels and test.label_names is not None:
        roots = root_embeddings(learner, test, count)
        if len(roots.roots) > 1:
            yield "roots_map", _roots_map(roots, test)
            yield "roots_nearest", _nearest_roots(roots, test)
    trees = labelled_trees(learner, test, test.fixed_keys(count))
    if trees is None:
        return
    shown = _Shown(test, trees)
    nodes = trees.as_nodes()
    if test.clade_label_names is not None and (nodes.labels != NONE).any():
        yield "parts_nearest", _nearest_parts(shown, nodes)
        yield "parts_map", _parts_map(shown, nodes)
    if trees.batch.clades.any():
        yield "trees", trees_figure(learner, test)


def trees_figure(learner: Learner, dataset: Dataset, count: int = SAMPLES) -> Any:
    """The first samples of ``dataset`` that have from 5 to 9 tokens and at least two clades, each
    beside its greedy tree; any others where there are none.

    Raises ``ValueError`` where the learner makes no trees.
    """
    keys = dataset.fixed_keys(min(512, dataset.size or 512))
    batch = dataset.episodes(keys)
    tokens, clades = batch.num_tokens.numpy(), batch.clades.any(2).sum(1).numpy()
    good = (tokens >= READABLE[0]) & (tokens <= READABLE[1]) & (clades >= 2)
    chosen = keys[np.argsort(~good, kind="stable")[:count]]
    trees = labelled_trees(learner, dataset, chosen)
    if trees is None:
        raise ValueError(f"{learner.algo} makes no trees; expected a learner that merges")
    shown = _Shown(dataset, trees)
    return trees_beside_groups_figure(
        [shown.beside_groups(sample) for sample in range(len(chosen))], dataset.kind
    )


# ---------------------------------------------------------------- samples and parts


class _Shown(NamedTuple):
    """Samples as pictures take them."""

    dataset: Dataset
    trees: LabelledTrees

    def tokens(self, sample: int) -> np.ndarray:
        batch = self.trees.batch
        present = batch.tokens[sample, : int(batch.num_tokens[sample])]
        return self.dataset.to_user(present).numpy()

    def part(self, sample: int, node: int) -> Part:
        tokens = self.tokens(sample)
        label = int(self.trees.labels[sample, node])
        names = self.dataset.clade_label_names
        name = "" if label == NONE or names is None else names[label]
        return Part(tokens, self.trees.leaves[sample, node, : len(tokens)].numpy(), name)

    def beside_groups(self, sample: int) -> SampleWithGroups:
        tokens, trees = self.tokens(sample), self.trees
        merges = trees.merges[sample, : len(tokens) - 1].numpy()
        groups = trees.batch.clades[sample, :, : len(tokens)].numpy()
        return SampleWithGroups(tokens, MergeTree(merges, len(tokens)), groups[groups.any(axis=1)])


# ---------------------------------------------------------------- roots


def _roots_map(roots: RootEmbeddings, test: Dataset) -> Any:
    assert roots.labels is not None and test.label_names is not None

    def draw(rows: list[int]) -> UInt8[np.ndarray, "_ pixels pixels 3"]:
        return thumbnails(roots.tokens[rows], roots.present[rows], test.kind)

    title = f"roots of {len(roots.roots)} test samples, neighbours near each other (t-SNE)"
    return label_map_figure(_mapped(roots.roots), roots.labels, test.label_names, draw, title)


def _nearest_roots(roots: RootEmbeddings, test: Dataset) -> Any:
    assert roots.labels is not None and test.label_names is not None
    directions = centred_directions(roots.roots)

    def part(sample: int) -> Part:
        assert roots.labels is not None and test.label_names is not None
        present = roots.present[sample]
        name = test.label_names[int(roots.labels[sample])]
        return Part(roots.tokens[sample][present], np.ones(present.sum(), dtype=bool), name)

    rows = []
    for query in _first_of_frequent(roots.labels, QUERIES):
        similarities = directions @ directions[query]
        similarities[query] = -np.inf
        nearest = np.argsort(-similarities, kind="stable")[: min(NEIGHBOURS, len(directions) - 1)]
        same = (roots.labels[nearest] == roots.labels[query]).tolist()
        rows.append(Neighbours(part(query), [part(sample) for sample in nearest.tolist()], same))
    title = "samples and those with the nearest roots; framed in green: the same label"
    return neighbours_figure(rows, test.kind, title)


# ---------------------------------------------------------------- inner nodes


def _nearest_parts(shown: _Shown, nodes: Nodes) -> Any:
    directions = centred_directions(nodes.embeddings)
    places = shown.trees.inner_nodes()
    rows = []
    for query in _first_of_frequent(nodes.labels, QUERIES):
        similarities = directions @ directions[query]
        similarities[nodes.samples == nodes.samples[query]] = -np.inf
        ranked = np.argsort(-similarities, kind="stable")
        nearest = ranked[np.isfinite(similarities[ranked])][:NEIGHBOURS]
        same = (nodes.labels[nearest] == nodes.labels[query]).tolist()
        rows.append(
            Neighbours(
                shown.part(*places[query].tolist()),
                [shown.part(*places[node].tolist()) for node in nearest.tolist()],
                same,
            )
        )
    title = "parts, and the nearest nodes of other samples; framed in green: the same label"
    return neighbours_figure(rows, shown.dataset.kind, title)


def _parts_map(shown: _Shown, nodes: Nodes) -> Any:
    assert shown.dataset.clade_label_names is not None
    frequent = _frequent(nodes.labels, MOST_COLOURS)
    is_mine = np.isin(nodes.labels, frequent)
    mine = np.flatnonzero(is_mine)[:MAPPED]
    chosen = np.sort(np.concatenate([mine, _spread(np.flatnonzero(~is_mine), MAPPED - len(mine))]))
    samples = []
    for sample in _samples_with(nodes, frequent):
        tokens = shown.tokens(sample)
        labels = np.full(len(tokens), NONE, dtype=np.int64)
        inner = np.flatnonzero(np.isin(shown.trees.labels[sample].numpy(), frequent))
        sizes = shown.trees.leaves[sample].sum(1).numpy()
        for node in sorted(inner.tolist(), key=lambda node: sizes[node]):  # the largest last
            members = shown.trees.leaves[sample, node, : len(tokens)].numpy()
            labels[members] = int(shown.trees.labels[sample, node])
        samples.append((tokens, labels))
    return islands_of_parts_figure(
        _mapped(nodes.embeddings[chosen]),
        np.where(is_mine[chosen], nodes.labels[chosen], NONE),
        shown.dataset.clade_label_names,
        samples,
        shown.dataset.kind,
        f"{len(chosen)} inner nodes, neighbours near each other (t-SNE), and samples with the same "
        "parts in the same colours",
    )


def _spread(rows: Int64[np.ndarray, "N"], most: int) -> Int64[np.ndarray, "_"]:
    """Some of the rows, evenly spread."""
    count = min(len(rows), most)
    chosen: np.ndarray = rows[np.arange(count) * len(rows) // max(count, 1)]
    return chosen


def _samples_with(nodes: Nodes, frequent: list[int]) -> list[int]:
    """Samples that have a part of one of these labels: the first ones of each label in turn."""
    queues = [
        list(dict.fromkeys(nodes.samples[nodes.labels == label].tolist())) for label in frequent
    ]
    found: dict[int, None] = {}
    for turn in range(max(map(len, queues))):
        found |= dict.fromkeys(queue[turn] for queue in queues if turn < len(queue))
    return list(found)[:SHOWN]


def _frequent(labels: Int64[np.ndarray, "N"], most: int) -> list[int]:
    """The most frequent labels, but -1; of equally frequent ones the first."""
    values, counts = np.unique(labels[labels != NONE], return_counts=True)
    found: list[int] = values[np.argsort(-counts, kind="stable")][:most].tolist()
    return found


def _first_of_frequent(labels: Int64[np.ndarray, "N"], most: int) -> list[int]:
    """The first row of each of the most frequent labels."""
    return [int(np.flatnonzero(labels == label)[0]) for label in _frequent(labels, most)]


def _mapped(embeddings: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N 2"]:
    """Places in the plane that keep neighbours near each other (van der Maaten and Hinton 2008,
    "Visualizing data using t-SNE"), with the same random numbers every time."""
    if len(embeddings) < FEWEST:
        return principal_plane(embeddings).places
    perplexity = min(30.0, (len(embeddings) - 1) / 4)
    tsne = TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=0)
    places: np.ndarray = tsne.fit_transform(centred_directions(embeddings))
    return places
