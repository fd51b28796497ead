"""What a learner's root embeddings and errors say of labels that it never sees, beside embeddings
of the same samples that are had without learning to merge."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from agents.config.run import Task
from agents.evaluation.encoded import Encoded
from agents.evaluation.evaluate import CHUNK, EVALUATION_SEED
from agents.learners.base import Learner
from htm_env.datasets import SPLITS, Dataset
from htm_env.datasets.width import sorted_tokens
from htm_env.measures.semantics import (
    Labelled,
    pooled_tokens,
    principal_components,
    semantic_scores,
)
from htm_env.types import TokenBatch

COMPONENTS = (16, 32)
"""Principal components of the raw tokens, beside as many as the root has numbers."""
MOST_SAMPLES = 2048
"""Samples of a split that are embedded, at most."""
MOST_NUMBERS = 256
"""Numbers of a sample, above which its tokens themselves are no embedding to probe."""


class Samples(NamedTuple):
    """Samples of a split with their roots and labels."""

    roots: Float[np.ndarray, "N D"]
    tokens: Float[np.ndarray, "N P T"]
    present: Bool[np.ndarray, "N P"]
    labels: Int64[np.ndarray, "N"]


def semantic_table(learner: Learner, task: Task | None = None) -> dict[str, dict[str, float]]:
    """The scores of :func:`htm_env.measures.semantics.semantic_scores` for each embedding that
    :func:`labelled_embeddings` gives, and raises what that does."""
    found = labelled_embeddings(learner, task)
    return {name: semantic_scores(*splits) for name, splits in found.items()}


def labelled_embeddings(learner: Learner, task: Task | None = None) -> dict[str, list[Labelled]]:
    """Embeddings of the samples of the three splits by their names.

    ``root`` is the learner's; ``pca_16``, ``pca_32`` and ``pca_D`` are principal components of the
    raw tokens in sorted order (of Digits: of the pixels), left out where they are as many as the
    numbers of a sample; ``tokens`` these tokens themselves
    (left out where a sample has more than 256 numbers), and ``pooled`` the mean of the
    standardised tokens. The components are fitted on the training split. Of each split 2,048
    samples are taken at most, and a sample whose label the training split does not have is left
    out.

    ``task`` names other data than the learner's. Raises ``ValueError`` for data without labels, and
    where a split has no label of the training split.
    """
    splits, samples = _labelled_samples(learner, task)
    tokens = [sorted_tokens(split.tokens, split.present) for split in samples]
    flat = [rows.reshape(len(rows), -1).astype(np.float64) for rows in tokens]
    statistics = splits[0].mean.numpy(), splits[0].std.numpy()
    widths = {*COMPONENTS, samples[0].roots.shape[1]}
    dims = sorted(dim for dim in widths if dim < flat[0].shape[1])
    embeddings = {
        "root": [split.roots.astype(np.float64) for split in samples],
        **{f"pca_{dim}": principal_components(flat, dim) for dim in dims},
        "tokens": flat,
        "pooled": [pooled_tokens(split.tokens, split.present, *statistics) for split in samples],
    }
    if flat[0].shape[1] > MOST_NUMBERS:
        del embeddings["tokens"]
    labels = [split.labels for split in samples]
    return {name: list(map(Labelled, found, labels)) for name, found in embeddings.items()}


def labelled_roots(learner: Learner, task: Task | None = None) -> list[Labelled]:
    """The row ``root`` of :func:`labelled_embeddings` alone."""
    _, samples = _labelled_samples(learner, task)
    return [Labelled(split.roots.astype(np.float64), split.labels) for split in samples]


def _labelled_samples(learner: Learner, task: Task | None) -> tuple[list[Dataset], list[Samples]]:
    splits = [(learner.task if task is None else task).dataset(split) for split in SPLITS]
    samples = [_samples(learner, dataset) for dataset in splits]
    known = np.unique(samples[0].labels)
    samples = [_chosen(split, np.isin(split.labels, known)) for split in samples]
    for dataset, split in zip(splits, samples, strict=True):
        if not len(split.labels):
            raise ValueError(f"the {dataset.split} split has no label of the training split")
    return splits, samples


def probed_samples(task: Task) -> int:
    """Samples of the test split that :func:`semantic_table` scores."""
    test, train = (
        dataset.labels(spread_keys(dataset)) for dataset in map(task.dataset, ("test", "train"))
    )
    return int(np.isin(test, train).sum())


def spread_keys(dataset: Dataset) -> Int64[np.ndarray, "B"]:
    """Keys evenly spread over a split, 2,048 at most; the first ones of generated data."""
    if dataset.size is None:
        return dataset.fixed_keys(MOST_SAMPLES)
    count = min(dataset.size, MOST_SAMPLES)
    return np.arange(count, dtype=np.int64) * dataset.size // count


@torch.no_grad()
def _samples(learner: Learner, dataset: Dataset) -> Samples:
    """Samples evenly spread over a split, which may be in the order of the labels."""
    if not dataset.has_labels:
        raise ValueError(f"{dataset.name} has no labels; expected data that has")
    keys = spread_keys(dataset)
    batch = dataset.episodes(keys)
    roots = [part.roots for part in _encoded(learner, batch)]
    return Samples(
        torch.cat(roots).cpu().numpy(),
        batch.tokens.numpy(),
        batch.present.numpy(),
        dataset.labels(keys),
    )


def _encoded(learner: Learner, batch: TokenBatch) -> Iterator[Encoded]:
    """Samples along greedy merges, some at a time."""
    generator = torch.Generator(learner.device).manual_seed(EVALUATION_SEED)
    for part in batch.to(learner.device).parts(CHUNK):
        yield learner.encode(part, learner.greedy_trees(part, generator))


def _chosen(samples: Samples, rows: Bool[np.ndarray, "N"]) -> Samples:
    return Samples(*(values[rows] for values in samples))


@torch.no_grad()
def errors_by_label(learner: Learner, dataset: Dataset, count: int) -> dict[str, dict[str, Any]]:
    """The ``nmse`` of the samples of every label, the largest first, and how many they are; the
    ``cost`` of their trees where the merger is known.

    Of the first ``count`` fixed episodes of ``dataset``, along greedy merges. Labels go by their
    names.
    """
    labels, std = dataset.labels(dataset.fixed_keys(count)), dataset.std.to(learner.device)
    encoded = list(_encoded(learner, dataset.fixed(count)))
    errors = torch.cat([part.errors(std) for part in encoded]).double().cpu().numpy()
    name_of_error = "nmse" if encoded[0].costs is None else "cost"
    names = dataset.label_names
    found = {
        str(label) if names is None else names[label]: {
            "samples": int((labels == label).sum()),
            name_of_error: float(errors[labels == label].mean()),
        }
        for label in np.unique(labels).tolist()
    }
    return dict(sorted(found.items(), key=lambda item: -item[1][name_of_error]))
