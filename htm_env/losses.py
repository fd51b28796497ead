"""The losses of the autoencoder: functions of tensors, and all of them at once, by level."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from htm_env.autoencoder import HTMAutoencoder
from htm_env.forest import active_nodes, children_table, descend
from htm_env.types import TokenBatch

SMALLEST_VARIANCE = 1e-4
"""Added to a variance, whose root has a gradient then (Bardes et al. 2022)."""
MOST_CONTRASTED = 2048
"""Nodes that are held against each other, at most; their pairs take the memory of the square."""


@dataclass(frozen=True)
class LossWeights:
    """Weight of each loss of the autoencoder; zero leaves it out."""

    reconstruction: float = 1.0
    """End to end: squared error of the standardised numbers, cross-entropy of the categories."""
    subtrees: float = 0.1
    """The same, decoded from some of the nodes below the root instead, leaves included: what the
    incremental reward measures. Without it a merger can settle for losing half of a pair at the
    first merge, and no later gradient brings it back."""
    cycle: float = 0.0
    """One step: squared error of unmerging what was just merged, in embedding space."""
    transport: float = 0.0
    """Squared distance of every decoder state from the detached encoder state of its node."""
    contrast: float = 0.0
    """Contrast of every decoder state with its node's encoder state among those of all nodes
    (StrAE, Opper et al. 2023); instead of ``transport``, which pulls without pushing."""
    rate: float = 0.0
    """Rate of the roots over a noisy channel, in nats over the numbers of the tokens, as the error
    is a mean over them: twice the variance that the error of a number is to have. Where it is not
    zero, every root that is decoded has noise of variance 1."""
    rate_nodes: bool = False
    """Rate and noise of every node, not of the roots alone."""
    magnitude: float = 0.0
    """Squared embeddings, so that their scale stays bounded."""
    classifier: float = 0.1
    """Cross-entropy of the leaf classifier."""
    classifier_detached: bool = False
    """The classifier learns from the embeddings without changing them (the published method)."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a weight that is negative or not finite."""
        for name, weight in vars(self).items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"the weight of {name} is {weight}; expected 0 or more")


def reconstruction_loss(
    autoencoder: HTMAutoencoder,
    predicted: Float[Tensor, "L T"],
    target: Float[Tensor, "L T"],
    weight: Float[Tensor, "L"],
) -> Float[Tensor, ""]:
    """Losses of tokens (see ``SavedAutoencoder.token_losses``), weighted over tokens."""
    return (autoencoder.token_losses(predicted, target) * weight).sum()


def transport_loss(
    decoded: Float[Tensor, "K D"], encoded: Float[Tensor, "K D"], interpolation: float = 0.0
) -> Float[Tensor, ""]:
    """Mean squared distance of decoder states from their targets.

    The target lies between the detached encoder state of the node (``interpolation`` 0) and the
    detached decoder state itself (1: no pull at all).
    """
    target = torch.lerp(encoded.detach(), decoded.detach(), interpolation)
    return (decoded - target).square().mean()


def contrast_loss(
    decoded: Float[Tensor, "K D"], encoded: Float[Tensor, "K D"], temperature: float = 0.2
) -> Float[Tensor, ""]:
    """Cross-entropy of finding a node's encoder state by its decoder state, and the other way.

    InfoNCE (van den Oord et al. 2018) over the cosines of all pairs, as between the two passes of
    StrAE (Opper et al. 2023, "StrAE: Autoencoding for Pre-Trained Embeddings using Explicit
    Structure"). Nodes with the same encoder state, such as equal tokens, are not held against each
    other (Banyan, Opper and Siddharth 2024, has each of them once).
    """
    up, down = nn.functional.normalize(encoded, dim=1), nn.functional.normalize(decoded, dim=1)
    _, group = encoded.detach().unique(dim=0, return_inverse=True)
    own = torch.arange(len(group), device=group.device)
    same = (group[:, None] == group) & (own[:, None] != own)
    cosines = (up @ down.T / temperature).masked_fill(same, -math.inf)
    cross_entropy = nn.functional.cross_entropy
    return (cross_entropy(cosines, own) + cross_entropy(cosines.T, own)) / 2


def invariance_loss(one: Float[Tensor, "R D"], other: Float[Tensor, "R D"]) -> Float[Tensor, ""]:
    """Mean squared difference of two views (VICReg, Bardes et al. 2022)."""
    return (one - other).square().mean()


def variance_loss(values: Float[Tensor, "R D"]) -> Float[Tensor, ""]:
    """What the standard deviation of each number lacks of 1, averaged (VICReg, Bardes et al. 2022);
    0 for a single row."""
    if len(values) < 2:
        return values.sum() * 0
    return (1 - (values.var(dim=0) + SMALLEST_VARIANCE).sqrt()).clamp(min=0).mean()


def covariance_loss(values: Float[Tensor, "R D"]) -> Float[Tensor, ""]:
    """Squared covariances between different numbers, over the numbers (VICReg, Bardes et al. 2022);
    0 for a single row."""
    if len(values) < 2:
        return values.sum() * 0
    off = values - values.mean(dim=0)
    covariances = off.T @ off / (len(values) - 1)
    covariances = covariances - torch.diag(covariances.diagonal())
    return covariances.square().sum() / values.shape[1]


def channel_rate(values: Float[Tensor, "R D"]) -> Float[Tensor, ""]:
    """Nats that a value costs over a channel with Gaussian noise of variance 1 in every number:
    ``log det(1 + C) / 2`` with the covariance ``C`` of the values; 0 for a single one.

    It is the Kullback-Leibler divergence of the noisy value from a normal distribution (the rate of
    Alemi et al. 2018, "Fixing a Broken ELBO") where that distribution is not the standard one, as
    in Kingma and Welling 2014, but the best for the batch. With the variance of the noise fixed the
    standard one would cost half the square of a value, instead of the logarithm. As coding rate of
    embeddings: Yu et al. 2020, "Learning Diverse and Discriminative Representations via the
    Principle of Maximal Coding Rate Reduction".
    """
    off = (values - values.mean(dim=0)).double()  # else short products may leave no positive matrix
    covariances = off.T @ off / len(values)
    ones = torch.eye(values.shape[1], dtype=off.dtype, device=values.device)
    rate: Tensor = torch.linalg.slogdet(ones + covariances).logabsdet / 2
    return rate.to(values.dtype)


def cycle_loss(autoencoder: HTMAutoencoder, pairs: Float[Tensor, "I W"]) -> Float[Tensor, ""]:
    """Mean squared error of unmerging the merge of two detached embeddings, ``W = 2 D``."""
    pairs = pairs.detach()
    unmerged: Tensor = autoencoder.unmerger(autoencoder.merger(pairs))
    return (unmerged - pairs).square().mean()


def magnitude_loss(encoded: Float[Tensor, "K D"]) -> Float[Tensor, ""]:
    """Mean squared embedding."""
    return encoded.square().mean()


def classifier_loss(
    logits: Float[Tensor, "K"],
    is_leaf: Bool[Tensor, "K"],
    leaves: Float[Tensor, ""] | float | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of "is a leaf", leaves and internal nodes counting the same in total.

    ``leaves`` is the share of leaves; that of these if None.
    """
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, is_leaf.to(logits.dtype), reduction="none"
    )
    share = is_leaf.to(logits.dtype).mean() if leaves is None else logits.new_tensor(leaves)
    share = share.clamp(1e-3, 1 - 1e-3)
    return (losses * torch.where(is_leaf, 0.5 / share, 0.5 / (1 - share))).mean()


BeginMean = Callable[[Tensor], Callable[[], Tensor]]
"""Begins the mean of a tensor over processes, and gives what waits for it."""


class Counts:
    """Numbers of what losses are means of, here and on average over the processes of a batch.

    Args:
        own: the numbers here, by name.
        begin_mean: begins the mean of a tensor over the processes, and gives what waits for it;
            None for one process.
        like: a tensor on the device to count on.
    """

    def __init__(self, own: Mapping[str, int], begin_mean: BeginMean | None, like: Tensor) -> None:
        self.own = own
        self._finish = None
        if begin_mean is not None:
            self._finish = begin_mean(torch.tensor(list(own.values()), dtype=torch.float64))
        self._nothing = like.new_zeros(())

    @cached_property
    def means(self) -> dict[str, float]:
        """The numbers on average over the processes, for which this waits at first."""
        if self._finish is None:
            return {name: float(number) for name, number in self.own.items()}
        return dict(zip(self.own, self._finish().tolist(), strict=True))

    def weighted(
        self, name: str, what: str, loss: Callable[[], Float[Tensor, ""]]
    ) -> dict[str, Float[Tensor, ""]]:
        """A mean over all of ``what`` here, so weighted that the mean over processes is the mean
        over what is in all of them; none where no process has any."""
        if not self.means[what]:
            return {}
        if not self.own[what]:
            return {name: self._nothing}
        return {name: loss() * (self.own[what] / self.means[what])}


def autoencoder_losses(
    autoencoder: HTMAutoencoder,
    batch: TokenBatch,
    merges: Int64[Tensor, "B M 2"],
    weights: LossWeights,
    *,
    subtree_share: float = 0.0,
    interpolation: float = 0.0,
    temperature: float = 0.2,
    noise_std: float = 0.0,
    generator: torch.Generator | None = None,
    begin_mean: BeginMean | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Every loss that has a weight, by name, and their weighted sum as ``total``.

    ``merges`` are whole trees or partial forests. ``subtree_share`` is the probability with which
    each node below the roots is decoded for itself as well, in the same calls. Unless it is
    detached, the classifier's loss reaches the encoder and the decoder too: states that nothing
    pulls apart stay mixed, and a generated tree that is misread at one node is wrong as a whole.

    ``begin_mean`` begins the mean of a tensor over the processes whose batches make up a whole one:
    the mean of their losses is then that of the whole batch, whatever number of trees, nodes and
    leaves is in each.
    """
    size, slots = batch.present.shape
    num_nodes = 2 * slots - 1
    num_tokens = batch.num_tokens
    children = children_table(merges, num_tokens)
    roots = active_nodes(merges, num_tokens).flatten().nonzero().squeeze(1)
    levels = descend(children, roots)
    standardised = autoencoder.standardise(batch.tokens)
    encoded = torch.cat(
        autoencoder.encode_levels(
            standardised, batch.present, levels, noise_std=noise_std, generator=generator
        )
    )  # (all nodes, D)
    nodes = torch.cat([level.nodes for level in levels])
    row = nodes.new_empty(size * num_nodes)
    row[nodes] = torch.arange(len(nodes), device=nodes.device)  # node -> row of encoded

    start, walk = roots, levels
    if weights.subtrees and subtree_share > 0:
        below_roots = nodes[len(roots) :]
        draw = torch.rand(len(below_roots), generator=generator, device=nodes.device)
        start = torch.cat([roots, below_roots[draw < subtree_share]])
        walk = descend(children, start)
    seen = torch.cat([nodes, *(level.nodes for level in walk)])
    is_leaf = seen % num_nodes < num_tokens[seen // num_nodes]
    origin = torch.cat([level.origin[level.leaves] for level in walk])
    below_root = origin < len(roots)
    inside = ~below_root
    # The mean over processes is on its way while this one decodes.
    counts = Counts(
        {
            "samples": size,
            "inside": len(start) - len(roots) if begin_mean is None else int(inside.sum()),
            "merged": len(nodes) - len(roots),
            "below": sum(len(level.nodes) for level in walk[1:]),
            "nodes": len(nodes),
            "seen": len(seen),
            "leaves": 0 if begin_mean is None else int(is_leaf.sum()),
        },
        begin_mean,
        standardised,
    )

    sent = encoded[row[start]]
    if weights.rate:
        noise = torch.empty_like(sent).normal_(generator=generator)
        sent = sent + (noise if weights.rate_nodes else noise * (row[start, None] < len(roots)))
    decoded = autoencoder.decode_levels(sent, walk)
    leaf_ids, predicted = autoencoder.unlift_leaves(decoded, walk)
    predicted = predicted.to(standardised.dtype)  # shorter where products are
    sample, slot = leaf_ids // num_nodes, leaf_ids % num_nodes
    target = standardised[sample, slot]
    share = 1 / (num_tokens * size).to(predicted.dtype)  # as in nmse: every sample counts alike

    losses: dict[str, Float[Tensor, ""]] = {}
    losses |= counts.weighted(
        "reconstruction",
        "samples",
        lambda: reconstruction_loss(autoencoder, predicted, target, share[sample] * below_root),
    )
    losses |= counts.weighted(
        "subtrees",
        "inside",
        lambda: reconstruction_loss(autoencoder, predicted, target, inside / inside.sum()),
    )
    if weights.cycle:
        losses |= counts.weighted(
            "cycle",
            "merged",
            lambda: cycle_loss(
                autoencoder, encoded[len(roots) :].view(-1, 2 * autoencoder.embedding_dim)
            ),
        )
    if weights.transport:
        losses |= counts.weighted(
            "transport",
            "below",
            lambda: transport_loss(
                torch.cat(decoded[1:]),
                encoded[row[torch.cat([level.nodes for level in walk[1:]])]],
                interpolation,
            ),
        )
    if weights.contrast:
        lower = torch.cat([level.nodes for level in walk[1:]]) if walk[1:] else nodes[:0]
        down = torch.cat(decoded[1:]) if walk[1:] else encoded[:0]
        if len(lower) > MOST_CONTRASTED:
            drawn = torch.randperm(len(lower), generator=generator, device=nodes.device)
            drawn = drawn[:MOST_CONTRASTED]
            lower, down = lower[drawn], down[drawn]
        losses |= counts.weighted(
            "contrast", "below", lambda: contrast_loss(down, encoded[row[lower]], temperature)
        )
    if weights.rate:
        values = encoded if weights.rate_nodes else encoded[: len(roots)]
        of_numbers = len(values) / (int(num_tokens.sum()) * autoencoder.token_dim)
        losses |= counts.weighted("rate", "samples", lambda: channel_rate(values) * of_numbers)
    if weights.magnitude:
        losses |= counts.weighted("magnitude", "nodes", lambda: magnitude_loss(encoded))
    if weights.classifier:
        states = torch.cat([encoded, *decoded])
        states = states.detach() if weights.classifier_detached else states
        logits = autoencoder.classifier(states).squeeze(1).to(standardised.dtype)
        leaves = None if begin_mean is None else counts.means["leaves"] / counts.means["seen"]
        losses |= counts.weighted(
            "classifier", "seen", lambda: classifier_loss(logits, is_leaf, leaves)
        )
    losses["total"] = torch.stack(
        [getattr(weights, name) * loss for name, loss in losses.items()]
    ).sum()
    return losses
