"""A causal language model with parallel hierarchies, of use without any token merging."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from agents.config.dataclasses_json import check_bounds
from agents.encoders.config import HierarchyConfig, check_hierarchies
from agents.encoders.hierarchical.layers import (
    Cache,
    HierarchicalLayers,
    Hierarchies,
    plain_norm,
    start_small,
)
from htm_env.autoencoder import seeded_initialisation
from htm_env.checks import at_least

NO_TOKEN = -1
"""The target where there is no token."""

FEATURES = 16
"""Random features of a token, from which the tokens of a vector are quantised."""


@dataclass(frozen=True)
class HierarchicalTransformerConfig:
    """A causal language model."""

    vocabulary: int = 256
    """Number of different tokens."""
    layers: int = 2
    """Each has a block for every hierarchy and a merge of them all."""
    hierarchies: tuple[HierarchyConfig, ...] = (
        HierarchyConfig(),
        HierarchyConfig(rate=2),
        HierarchyConfig(rate=8),
    )
    """By rising rate; the first, of rate 1, predicts the tokens."""
    merge_into_all: bool = False
    """True <--> what is merged goes back into every hierarchy, not only into the first."""
    next_weight: float = 0.0
    """Weight of each hierarchy's loss for the vector that follows; 0 leaves it out."""
    codes: int = 0
    """0 compares with the next vector itself (cosine); otherwise the next vector's tokens are
    quantised to one of this many codes by a frozen random projection, and the code predicted."""
    reconstruction_weight: float = 0.0
    """Weight of the loss for restoring the tokens from each coarse vector; 0 leaves it out."""

    def __post_init__(self) -> None:
        check_hierarchies(self.hierarchies)
        check_bounds(
            self, vocabulary=1, layers=1, next_weight=0.0, codes=0, reconstruction_weight=0.0
        )


class HierarchicalTransformer(nn.Module):
    """Predicts each next token from those before it, seen at several rates at once (after the
    simple hierarchical transformer, P. Wang 2023, and Nawrot et al. 2021).

    Any length of at least one token works. A coarse vector is given to the tokens from its last
    one on, so that nothing at token ``t`` depends on a token after ``t``.
    """

    def __init__(
        self,
        config: HierarchicalTransformerConfig = HierarchicalTransformerConfig(),
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        """``generator`` draws all weights; without one, torch's own does."""
        super().__init__()
        self.config = config
        width = config.hierarchies[0].width
        with seeded_initialisation(generator):
            self.embedding = nn.Embedding(config.vocabulary, width)
            self.layers = HierarchicalLayers(
                config.hierarchies,
                config.layers,
                width,
                causal=True,
                merge_into_all=config.merge_into_all,
            )
            self.last_norm = plain_norm(width)
            self.head = nn.Linear(width, config.vocabulary, bias=False)
            start_small(self.head)
            self.objectives = Objectives(config, generator)

    def forward(self, tokens: Int64[Tensor, "B L"]) -> Float[Tensor, "B L V"]:
        """Logits of the token that follows each."""
        return self.logits(self.read(self.embed(tokens)).ends[0])

    def embed(self, tokens: Int64[Tensor, "B L"]) -> Float[Tensor, "B L E"]:
        """Raises ``ValueError`` where there is no token, or one that the vocabulary lacks."""
        if tokens.ndim != 2 or len(tokens) == 0:
            shape = tuple(tokens.shape)
            raise ValueError(f"the tokens have the shape {shape}; expected (batch, length)")
        if tokens.shape[1] == 0:
            raise ValueError("the length is 0; expected at least one token")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.vocabulary:
            bad = low if low < 0 else high
            raise ValueError(f"a token is {bad}; expected 0 to {self.config.vocabulary - 1}")
        return self.embedding(tokens)

    def read(self, embedded: Float[Tensor, "B L E"], cache: Cache | None = None) -> Hierarchies:
        """The vectors of every hierarchy."""
        return self.layers(embedded, None, cache)

    def logits(self, vectors: Float[Tensor, "B L W"]) -> Float[Tensor, "B L V"]:
        """From the last vectors of the first hierarchy."""
        return self.head(self.last_norm(vectors))

    def losses(self, tokens: Int64[Tensor, "B L"]) -> dict[str, Float[Tensor, ""]]:
        """Losses by name, weighted, to be added up.

        ``token`` is the cross-entropy in nats of every token but the first; ``next_R`` and
        ``reconstruction_R``, where asked for, are those of the hierarchy of rate ``R``.
        """
        hierarchies = self.read(self.embed(tokens))
        logits = self.logits(hierarchies.ends[0])
        token = token_loss(logits[:, :-1], tokens[:, 1:])
        return {"token": token, **self.objectives(tokens, hierarchies)}

    @torch.no_grad()
    def generate(
        self,
        prompt: Int64[Tensor, "B L"],
        length: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        cached: bool = True,
    ) -> Int64[Tensor, "B {length}"]:
        """The ``length`` tokens that follow the prompt.

        Args:
            prompt: at least one token.
            length: how many tokens to add.
            temperature: divides the logits; 0 takes the most likely token.
            generator: draws the tokens.
            cached: keep keys, values and whatever else is needed of earlier tokens, so that a new
                one costs one step; otherwise everything is computed again. The tokens are the same.
        """
        at_least(0, length=length, temperature=temperature)
        cache = self.layers.empty_cache() if cached else None
        logits = self.logits(self.read(self.embed(prompt), cache).ends[0])[:, -1]
        tokens = prompt
        for added in range(length):
            tokens = torch.cat((tokens, _choose(logits, temperature, generator)), 1)
            if added + 1 == length:
                break
            if cache is None:
                logits = self(tokens)[:, -1]
            else:
                logits = self.logits(self.layers.step(self.embed(tokens[:, -1:]), cache))[:, -1]
        return tokens[:, prompt.shape[1] :]


def _choose(
    logits: Float[Tensor, "B V"], temperature: float, generator: torch.Generator | None
) -> Int64[Tensor, "B 1"]:
    if temperature == 0:
        return logits.argmax(1, keepdim=True)
    return torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)


class Objectives(nn.Module):
    """Heads and losses: each hierarchy's next vector (itself or its code), and the tokens that a
    coarse vector is made of.

    Next means the first that shares no token with the own one. Codes are made of tokens by frozen
    projections, so that they stay what they are; a vector itself is learned, and could become easy
    to predict by holding less.
    """

    def __init__(
        self, config: HierarchicalTransformerConfig, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.config = config
        hierarchies = config.hierarchies if config.next_weight else ()
        self.next = nn.ModuleList(
            nn.Linear(each.width, config.codes or each.width) for each in hierarchies
        )
        self.quantisers = nn.ModuleList()
        self.features: Tensor
        if config.codes and config.next_weight:
            features = torch.randn(config.vocabulary + 1, FEATURES, generator=generator)
            features[NO_TOKEN] = 0.0
            self.register_buffer("features", features)
            self.quantisers.extend(
                RandomProjectionQuantiser(each.rate * FEATURES, config.codes, generator=generator)
                for each in hierarchies
            )
        coarse = config.hierarchies[1:] if config.reconstruction_weight else ()
        self.reconstruct = nn.ModuleList(
            nn.Linear(each.width, each.rate * config.vocabulary) for each in coarse
        )

    def forward(
        self, tokens: Int64[Tensor, "B L"], hierarchies: Hierarchies
    ) -> dict[str, Float[Tensor, ""]]:
        losses = {}
        for index, head in enumerate(self.next):
            config, predicted = self.config.hierarchies[index], head(hierarchies.ends[index])
            if self.config.codes:
                codes = self.codes(tokens, index)
                loss = next_code_loss(predicted, codes, config.strands)
            else:
                loss = next_vector_loss(predicted, hierarchies.starts[index], config.strands)
            losses[f"next_{config.rate}"] = self.config.next_weight * loss
        for index, head in enumerate(self.reconstruct, start=1):
            config = self.config.hierarchies[index]
            logits = head(hierarchies.starts[index])
            targets = covered_tokens(tokens, config.rate, config.stride)
            loss = token_loss(
                logits.unflatten(2, (config.rate, -1)).flatten(1, 2), targets.flatten(1)
            )
            losses[f"reconstruction_{config.rate}"] = self.config.reconstruction_weight * loss
        return losses

    def codes(self, tokens: Int64[Tensor, "B L"], index: int) -> Int64[Tensor, "B _"]:
        """The code of the tokens that each vector of hierarchy ``index`` is made of."""
        config = self.config.hierarchies[index]
        targets = covered_tokens(tokens, config.rate, config.stride)
        return self.quantisers[index](self.features[targets].flatten(2))


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
