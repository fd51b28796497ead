"""A causal language model with parallel hierarchies; nothing of it knows of token merging."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from agents.encoders.hierarchical.cache import Cache
from agents.encoders.hierarchical.config import HierarchicalTransformerConfig
from agents.encoders.hierarchical.initialisation import plain_norm, start_small
from agents.encoders.hierarchical.layers import HierarchicalLayers, Hierarchies
from agents.encoders.hierarchical.losses import token_loss
from agents.encoders.hierarchical.objectives import Objectives
from htm_env.coding.networks import seeded_initialisation


class HierarchicalTransformer(nn.Module):
    """Predicts each next token from those before it, seen at several rates at once (after the
    simple hierarchical transformer, P. Wang 2023, and Nawrot et al. 2021).

    Any length of at least one token works. A coarse vector is given to the tokens from its last
    one on, so that nothing at token ``t`` depends on a token after ``t``.
    """

    def __init__(
        self,
        config: HierarchicalTransformerConfig = HierarchicalTransformerConfig(),  # noqa: B008
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
        return self.logits(self.read(self.embed(tokens)))

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

    def logits(self, hierarchies: Hierarchies) -> Float[Tensor, "B L V"]:
        return self._logits(hierarchies.ends[0])

    def losses(self, tokens: Int64[Tensor, "B L"]) -> dict[str, Float[Tensor, ""]]:
        """Losses by name, weighted, to be added up.

        ``token`` is the cross-entropy in nats of every token but the first; ``next_R`` and
        ``reconstruction_R``, where asked for, are those of the hierarchy of rate ``R``.
        """
        hierarchies = self.read(self.embed(tokens))
        logits = self.logits(hierarchies)
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
        if length < 0:
            raise ValueError(f"length is {length}; expected at least 0")
        if not temperature >= 0:  # so that NaN is refused as well
            raise ValueError(f"temperature is {temperature}; expected at least 0")
        cache = self.layers.empty_cache() if cached else None
        logits = self.logits(self.read(self.embed(prompt), cache))[:, -1]
        tokens = prompt
        for added in range(length):
            tokens = torch.cat((tokens, _choose(logits, temperature, generator)), 1)
            if added + 1 == length:
                break
            if cache is None:
                logits = self(tokens)[:, -1]
            else:
                logits = self._logits(self.layers.step(self.embed(tokens[:, -1:]), cache))[:, -1]
        return tokens[:, prompt.shape[1] :]

    def _logits(self, vectors: Tensor) -> Tensor:
        return self.head(self.last_norm(vectors))


def _choose(
    logits: Float[Tensor, "B V"], temperature: float, generator: torch.Generator | None
) -> Int64[Tensor, "B 1"]:
    if temperature == 0:
        return logits.argmax(1, keepdim=True)
    return torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)
