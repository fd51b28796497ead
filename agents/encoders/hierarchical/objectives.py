"""What the language model is trained for beside the next token: losses of each hierarchy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import (
    cosine_similarity,
    cross_entropy,
    layer_norm,
    mse_loss,
    normalize,
    pad,
    smooth_l1_loss,
)

from agents.encoders.config import HierarchyConfig
from agents.encoders.hierarchical.config import NO_TOKEN, HierarchicalTransformerConfig
from agents.encoders.hierarchical.layers import SHARE, Hierarchies, covered, norm_before
from htm_env.checks import at_least

FEATURES = 16
"""Random features of a token, from which the tokens of a vector are quantised."""


class Objectives(nn.Module):
    """Heads and losses, those of a hierarchy where its weight is not 0.

    ``next_R``, of rate ``R``: the first vector that shares no token with the own one, or its code.
    Codes are made of tokens by frozen projections, so that they stay what they are; a vector itself
    is learned, and could become easy to predict by holding less. ``reconstruction_R`` and
    ``prophet_R``: the tokens that a coarse vector is made of, and as many after it. ``latent_R``:
    the next vector, by :class:`LatentDynamics`.
    """

    def __init__(
        self,
        config: HierarchicalTransformerConfig,
        embedding: int,
        summarizers: Sequence[nn.Module | None],
        detach_summaries: bool,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.detach_summaries = detach_summaries

        def of(name: str, make: Callable[[HierarchyConfig], nn.Module]) -> nn.ModuleDict:
            heads = {
                str(index): make(each)
                for index, each in enumerate(config.hierarchies)
                if config.weights(name)[index] and (each.rate > 1 or name in EVERY_RATE)
            }
            return nn.ModuleDict(heads)

        def tokens(each: HierarchyConfig) -> nn.Module:
            return nn.Linear(each.width, each.rate * config.vocabulary)

        def dynamics(each: HierarchyConfig) -> nn.Module:
            return LatentDynamics(each.width, config.dynamics_hidden, config.dynamics_layers)

        self.next = of(
            "next_weight", lambda each: nn.Linear(each.width, config.codes or each.width)
        )
        self.reconstruct = of("reconstruction_weight", tokens)
        self.prophets = of("prophet_weight", tokens)
        self.dynamics = of("latent_weight", dynamics)
        self.summarizers = nn.ModuleDict(
            {
                index: summarizers[int(index)]
                or ChunkSummarizer(config.hierarchies[int(index)], embedding)
                for index in self.dynamics
            }
        )
        weights = config.rollout_weights or (1.0,) * config.rollouts
        self.rollout_weights = tuple(weight / sum(weights) for weight in weights)
        error = config.latent_error
        self.latent_error = error if callable(error) else ERRORS[error]
        self.quantisers = nn.ModuleDict()
        self.features: Tensor
        if config.codes and self.next:
            features = torch.randn(config.vocabulary + 1, FEATURES, generator=generator)
            features[NO_TOKEN] = 0.0
            self.register_buffer("features", features)
            for index in self.next:
                width = config.hierarchies[int(index)].rate * FEATURES
                self.quantisers[index] = RandomProjectionQuantiser(
                    width, config.codes, generator=generator
                )

    def forward(
        self,
        targets: Int64[Tensor, "B L"],
        embedded: Float[Tensor, "B L E"],
        hierarchies: Hierarchies,
    ) -> dict[str, Float[Tensor, ""]]:
        """Weighted losses by name; ``targets`` are ``NO_TOKEN`` where a token does not count.

        Raises ``ValueError`` where a summarizer gives another shape than that of the vectors, or
        the rollouts of the latent prediction are beyond them.
        """
        losses = {}
        there = targets != NO_TOKEN
        latents = [layer_norm(each, each.shape[2:]) for each in hierarchies.ends]
        decoded = hierarchies.starts if self.config.token_autoencoder else latents
        for index, head in self.next.items():
            each, weight = self._hierarchy(index, "next_weight")
            predicted = head(hierarchies.ends[int(index)])
            if self.config.codes:
                loss = next_code_loss(predicted, self.codes(targets, int(index)), each.strands)
            else:
                starts = hierarchies.starts[int(index)]
                loss = next_vector_loss(predicted, starts, each.strands, there[:, :: each.stride])
            losses[f"next_{each.rate}"] = weight * loss
        for index, head in self.reconstruct.items():
            each, weight = self._hierarchy(index, "reconstruction_weight")
            logits = head(decoded[int(index)])
            wanted = covered_tokens(targets, each.rate, each.stride)
            losses[f"reconstruction_{each.rate}"] = weight * chunk_loss(logits, wanted)
        for index, head in self.prophets.items():
            each, weight = self._hierarchy(index, "prophet_weight")
            logits = head(hierarchies.ends[int(index)])
            wanted = following_tokens(targets, each.rate, each.stride)
            losses[f"prophet_{each.rate}"] = weight * chunk_loss(logits, wanted)
        for index, dynamics in self.dynamics.items():
            each, weight = self._hierarchy(index, "latent_weight")
            self._check_rollouts(each.rate, latents[int(index)].shape[1])
            tokens = embedded.detach() if self.detach_summaries else embedded
            summaries = self.summarizers[index](tokens)
            if summaries.shape != latents[int(index)].shape:
                raise ValueError(
                    f"the chunk summarizer of rate {each.rate} gave shape "
                    f"{tuple(summaries.shape)}; expected {tuple(latents[int(index)].shape)}"
                )
            losses[f"latent_{each.rate}"] = weight * latent_loss(
                dynamics,
                latents[int(index)],
                summaries,
                there[:, :: each.stride],
                self.rollout_weights,
                self.config.rollout_decay,
                self.latent_error,
            )
        return losses

    def codes(self, targets: Int64[Tensor, "B L"], index: int) -> Int64[Tensor, "B _"]:
        """The code of the tokens that each vector of hierarchy ``index`` is made of; ``NO_TOKEN``
        where the last of them does not count."""
        each = self.config.hierarchies[index]
        tokens = covered_tokens(targets, each.rate, each.stride)
        codes = self.quantisers[str(index)](self.features[tokens].flatten(2))
        return codes.masked_fill(tokens[:, :, -1] == NO_TOKEN, NO_TOKEN)

    def _check_rollouts(self, rate: int, count: int) -> None:
        """One step ahead is always allowed: a single vector has no next one, as a single token has
        none."""
        if 1 < self.config.rollouts >= count:
            raise ValueError(
                f"there are {self.config.rollouts} rollouts (num_rollouts) of {count} vectors of "
                f"rate {rate}; expected fewer rollouts, or more tokens"
            )

    def _hierarchy(self, index: str, name: str) -> tuple[HierarchyConfig, int | float]:
        return self.config.hierarchies[int(index)], self.config.weights(name)[int(index)]


EVERY_RATE = ("next_weight", "latent_weight")
"""The losses that also the hierarchy of rate 1 has; in the others it would be the next token's."""


class LatentDynamics(nn.Module):
    """The next vector from this one and the tokens that come to it (Teoh et al. 2025): a network
    of so many linear ``layers`` gives the difference, close to 0 at first."""

    def __init__(self, width: int, hidden: int | None = None, layers: int = 3) -> None:
        super().__init__()
        inner = [width if hidden is None else hidden] * (layers - 1)
        modules: list[nn.Module] = [norm_before(2 * width, weights=True)]
        for inputs, outputs in pairwise([2 * width, *inner]):
            modules += [nn.Linear(inputs, outputs), nn.GELU()]
        last = nn.Linear([2 * width, *inner][-1], width)
        with torch.no_grad():
            last.weight.mul_(SHARE)
        self.difference = nn.Sequential(*modules, last)

    def forward(
        self, vectors: Float[Tensor, "B m W"], summaries: Float[Tensor, "B m W"]
    ) -> Float[Tensor, "B m W"]:
        return vectors + self.difference(torch.cat((vectors, summaries), 2))


class ChunkSummarizer(nn.Module):
    """The mean of the embedded tokens that each vector is made of, projected to its width."""

    def __init__(self, hierarchy: HierarchyConfig, embedding: int) -> None:
        super().__init__()
        self.rate, self.stride = hierarchy.rate, hierarchy.stride
        self.project: nn.Module = nn.Identity()
        if embedding != hierarchy.width:
            self.project = nn.Linear(embedding, hierarchy.width)

    def forward(self, embedded: Float[Tensor, "B L E"]) -> Float[Tensor, "B m W"]:
        chunks = covered(embedded, self.rate, self.stride, causal=True)
        ends = torch.arange(chunks.shape[1], device=chunks.device) * self.stride + 1
        total = chunks.unflatten(2, (self.rate, -1)).sum(2)
        return self.project(total / ends.clamp(max=self.rate)[:, None])


class RandomProjectionQuantiser(nn.Module):
    """Names every vector by the nearest row of a random codebook, after a random projection (Chiu
    et al. 2022, "Self-supervised learning with random-projection quantizer for speech
    recognition").

    Both are frozen. Projected vectors and codebook are normalised, so that the nearest is the one
    with the largest cosine.
    """

    projection: Float[Tensor, "W d"]
    codebook: Float[Tensor, "codes d"]

    def __init__(
        self, width: int, codes: int, dimension: int = 16, *, generator: torch.Generator | None
    ) -> None:
        """
        Args:
            width: of the vectors to be quantised; they should have mean 0 (Chiu et al., section 3).
            codes: rows of the codebook.
            dimension: of the space in which the nearest is found.
            generator: draws projection and codebook.
        """
        super().__init__()
        at_least(1, width=width, codes=codes, dimension=dimension)
        limit = (6 / (width + dimension)) ** 0.5  # Xavier, as in the paper
        uniform = torch.rand(width, dimension, generator=generator)
        self.register_buffer("projection", (2 * uniform - 1) * limit)
        rows = torch.randn(codes, dimension, generator=generator)
        self.register_buffer("codebook", normalize(rows, dim=1))

    @torch.no_grad()
    def forward(self, vectors: Float[Tensor, "*batch W"]) -> Int64[Tensor, "*batch"]:
        """The code of each vector, ``0 .. codes - 1``."""
        projected = normalize(vectors @ self.projection, dim=-1)
        return (projected @ self.codebook.T).argmax(-1)


# ---------------------------------------------------------------- losses


def token_loss(logits: Float[Tensor, "B K V"], targets: Int64[Tensor, "B K"]) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, over the targets that are not ``NO_TOKEN``."""
    total = cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=NO_TOKEN, reduction="sum"
    )
    return total / (targets != NO_TOKEN).sum().clamp(min=1)


def chunk_loss(
    logits: Float[Tensor, "B m _"], targets: Int64[Tensor, "B m rate"]
) -> Float[Tensor, ""]:
    """The :func:`token_loss` of several tokens a vector."""
    return token_loss(logits.unflatten(2, (targets.shape[2], -1)).flatten(1, 2), targets.flatten(1))


def next_vector_loss(
    predicted: Float[Tensor, "B m W"],
    vectors: Float[Tensor, "B m W"],
    ahead: int,
    there: Bool[Tensor, "B m"],
) -> Float[Tensor, ""]:
    """Mean of one minus the cosine between each prediction and the vector ``ahead`` places later.

    The vectors are targets: no gradient reaches them, or they would become easy to predict. Those
    that are not ``there`` do not count.
    """
    count = max(predicted.shape[1] - ahead, 0)
    similarity = cosine_similarity(predicted[:, :count], vectors[:, ahead:].detach(), dim=2)
    return masked_mean(1 - similarity, there[:, ahead:])


def next_code_loss(
    logits: Float[Tensor, "B m codes"], codes: Int64[Tensor, "B m"], ahead: int
) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, of the code ``ahead`` places later."""
    count = max(logits.shape[1] - ahead, 0)
    return token_loss(logits[:, :count], codes[:, ahead:])


def mse_and_cosine_sim(
    predicted: Float[Tensor, "B m W"], target: Float[Tensor, "B m W"]
) -> Float[Tensor, "B m 1"]:
    """Nine tenths of one minus the cosine and a tenth of the mean square."""
    square = (predicted - target).square().mean(2)
    return (0.9 * (1 - cosine_similarity(predicted, target, dim=2)) + 0.1 * square)[..., None]


ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse_and_cosine_sim": mse_and_cosine_sim,
    "mse": partial(mse_loss, reduction="none"),
    "smooth_l1": partial(smooth_l1_loss, reduction="none"),
}
"""Errors of predicted vectors, (B, m, W) or (B, m, 1)."""


def latent_loss(
    dynamics: Callable[[Tensor, Tensor], Tensor],
    latents: Float[Tensor, "B m W"],
    summaries: Float[Tensor, "B m W"],
    there: Bool[Tensor, "B m"],
    weights: Sequence[float],
    decay: float,
    error_of: Callable[[Tensor, Tensor], Tensor] = mse_and_cosine_sim,
) -> Float[Tensor, ""]:
    """The errors of the vectors 1 to ``len(weights)`` places later, predicted one from the other:
    the sum of their means, weighted.

    A step counts ``exp(-decay * e)``, ``e`` being the errors of the steps before it. No gradient
    reaches the targets. Raises ``ValueError`` where ``error_of`` gives another shape than (B, m, W)
    or (B, m, 1).
    """
    count = max(latents.shape[1] - len(weights), 0)
    vectors, before = latents[:, :count], latents.new_zeros(len(latents), count)
    total = latents.new_zeros(())
    for ahead, weight in enumerate(weights, start=1):
        target = latents[:, ahead : ahead + count].detach()
        vectors = dynamics(vectors, summaries[:, ahead : ahead + count])
        errors = error_of(vectors, target)
        if errors.ndim != 3 or errors.shape[:2] != target.shape[:2]:
            raise ValueError(
                f"the error of predicted vectors (next_latent_loss_type) has shape "
                f"{tuple(errors.shape)}; expected one number a feature, {tuple(target.shape)}"
            )
        error = errors.mean(2)
        counted = (-decay * before).exp() * error
        total = total + weight * masked_mean(counted, there[:, ahead : ahead + count])
        before = before + error.detach()
    return total


def masked_mean(errors: Float[Tensor, "B m"], there: Bool[Tensor, "B m"]) -> Float[Tensor, ""]:
    """The mean of those that are there; 0 where there is none."""
    return errors.masked_fill(~there, 0.0).sum() / there.sum().clamp(min=1)


def following_tokens(
    tokens: Int64[Tensor, "B L"], rate: int, stride: int
) -> Int64[Tensor, "B m {rate}"]:
    """The tokens after each causal vector, ``NO_TOKEN`` after the last."""
    padded = pad(tokens, (0, rate), value=NO_TOKEN)[:, 1:]
    return padded.unfold(1, rate, 1)[:, ::stride]


def covered_tokens(
    tokens: Int64[Tensor, "B L"], rate: int, stride: int
) -> Int64[Tensor, "B m {rate}"]:
    """The tokens that each causal vector is made of, ``NO_TOKEN`` before the first."""
    padded = pad(tokens, (rate - 1, 0), value=NO_TOKEN)
    return padded.unfold(1, rate, stride)
