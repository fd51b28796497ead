"""Probes of a learner's root embeddings for labels, beside embeddings of the same samples that are
had without learning to merge."""

from __future__ import annotations

import numpy as np

from agents.inspection.embeddings import root_embeddings
from agents.learners.base import Learner
from htm_env.datasets import SPLITS
from htm_env.datasets.width import sorted_tokens
from htm_env.measures.semantics import (
    Labelled,
    pooled_tokens,
    principal_components,
    semantic_scores,
)

COMPONENTS = (16, 32)
"""Principal components of the raw tokens, beside as many as the root has numbers."""


def semantic_table(learner: Learner) -> dict[str, dict[str, float]]:
    """The scores of :func:`htm_env.measures.semantics.semantic_scores` for each embedding.

    ``root`` is the learner's; ``pca_16``, ``pca_32`` and ``pca_D`` are principal components of the
    raw tokens in sorted order (of Digits: of the pixels), ``tokens`` these tokens themselves, and
    ``pooled`` the mean of the standardised tokens. All are fitted on the whole training split and
    scored on the whole test split. Raises ``ValueError`` for data without labels.
    """
    splits = [learner.task.dataset(split) for split in SPLITS]
    samples = []
    for dataset in splits:
        if not dataset.has_labels or dataset.size is None:
            raise ValueError(f"{dataset.name} has no labels; expected data that has")
        samples.append(root_embeddings(learner, dataset, dataset.size))
    tokens = [sorted_tokens(split.tokens, split.present) for split in samples]
    flat = [rows.reshape(len(rows), -1).astype(np.float64) for rows in tokens]
    statistics = learner.dataset.mean.numpy(), learner.dataset.std.numpy()
    dims = sorted({*COMPONENTS, samples[0].roots.shape[1]})
    embeddings = {
        "root": [split.roots.astype(np.float64) for split in samples],
        **{f"pca_{dim}": principal_components(flat, dim) for dim in dims},
        "tokens": flat,
        "pooled": [pooled_tokens(split.tokens, split.present, *statistics) for split in samples],
    }
    labels = [split.labels for split in samples if split.labels is not None]  # all have
    return {
        name: semantic_scores(*map(Labelled, found, labels)) for name, found in embeddings.items()
    }
