"""The losses of the autoencoder: functions of tensors, by level.

``encoded[d]`` and ``decoded[d]`` are the states of level ``d`` of one walk (see ``forest.descend``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from htm_env.autoencoder import HTMAutoencoder
from htm_env.forest import Level
from htm_env.types import TokenBatch


@dataclass(frozen=True)
class LossWeights:
    """How much each loss of the autoencoder counts; zero leaves it out."""

    reconstruction: float = 1.0
    """End to end: squared error of the standardised tokens."""
    cycle: float = 0.0
    """One step: squared error of unmerging what was just merged, in embedding space."""
    transport: float = 0.0
    """Squared distance of every decoder state from the detached encoder state of its node."""
    magnitude: float = 0.0
    """Squared embeddings, so that their scale stays bounded."""
    classifier: float = 0.1
    """Cross-entropy of the leaf classifier."""


def reconstruction_loss(
    predicted: Float[Tensor, "L T"], target: Float[Tensor, "L T"], weight: Float[Tensor, "L"]
) -> Float[Tensor, ""]:
    """Squared error, averaged over coordinates and weighted over tokens."""
    return ((predicted - target).square().mean(dim=1) * weight).sum()


def transport_loss(
    decoded: list[Tensor], encoded: list[Tensor], interpolation: float = 0.0
) -> Float[Tensor, ""]:
    """Mean squared distance of the decoder states from their targets, over all nodes.

    The target lies between the detached encoder state of the node (``interpolation`` 0) and the
    detached decoder state itself (1: no pull at all); the starting nodes share both states.
    """
    count = sum(state.numel() for state in encoded)
    distances = [
        (down - torch.lerp(up.detach(), down.detach(), interpolation)).square().sum()
        for down, up in zip(decoded[1:], encoded[1:], strict=True)
    ]
    return torch.stack(distances).sum() / count if distances else encoded[0].new_zeros(())


def cycle_loss(
    autoencoder: HTMAutoencoder, encoded: list[Tensor], levels: list[Level]
) -> Float[Tensor, ""]:
    """Mean squared error of unmerging the merge of two detached embeddings, over all merges."""
    children = torch.cat(encoded[1:]).detach() if len(encoded) > 1 else encoded[0][:0]
    if len(children) == 0:
        return encoded[0].new_zeros(())
    merged = autoencoder.merger(children.view(len(children) // 2, -1))
    return (autoencoder.unmerge(merged) - children).square().mean()


def magnitude_loss(encoded: list[Tensor]) -> Float[Tensor, ""]:
    """Mean squared embedding over all nodes."""
    return torch.cat(encoded).square().mean()


def classifier_loss(logits: Float[Tensor, "K"], is_leaf: Bool[Tensor, "K"]) -> Float[Tensor, ""]:
    """Cross-entropy of "is a leaf", leaves and internal nodes counting the same in total."""
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, is_leaf.to(logits.dtype), reduction="none"
    )
    share = is_leaf.to(logits.dtype).mean().clamp(1e-3, 1 - 1e-3)
    return (losses * torch.where(is_leaf, 0.5 / share, 0.5 / (1 - share))).mean()


def autoencoder_losses(
    autoencoder: HTMAutoencoder,
    batch: TokenBatch,
    levels: list[Level],
    weights: LossWeights,
    *,
    interpolation: float = 0.0,
    noise_std: float = 0.0,
    generator: torch.Generator | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Every loss that has a weight, by name, and their weighted sum as ``total``.

    ``levels`` is the walk through whole trees or partial forests (``forest_levels``). The
    classifier learns from encoder and decoder states without changing them.
    """
    slots = batch.present.shape[1]
    num_nodes = 2 * slots - 1
    standardised = autoencoder.standardise(batch.tokens)
    encoded = autoencoder.encode_levels(
        standardised, batch.present, levels, noise_std=noise_std, generator=generator
    )
    decoded = autoencoder.decode_levels(encoded[0], levels)
    leaf_ids, predicted = autoencoder.unlift_leaves(decoded, levels)
    sample, slot = leaf_ids // num_nodes, leaf_ids % num_nodes
    share = 1 / (batch.num_tokens * len(batch.tokens)).to(predicted.dtype)  # nmse: samples alike
    losses = {
        "reconstruction": reconstruction_loss(predicted, standardised[sample, slot], share[sample])
    }
    if weights.cycle:
        losses["cycle"] = cycle_loss(autoencoder, encoded, levels)
    if weights.transport:
        losses["transport"] = transport_loss(decoded, encoded, interpolation)
    if weights.magnitude:
        losses["magnitude"] = magnitude_loss(encoded)
    if weights.classifier:
        is_leaf = torch.cat([level.nodes for level in levels]) % num_nodes
        number = batch.num_tokens[torch.cat([level.nodes for level in levels]) // num_nodes]
        states = torch.cat([*encoded, *decoded]).detach()
        losses["classifier"] = classifier_loss(
            autoencoder.classifier(states).squeeze(1), (is_leaf < number).repeat(2)
        )
    losses["total"] = torch.stack(
        [getattr(weights, name) * loss for name, loss in losses.items()]
    ).sum()
    return losses
