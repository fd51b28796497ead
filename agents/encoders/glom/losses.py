"""Losses of columns without labels: hidden tokens to restore, scenes to distinguish."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from agents.encoders.base import without_junk

NEVER = -1e9
"""Similarity to what is not there: below all others, and still finite."""


def draw_hidden(
    active: Bool[Tensor, "B P"],
    coordinates: int,
    token_share: float,
    coordinate_share: float,
    generator: torch.Generator,
    centroids: Float[Tensor, "B P D"] | None = None,
) -> Bool[Tensor, "B P T"]:
    """The coordinates to hide, True <--> hidden: of about ``token_share`` of the active tokens
    about ``coordinate_share`` of the ``coordinates``, one at least.

    Where ``centroids`` are given, the tokens are those of a region (:func:`draw_regions`). One
    token of every population stays whole, so that there is something to restore from.
    """
    if centroids is None:
        tokens = _uniforms((*active.shape, 1), generator, active)
        ranks = tokens.masked_fill(~active[..., None], -1.0)
        spared = ranks == ranks.amax(dim=1, keepdim=True)
        hide = (tokens < token_share) & active[..., None] & ~spared  # (B, P, 1)
    else:
        hide = draw_regions(centroids, active, token_share, generator, spared=1)[..., None]
    each = _uniforms((*active.shape, coordinates), generator, active)
    return ((each < coordinate_share) | (each == each.amin(dim=2, keepdim=True))) & hide


def denoising_loss(
    restored: Float[Tensor, "B P T"], tokens: Float[Tensor, "B P T"], hidden: Bool[Tensor, "B P T"]
) -> Float[Tensor, ""]:
    """The mean squared error of the ``hidden`` coordinates (True <--> hidden); 0 without any."""
    errors = (restored - tokens).masked_fill(~hidden, 0.0).square()
    return errors.sum() / hidden.sum().clamp(min=1)


def draw_crops(
    active: Bool[Tensor, "B P"], generator: torch.Generator
) -> tuple[Bool[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """Two random halves of every population, without a token in common.

    Of an odd number the second gets one more; of a single token the first is empty.
    """
    drawn = _uniforms(tuple(active.shape), generator, active).masked_fill(~active, torch.inf)
    rank = drawn.argsort(dim=1).argsort(dim=1)
    first = (rank < active.sum(dim=1, keepdim=True) // 2) & active
    return first, active & ~first


def draw_regions(
    centroids: Float[Tensor, "B P T"],
    active: Bool[Tensor, "B P"],
    share: float,
    generator: torch.Generator,
    spared: int = 0,
) -> Bool[Tensor, "B P"]:
    """A region of every sample, True <--> inside: of its active tokens the ``share`` (rounded)
    that is nearest to a place drawn in the box around them; ``spared`` of them at least are not."""
    here = active[..., None]
    low = centroids.masked_fill(~here, torch.inf).amin(dim=1)
    high = centroids.masked_fill(~here, -torch.inf).amax(dim=1)
    drawn = _uniforms(tuple(low.shape), generator, low)
    place = torch.lerp(low, high, drawn)[:, None]  # (B, 1, T)
    distances = (centroids - place).square().sum(dim=2).masked_fill(~active, torch.inf)
    rank = distances.argsort(dim=1).argsort(dim=1)
    there = active.sum(dim=1, keepdim=True)
    count = (share * there).round().minimum((there - spared).clamp(min=0))
    return (rank < count) & active


def draw_two_regions(
    centroids: Float[Tensor, "B P T"],
    active: Bool[Tensor, "B P"],
    share: float,
    generator: torch.Generator,
) -> tuple[Bool[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """Two crops of every sample, each a region by itself (:func:`draw_regions`), so that they may
    have tokens in common."""
    first, second = (draw_regions(centroids, active, share, generator) for _ in range(2))
    return first, second


def contrastive_loss(
    first: Float[Tensor, "B P d"],
    in_first: Bool[Tensor, "B P"],
    second: Float[Tensor, "B P d"],
    in_second: Bool[Tensor, "B P"],
    temperature: float,
) -> Float[Tensor, ""]:
    """InfoNCE between scenes: of all second crops, which is of the same scene as this first one,
    and the other way round (van den Oord et al. 2018).

    Two crops are as similar as each column of the one to the most similar of the other, by cosine,
    on average (as ColBERT compares texts; Khattab and Zaharia 2020): a column has to find a column
    of its own whole, which means of their scenes could not ask of it. Scenes with an empty crop do
    not count, and with fewer than two scenes the loss is 0. Memory is ``O((B P)^2)``.
    """
    counts = in_first.any(dim=1) & in_second.any(dim=1)  # (B,)
    first = nn.functional.normalize(without_junk(first, in_first), dim=2)
    second = nn.functional.normalize(without_junk(second, in_second), dim=2)
    cosines = torch.einsum("bpd,cqd->bcpq", first, second)
    of_first, of_second = in_first[:, None, :, None], in_second[None, :, None, :]
    cosines = cosines.masked_fill(~(of_first & of_second), NEVER)
    best_of_first = cosines.amax(dim=3).masked_fill(~in_first[:, None], 0.0)  # (B, B, P)
    best_of_second = cosines.amax(dim=2).masked_fill(~in_second[None], 0.0)
    similarity = (
        best_of_first.sum(dim=2) / in_first.sum(dim=1).clamp(min=1)[:, None]
        + best_of_second.sum(dim=2) / in_second.sum(dim=1).clamp(min=1)
    ) / (2 * temperature)
    similarity = similarity.masked_fill(~(counts[:, None] & counts), NEVER)
    own = -similarity.log_softmax(dim=1).diagonal() - similarity.log_softmax(dim=0).diagonal()
    return own.masked_fill(~counts, 0.0).sum() / (2 * counts.sum().clamp(min=1))


def _uniforms(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device).to(like.device)
