"""Errors of reconstructions, agreement of trees with the data's own hierarchy, and scores of the
leaf classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.autoencoder import HTMAutoencoder
from htm_env.forest import forest_levels
from htm_env.types import TokenBatch


class CladeScores(NamedTuple):
    """One score a sample, between 0 and 1; NaN where the data has no clade to find."""

    recall: Float[Tensor, "B"]
    """The share of the data's own clades that the tree has."""
    f1: Float[Tensor, "B"]
    """The harmonic mean of recall and the share of the tree's clades that contradict none."""
    precision: Float[Tensor, "B"]
    """The share of the tree's clades that the data has."""
    exact_f1: Float[Tensor, "B"]
    """The harmonic mean of recall and precision."""
    robinson_foulds: Float[Tensor, "B"]
    """The clades that only one of the two has, over the clades of both (0 the same, 1 none)."""


def nmse_per_sample(
    reconstruction: Float[Tensor, "B P T"],
    tokens: Float[Tensor, "B P T"],
    present: Bool[Tensor, "B P"],
    std: Float[Tensor, "T"],
) -> Float[Tensor, "B"]:
    """Squared error over the training split's variance, averaged over tokens and coordinates.

    Both token sets are in raw units, and ``std`` is the standard deviation of each coordinate over
    the training split: 1.0 is about "predict the mean". Empty slots never count, whatever they
    hold; a sample without tokens gives NaN.
    """
    scaled = ((reconstruction - tokens) / std).masked_fill(~present[..., None], 0.0)  # (B, P, T)
    return scaled.square().mean(dim=2).sum(dim=1) / present.sum(dim=1)


def category_error_rate(
    reconstruction: Float[Tensor, "B P T"],
    tokens: Float[Tensor, "B P T"],
    present: Bool[Tensor, "B P"],
    categories: Sequence[int],
) -> Float[Tensor, "B"]:
    """The share of each sample's categories whose most probable value is not the token's own.

    ``categories`` are their numbers of values; their coordinates are a token's last ones. A sample
    without tokens, and data without categories, gives NaN.
    """
    sizes = [tokens.shape[2] - sum(categories), *categories]
    pairs = zip(reconstruction.split(sizes, 2), tokens.split(sizes, 2), strict=True)
    wrong = [decoded.argmax(2) != own.argmax(2) for decoded, own in list(pairs)[1:]]
    if not wrong:
        return tokens.new_full((len(tokens),), torch.nan)
    shares = torch.stack(wrong, dim=2).to(tokens.dtype).mean(dim=2)  # (B, P)
    return shares.masked_fill(~present, 0.0).sum(dim=1) / present.sum(dim=1)


def clade_scores(
    tree_clades: Bool[Tensor, "B M P"],
    data_clades: Bool[Tensor, "B C P"],
    present: Bool[Tensor, "B P"],
) -> CladeScores:
    """Agreement of the clades of merge trees with the data's own; rows of False pad.

    On both sides only the different leaf sets of size ``2 .. n-1`` count: single leaves and the
    whole sample are in every tree, and a set that is given twice counts once. *Recall* is the
    share of the data's clades that the tree has. A clade of the tree is *compatible* when it
    overlaps no clade of the data partially (they share leaves, but neither holds the other), and
    ``f1`` is the harmonic mean of recall and the share of compatible clades; it is 0 where recall
    is, and for a forest that has no such clade yet.

    The other scores are *exact*: only a clade of the data itself is right. Data with fewer than
    ``n - 2`` clades is not binary (Crosses: only the pairs are clades), but a merge tree always is:
    it has clades that the data leaves open, so that with ``d`` clades in the data no tree over
    ``n`` tokens gets a precision above ``d / (n-2)``, an exact F1 above ``2d / (n-2+d)``, or a
    Robinson-Foulds distance (1981) below ``(n-2-d) / (n-2+d)``. The distance is that of rooted
    trees, as a share of what it is for trees that have nothing in common, ``(n-2) + d``; normalised
    like this it is 1 minus the exact F1.
    """
    present_rows = present[:, None, :]
    tree, data = tree_clades & present_rows, data_clades & present_rows
    tree_counts, data_counts = _countable(tree, present), _countable(data, present)
    shared = _shared_leaves(tree, data)  # (B, M, C)
    tree_sizes, data_sizes = tree.sum(dim=2)[:, :, None], data.sum(dim=2)[:, None, :]
    holds_data, holds_tree = shared == data_sizes, shared == tree_sizes

    found = (holds_data & holds_tree & tree_counts[:, :, None]).any(dim=1)  # (B, C)
    recall = _share(found, data_counts)
    partial = (shared > 0) & ~holds_data & ~holds_tree & data_counts[:, None, :]
    compatible = _share(~partial.any(dim=2), tree_counts).nan_to_num(0.0)
    f1 = 2 * recall * compatible / (recall + compatible).clamp(min=torch.finfo(recall.dtype).tiny)

    in_both = (found & data_counts).sum(dim=1)
    in_tree, in_data = tree_counts.sum(dim=1), data_counts.sum(dim=1)
    precision = in_both / in_tree.clamp(min=1)
    exact_f1 = 2 * in_both / (in_tree + in_data)
    distance = (in_tree + in_data - 2 * in_both) / (in_tree + in_data)
    exact = (
        score.masked_fill(in_data == 0, torch.nan) for score in (precision, exact_f1, distance)
    )
    return CladeScores(recall, f1, *exact)


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


def mean_or_none(values: Float[Tensor, "B"]) -> float | None:
    """The mean of the values that are not NaN; None where all are, or there are none."""
    counted = values[~values.isnan()]
    return float(counted.mean()) if len(counted) else None


def _shared_leaves(first: Bool[Tensor, "B X P"], second: Bool[Tensor, "B Y P"]) -> Tensor:
    """(B, X, Y) sizes of the intersections; exact in float32 up to 2^24 leaves."""
    return first.float() @ second.float().transpose(1, 2)


def _countable(clades: Bool[Tensor, "B K P"], present: Bool[Tensor, "B P"]) -> Tensor:
    """(B, K), True <--> the size is 2 .. n-1 and no earlier row is the same set."""
    sizes = clades.sum(dim=2)
    proper = (sizes >= 2) & (sizes < present.sum(dim=1, keepdim=True))
    shared = _shared_leaves(clades, clades)  # (B, K, K)
    same = (shared == sizes[:, :, None]) & (shared == sizes[:, None, :])
    return proper & ~same.tril(diagonal=-1).any(dim=2)


def _share(of_interest: Bool[Tensor, "B K"], counted: Bool[Tensor, "B K"]) -> Tensor:
    """(B,) the share of the counted rows that are of interest; NaN where none is counted."""
    return (of_interest & counted).sum(dim=1) / counted.sum(dim=1)
