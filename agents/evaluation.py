"""How good a policy and its autoencoder are together, on fixed episodes of a split."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from htm_env.autoencoder import HTMAutoencoder
from htm_env.classifier_scores import classifier_scores
from htm_env.datasets import Dataset
from htm_env.forest import leaf_sets, tree_height
from htm_env.metrics import clade_scores, mean_or_none, nmse_per_sample
from htm_env.types import TokenBatch

TEST_EPISODES = 1000
"""Held-out episodes of a result, where the data has as many."""
VALIDATION_EPISODES = 256
EVALUATION_SEED = 0
"""Draws of policies that draw: the same ones in every evaluation of every run."""
CHUNK = 256
"""Episodes evaluated at once; bounds the memory and changes no number."""


@runtime_checkable
class Planner(Protocol):
    """Whatever makes whole trees, such as ``Learner.plan``."""

    def __call__(
        self, batch: TokenBatch, generator: torch.Generator, *, greedy: bool
    ) -> Int64[Tensor, "B M 2"]: ...


@torch.no_grad()
def evaluate(
    plan: Planner,
    autoencoder: HTMAutoencoder,
    dataset: Dataset,
    count: int = TEST_EPISODES,
    seed: int = EVALUATION_SEED,
    *,
    sampled: bool = True,
) -> dict[str, float | None]:
    """Scores over the first ``count`` fixed episodes of ``dataset``, each weighing the same.

    Gives ``nmse`` (merges chosen greedily), ``sampled_nmse`` (merges drawn from the policy; left
    out if not ``sampled``), and of the greedy trees ``tree_recall`` and ``tree_f1`` (None for data
    without a hierarchy), ``mean_height`` and the leaf classifier's four accuracies
    (:func:`htm_env.classifier_scores.classifier_scores`). Finite data gives each row once, so
    perhaps fewer episodes. ``seed`` makes everything repeatable; no other generator is touched.

    Raises ``ValueError`` where ``count`` is less than one or the plan leaves several trees.
    """
    device = autoencoder.token_mean.device
    std = dataset.std.to(device)
    episodes = dataset.fixed(count).to(device)
    greedy_generator = torch.Generator(device).manual_seed(seed)
    sampling_generator = torch.Generator(device).manual_seed(seed + 1)
    scores: dict[str, list[Tensor]] = {}
    for start in range(0, len(episodes.tokens), CHUNK):
        batch = episodes.rows(slice(start, start + CHUNK))
        merges = plan(batch, greedy_generator, greedy=True)
        chunk = {"nmse": root_errors(autoencoder, batch, merges, std)}
        if sampled:
            drawn = plan(batch, sampling_generator, greedy=False)
            chunk["sampled_nmse"] = root_errors(autoencoder, batch, drawn, std)
        clades = leaf_sets(merges, batch.num_tokens)  # (B, N, P); single leaves never count
        found = clade_scores(clades, batch.clades, batch.present)
        chunk["tree_recall"], chunk["tree_f1"] = found.recall, found.f1
        chunk["mean_height"] = tree_height(merges, batch.num_tokens)
        chunk |= classifier_scores(autoencoder, batch, merges)
        for name, values in chunk.items():
            scores.setdefault(name, []).append(values.double())
    means = {name: torch.cat(values) for name, values in scores.items()}
    # A share is NaN where there is nothing to find; an error that is NaN has to be seen.
    shares = ("tree_", "classifier_")
    return {
        name: mean_or_none(values) if name.startswith(shares) else float(values.mean())
        for name, values in means.items()
    }


@torch.no_grad()
def root_errors(
    autoencoder: HTMAutoencoder,
    batch: TokenBatch,
    merges: Int64[Tensor, "B M 2"],
    std: Float[Tensor, "T"],
) -> Float[Tensor, "B"]:
    """The ``nmse`` of every sample, decoded from its root alone, without noise."""
    roots = autoencoder.encode(batch.tokens, batch.present, merges).roots
    decoded = autoencoder.decode(roots, merges, batch.present)
    return nmse_per_sample(decoded, batch.tokens, batch.present, std)
