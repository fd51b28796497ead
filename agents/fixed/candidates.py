"""What each possible next merge would cost under the autoencoder."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from htm_env.autoencoder import HTMAutoencoder
from htm_env.forest import children_table
from htm_env.population import Population, subtree_errors

TOKENS_A_CALL = 16384
"""Tokens decoded at once: with a hidden width of 256, some 20 MB a hidden layer."""


@torch.no_grad()
def candidate_errors(
    autoencoder: HTMAutoencoder, population: Population, pairs: Bool[Tensor, "R P P"]
) -> Float[Tensor, "R P P"]:
    """The summed squared error of the tokens under the parent that each ordered pair would have.

    ``pairs`` must be legal; 0 where it is False. All candidates are merged and decoded together,
    ``TOKENS_A_CALL`` tokens at a time. An entry stays right until one of its two slots changes.
    """
    forest, counts = population.forest, population.leaf_counts
    children = children_table(forest.merges, forest.num_leaves)
    rows, first, second = pairs.nonzero(as_tuple=True)
    errors = population.embeddings.new_zeros(pairs.shape)
    if not len(rows):
        return errors
    largest = int((counts[rows, first] + counts[rows, second]).max())
    a_call = max(1, TOKENS_A_CALL // largest)
    for row, left, right in zip(
        rows.split(a_call), first.split(a_call), second.split(a_call), strict=True
    ):
        slots = torch.stack([left, right], dim=1)  # (C, 2)
        embeddings = population.embeddings[row[:, None], slots]  # (C, 2, D)
        below = autoencoder.unmerge(autoencoder.merger(embeddings.flatten(1)))  # (2 C, D)
        # The parent does not exist yet, so decoding starts at its children, which do.
        nodes = forest.slots[row[:, None], slots] + row[:, None] * children.shape[1]
        decoded = subtree_errors(
            autoencoder, below, nodes.flatten(), children, population.batch, autoencoder.token_std
        )
        errors[row, left, right] = decoded.view(-1, 2).sum(dim=1)
    return errors
