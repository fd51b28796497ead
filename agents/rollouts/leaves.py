"""The tables of nodes with which episodes begin."""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor

from htm_env.autoencoder import HTMAutoencoder
from htm_env.types import SampleRows, TokenBatch


def leaf_tables(
    autoencoder: HTMAutoencoder, batch: TokenBatch
) -> tuple[Float[Tensor, "B N D"], Int64[Tensor, "B N"]]:
    """Embedding and leaf count of every node: the leaves, each sample's lifted once; 0 for the
    others."""
    (size, slots), rows = batch.present.shape, SampleRows.of(batch)
    tokens = autoencoder.standardise(batch.tokens[rows.first_rows])
    lifted = rows.spread(autoencoder.lifter(tokens)) * batch.present[..., None]
    nodes = lifted.new_zeros(size, 2 * slots - 1, lifted.shape[2])
    nodes[:, :slots] = lifted
    counts = batch.num_tokens.new_zeros(size, 2 * slots - 1)
    counts[:, :slots] = batch.present.long()
    return nodes, counts
