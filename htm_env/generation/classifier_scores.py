"""How well the leaf classifier tells leaves from internal nodes, in both directions."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.autoencoder import HTMAutoencoder
from htm_env.forest import forest_levels
from htm_env.types import TokenBatch


@torch.no_grad()
def classifier_scores(
    autoencoder: HTMAutoencoder,
    batch: TokenBatch,
    merges: Int64[Tensor, "B M 2"],
    threshold: float = 0.5,
) -> dict[str, Float[Tensor, "B"]]:
    """The share of each sample's nodes that are classified rightly, of four kinds.

    ``classifier_leaf_encoder`` and ``classifier_internal_encoder`` are of the embeddings on the way
    up, ``classifier_leaf_decoder`` and ``classifier_internal_decoder`` of those on the way down
    from the true root, which is what generation shows it; the root counts in both. NaN where a
    sample has no such node.
    """
    size, slots = batch.present.shape
    num_tokens = batch.num_tokens
    levels = forest_levels(merges, num_tokens)
    up = autoencoder.encode_levels(autoencoder.standardise(batch.tokens), batch.present, levels)
    down = autoencoder.decode_levels(up[0], levels)
    nodes = torch.cat([level.nodes for level in levels])
    sample, node = nodes // (2 * slots - 1), nodes % (2 * slots - 1)
    is_leaf = node < num_tokens[sample]

    def share(right: Bool[Tensor, "K"], of: Bool[Tensor, "K"]) -> Float[Tensor, "B"]:
        found = torch.bincount(sample[right & of], minlength=size)
        return found / torch.bincount(sample[of], minlength=size)

    scores = {}
    for way, states in (("encoder", up), ("decoder", down)):
        said_leaf = autoencoder.classifier(torch.cat(states)).squeeze(1).sigmoid() >= threshold
        right = said_leaf == is_leaf
        scores[f"classifier_leaf_{way}"] = share(right, is_leaf)
        scores[f"classifier_internal_{way}"] = share(right, ~is_leaf)
    return scores
