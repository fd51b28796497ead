"""The root embeddings that a learner gives to the samples of a split."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from agents.evaluation.evaluate import CHUNK, EVALUATION_SEED
from agents.learners.base import Learner
from htm_env.datasets import Dataset


class RootEmbeddings(NamedTuple):
    """Samples, and what a learner makes of each."""

    roots: Float[np.ndarray, "B D"]
    tokens: Float[np.ndarray, "B P T"]
    """Raw coordinates; zeros in empty slots."""
    present: Bool[np.ndarray, "B P"]
    labels: Int64[np.ndarray, "B"] | None
    """The class of each sample; None where the data does not say. No learner sees them."""


@torch.no_grad()
def root_embeddings(
    learner: Learner, dataset: Dataset, count: int, seed: int = EVALUATION_SEED
) -> RootEmbeddings:
    """The roots of the first ``count`` fixed samples of ``dataset``, along greedy merges.

    They are the trees that ``agents/evaluation/evaluate.py`` scores; ``seed`` is for policies
    that draw even so. Raises ``ValueError`` where ``count`` is less than one.
    """
    episodes = dataset.fixed(count)
    generator = torch.Generator(learner.device).manual_seed(seed)
    roots = []
    for batch in episodes.to(learner.device).parts(CHUNK):
        trees = learner.greedy_trees(batch, generator)
        roots.append(learner.encode(batch, trees).roots)
    return RootEmbeddings(
        roots=torch.cat(roots).cpu().numpy(),
        tokens=episodes.tokens.numpy(),
        present=episodes.present.numpy(),
        labels=dataset.labels(dataset.fixed_keys(count)) if dataset.has_labels else None,
    )
