"""Yardsticks: errors that are had without the policy, or without any tree."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agents.config.options import TEST_EPISODES
from agents.evaluation.evaluate import CHUNK, EVALUATION_SEED, Planner, root_errors
from agents.fixed import fixed_policy
from htm_env.autoencoder import TreeEncoder
from htm_env.datasets import Dataset
from htm_env.datasets.width import sorted_tokens
from htm_env.measures.intervals import Mean
from htm_env.measures.metrics import nmse_per_sample
from htm_env.measures.semantics import principal_reconstruction
from htm_env.types import TokenBatch

ORDERS = ("nearest_sorted", "nearest", "random")
"""Fixed orders whose trees go through a run's own autoencoder."""
BY_RETURN = ("greedy", "nearest", "random")
"""Fixed orders beside a run whose merger is known."""
MOST_PAIRS = 2**26
"""Pairs of tokens over all samples whose trees are made, so that large sets take seconds."""
TRAINING_SAMPLES = 4096
"""Training samples that the mean and the principal components are fitted on, at most."""
MOST_NUMBERS = 2**24
"""And the numbers in them."""


def tree_yardsticks(
    autoencoder: TreeEncoder,
    dataset: Dataset,
    count: int = TEST_EPISODES,
    seed: int = EVALUATION_SEED,
    orders: tuple[str, ...] = ORDERS,
) -> dict[str, float]:
    """The ``nmse`` of an autoencoder along fixed orders instead of a policy's trees.

    On the first ``count`` fixed episodes of ``dataset``, or as many as are made in seconds; for
    data with a hierarchy also along its ``own_hierarchy``.
    """
    device = autoencoder.token_mean.device
    batches = list(dataset.fixed(bounded(count, dataset)).to(device).parts(CHUNK))
    std = dataset.std.to(device)
    errors = {}
    for name in orders:
        plan = fixed_policy(name, autoencoder, dataset).plan
        generator = torch.Generator(device).manual_seed(seed)  # whatever other orders there are
        found = [root_errors(autoencoder, part, plan(part, generator), std) for part in batches]
        errors[name] = torch.cat(found)
    if dataset.has_hierarchy and orders == ORDERS:
        found = [root_errors(autoencoder, part, part.merges, std) for part in batches]
        errors["own_hierarchy"] = torch.cat(found)
    return {name: float(values.double().mean()) for name, values in errors.items()}


def planners_of_returns(autoencoder: TreeEncoder, dataset: Dataset) -> dict[str, Planner]:
    """What a run is held against where the merger is known: fixed orders, and the data's own
    hierarchy if it has one."""
    policies = [fixed_policy(name, autoencoder) for name in BY_RETURN]
    orders: dict[str, Planner] = {
        policy.rule.name: policy for policy in policies if policy.rule.suits(dataset, autoencoder)
    }
    if dataset.has_hierarchy:
        return {"own_hierarchy": fixed_policy("structure_canonical", autoencoder), **orders}
    return orders


def mean_and_error(values: Float[Tensor, "N"]) -> Mean:
    """The mean of samples' values, with its standard error over the samples."""
    error = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else None
    return Mean(float(values.mean()), error)


def bounded(count: int, dataset: Dataset) -> int:
    """A number of episodes: ``count`` of small sets, fewer of large ones."""
    return max(1, min(count, MOST_PAIRS // dataset.max_tokens**2))


def plain_yardsticks(
    dataset: Dataset, training: Dataset, dim: int | None, count: int = TEST_EPISODES
) -> dict[str, float]:
    """The ``nmse`` of what has no tree: ``dim`` principal components (None: without), and the mean.

    On the first ``count`` fixed episodes of ``dataset``, fitted on its ``training`` split. The
    numbers of a sample are its standardised tokens in sorted order, with zeros in empty slots; how
    many tokens there are is known, as it is to a decoder.
    """
    rows, present = _as_rows(dataset.fixed(count), training)
    found = {"mean": np.zeros_like(rows)}
    if dim is not None:
        most = MOST_NUMBERS // (training.max_tokens * training.token_dim)
        train, _ = _as_rows(training.fixed(max(2, min(TRAINING_SAMPLES, most))), training)
        found["principal_components"] = principal_reconstruction(train, rows, dim)
    shape, ones = (*present.shape, dataset.token_dim), torch.ones(dataset.token_dim)
    tokens, *decoded = (
        torch.from_numpy(values.reshape(shape)).float() for values in (rows, *found.values())
    )
    errors = (nmse_per_sample(each, tokens, present, ones).double() for each in decoded)
    return {name: float(error.mean()) for name, error in zip(found, errors, strict=True)}


def _as_rows(
    batch: TokenBatch, training: Dataset
) -> tuple[Float[np.ndarray, "N F"], Bool[Tensor, "N P"]]:
    """Standardised tokens in sorted order, the numbers of a sample in one row."""
    standardised = ((batch.tokens - training.mean) / training.std).numpy()
    rows = sorted_tokens(standardised, batch.present.numpy()).astype(np.float64)
    present = torch.arange(rows.shape[1]) < batch.num_tokens[:, None]
    return rows.reshape(len(rows), -1), present
