"""Losses of hierarchies, as functions of tensors. Without a target they are 0, never NaN."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

NO_TOKEN = -1
"""The target where there is no token."""


def token_loss(logits: Float[Tensor, "B K V"], targets: Int64[Tensor, "B K"]) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, over the targets that are not ``NO_TOKEN``."""
    total = cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=NO_TOKEN, reduction="sum"
    )
    return total / (targets != NO_TOKEN).sum().clamp(min=1)


def next_vector_loss(
    predicted: Float[Tensor, "B m W"], vectors: Float[Tensor, "B m W"], ahead: int
) -> Float[Tensor, ""]:
    """Mean of one minus the cosine between each prediction and the vector ``ahead`` places later.

    The vectors are targets: no gradient reaches them, or they would become easy to predict.
    """
    count = max(predicted.shape[1] - ahead, 0)
    similarity = cosine_similarity(predicted[:, :count], vectors[:, ahead:].detach(), dim=2)
    return (1 - similarity).sum() / max(similarity.numel(), 1)


def next_code_loss(
    logits: Float[Tensor, "B m codes"], codes: Int64[Tensor, "B m"], ahead: int
) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, of the code ``ahead`` places later."""
    count = max(logits.shape[1] - ahead, 0)
    return token_loss(logits[:, :count], codes[:, ahead:])


def covered_tokens(
    tokens: Int64[Tensor, "B L"], rate: int, stride: int
) -> Int64[Tensor, "B m {rate}"]:
    """The tokens that each causal vector is made of, ``NO_TOKEN`` before the first."""
    padded = torch.nn.functional.pad(tokens, (rate - 1, 0), value=NO_TOKEN)
    return padded.unfold(1, rate, stride)
