"""Bits that the samples of a split cost, and their error where the decoder is not told the tree."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from agents.config.options import TEST_EPISODES
from agents.evaluation.evaluate import CHUNK, EVALUATION_SEED, Planner, planned
from htm_env.autoencoder import TreeEncoder
from htm_env.datasets import Dataset
from htm_env.generation.untold import untold_errors
from htm_env.measures.description import PRECISION, DescriptionCode
from htm_env.types import TokenBatch

TRAINING_SAMPLES, TRAINING_TOKENS = 1024, 2**16
"""Samples that probabilities are fitted on, at most, and tokens that they could have together."""
PARTS_OF_BITS = ("tree", "root", "residual", "total")


@torch.no_grad()
def described(
    planner: Planner,
    autoencoder: TreeEncoder,
    dataset: Dataset,
    training: Dataset,
    count: int = TEST_EPISODES,
    precision: float = PRECISION,
) -> dict[str, Float64[Tensor, "N"]]:
    """Bits of the first ``count`` fixed episodes along greedy merges, and ``nmse_untold``.

    ``tree``, ``root``, ``residual`` and their ``total`` are bits of a sample (see
    ``htm_env/measures/description.py``) at a ``precision`` of the tokens' numbers in standard
    deviations, under probabilities of the ``training`` split. ``nmse_untold`` is the error of what
    the root itself decodes to where the leaf classifier says what is unmerged (see
    ``htm_env/generation/untold.py``).

    Raises ``ValueError`` where nothing is decoded or the planner makes no trees.
    """
    model = autoencoder.decoding()
    device = model.token_mean.device
    generator = torch.Generator(device).manual_seed(EVALUATION_SEED)

    def with_trees(batch: TokenBatch) -> tuple[TokenBatch, Tensor]:
        parts = batch.to(device).parts(CHUNK)
        merges = [planned(planner, part, generator, greedy=True) for part in parts]
        return batch.to(device), torch.cat(merges)

    batch, merges = with_trees(dataset.fixed(count))
    most = max(2, min(TRAINING_SAMPLES, TRAINING_TOKENS // training.max_tokens))
    code = DescriptionCode.fit(model, *with_trees(training.fixed(most)), dataset.std, precision)
    bits = code.bits(batch, merges)
    units, errors = (dataset.mean.to(device), dataset.std.to(device)), []
    for part, trees in zip(batch.parts(CHUNK), merges.split(CHUNK), strict=True):
        roots = model.encode(part.tokens, part.present, trees).roots
        errors.append(untold_errors(model, roots, part, *units).double().cpu())
    found = {name: getattr(bits, name) for name in PARTS_OF_BITS}
    return {**found, "nmse_untold": torch.cat(errors)}
