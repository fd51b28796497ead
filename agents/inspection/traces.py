"""Watching a learner merge: its episodes as numbers for pictures and pages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from agents.evaluation.evaluate import EVALUATION_SEED
from agents.learners.base import Learner
from htm_env.datasets import Dataset
from htm_env.datasets.base import KEY_LIMIT
from htm_env.drawing.trace import Considered, Trace
from htm_env.measures.metrics import nmse_per_sample
from htm_env.trees.merge_tree import MergeTree


@torch.no_grad()
def traces_of(learner: Learner, dataset: Dataset, keys: Sequence[int]) -> list[Trace]:
    """The greedy episodes of the samples with these keys, one a key.

    A policy that draws, such as ``random``, draws anew for every key, so that the tree of a sample
    does not depend on the others.

    Raises ``ValueError`` for a learner that makes no trees, and for keys that the data does not
    have.
    """
    last = (KEY_LIMIT if dataset.size is None else dataset.size) - 1
    for key in keys:
        if not 0 <= key <= last:
            raise ValueError(f"there is no sample {key}: the {dataset.split} split has 0 to {last}")
    return [_trace(learner, dataset, key) for key in keys]


def _trace(learner: Learner, dataset: Dataset, key: int) -> Trace:
    device = learner.device
    batch = dataset.episodes(np.array([key], dtype=np.int64)).to(device)
    generator = torch.Generator(device).manual_seed(EVALUATION_SEED + key)
    merges = learner.plan(batch, generator, greedy=True)
    considered = tuple(
        Considered(nodes.cpu().numpy().astype(np.int64), probabilities.cpu().numpy())
        for nodes, probabilities in learner.pair_probabilities(batch, merges)
    )
    tokens = int(batch.num_tokens)
    merges = merges[0, : tokens - 1]
    # The same sample once for each number of merges, all decoded together.
    forests = merges.expand(tokens, -1, -1).clone()  # (n, n - 1, 2)
    made = torch.arange(tokens - 1, device=merges.device)
    forests[made >= torch.arange(tokens, device=merges.device)[:, None]] = -1
    copies = batch.rows(torch.zeros(tokens, dtype=torch.long, device=merges.device))
    encoded = learner.autoencoder.encode(copies.tokens, copies.present, forests)
    decoded = learner.autoencoder.decode(encoded.population, forests, copies.present)
    errors = nmse_per_sample(decoded, copies.tokens, copies.present, learner.std)
    return Trace(
        tokens=dataset.to_user(batch.tokens[0, :tokens]).cpu().numpy(),
        kind=dataset.kind,
        tree=MergeTree(merges.cpu().numpy(), tokens),
        reconstructions=dataset.to_user(decoded[:, :tokens]).cpu().numpy(),
        errors=errors.double().cpu().numpy(),
        considered=considered,
    )
