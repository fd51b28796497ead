"""A transformer block of one hierarchy: token shift, attention, feed-forward network."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from agents.encoders.hierarchical.cache import BlockCache, newest
from agents.encoders.hierarchical.config import HierarchyConfig
from agents.encoders.hierarchical.initialisation import plain_norm, start_small
from agents.encoders.hierarchical.rotary import rotate
from agents.encoders.hierarchical.shift import shift_back, shift_both_ways
from agents.encoders.hierarchical.windows import full_attention, local_attention


def to_strands(vectors: Tensor, strands: int) -> Tensor:
    """(B, m, ...) to (B * strands, ceil(m / strands), ...): every ``strands``-th vector together,
    so that neighbours touch and do not overlap; zeros at the end fill up."""
    if strands == 1:
        return vectors
    surplus = -vectors.shape[1] % strands
    filled = pad(vectors, (*(0, 0) * (vectors.ndim - 2), 0, surplus))
    return filled.unflatten(1, (-1, strands)).transpose(1, 2).flatten(0, 1)


def from_strands(vectors: Tensor, strands: int, length: int) -> Tensor:
    """The reverse of ``to_strands``."""
    if strands == 1:
        return vectors
    return vectors.unflatten(0, (-1, strands)).transpose(1, 2).flatten(1, 2)[:, :length]


class Attention(nn.Module):
    """The projections of multi-head attention with rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        start_small(self.output)

    def project(
        self, vectors: Float[Tensor, "B K W"], start: int = 0
    ) -> tuple[Float[Tensor, "B H K d"], Float[Tensor, "B H K d"], Float[Tensor, "B H K d"]]:
        """Queries, keys and values of the positions from ``start`` on."""
        parts = self.query_key_value(vectors)
        query, key, value = parts.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return rotate(query, start), rotate(key, start), value

    def join(self, attended: Float[Tensor, "B H K d"]) -> Float[Tensor, "B K W"]:
        return self.output(attended.transpose(1, 2).flatten(2))


class HierarchyBlock(nn.Module):
    """Pre-norm, with a token shift in front of attention and feed-forward network."""

    def __init__(self, config: HierarchyConfig, causal: bool) -> None:
        super().__init__()
        self.strands, self.window, self.causal = config.strands, config.window, causal
        self.attention = None
        if config.window != 0:
            self.before_attention = plain_norm(config.width)
            self.attention = Attention(config.width, config.heads)
        hidden = round(config.expansion * config.width)
        self.before_feed_forward = plain_norm(config.width)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.width, hidden),
            nn.GELU(),
            nn.Linear(hidden, config.width, bias=False),
        )
        start_small(self.feed_forward[2])

    def forward(
        self,
        vectors: Float[Tensor, "B m W"],
        present: Bool[Tensor, "B m"] | None = None,
        cache: BlockCache | None = None,
    ) -> Float[Tensor, "B m W"]:
        """All vectors at once.

        Args:
            vectors: zeros where absent; the result has them too.
            present: True <--> a vector is there, else it is as if the sequence had ended; None is
                everywhere.
            cache: filled, where given, for ``step`` to go on from.
        """
        length = vectors.shape[1]
        if present is not None:
            present = to_strands(present, self.strands)
        vectors = to_strands(vectors, self.strands)

        def shifted(norm: nn.Module) -> tuple[Tensor, Tensor]:
            normed = norm(vectors)
            if present is not None:
                normed = normed.masked_fill(~present[..., None], 0.0)
            return normed, shift_back(normed) if self.causal else shift_both_ways(normed)

        if self.attention is not None:
            normed, mixed = shifted(self.before_attention)
            query, key, value = self.attention.project(mixed)
            if self.window is None:
                attended = full_attention(query, key, value, self.causal, present)
            else:
                attended = local_attention(query, key, value, self.window, self.causal, present)
            vectors = vectors + self.attention.join(attended)
            if cache is not None:
                self._remember(cache, normed, key, value, length)
        normed, mixed = shifted(self.before_feed_forward)
        vectors = vectors + self.feed_forward(mixed)
        if cache is not None:
            past = from_strands(normed, self.strands, length)
            cache.before_feed_forward = newest(past, self.strands)
            cache.count = length
        if present is not None:
            vectors = vectors.masked_fill(~present[..., None], 0.0)
        return from_strands(vectors, self.strands, length)

    def step(self, vector: Float[Tensor, "B 1 W"], cache: BlockCache) -> Float[Tensor, "B 1 W"]:
        """The next vector alone; ``cache`` is moved on."""
        if self.attention is not None:
            normed = self.before_attention(vector)
            assert cache.before_attention is not None
            mixed = shift_back(normed, cache.before_attention[:, :1])
            cache.before_attention = newest(_append(cache.before_attention, normed), self.strands)
            query, key, value = self.attention.project(mixed, cache.count // self.strands)
            cache.keys = self._reached(_append(cache.keys, key, 2))
            cache.values = self._reached(_append(cache.values, value, 2))
            own = slice((cache.keys.shape[2] - 1) % self.strands, None, self.strands)
            attended = scaled_dot_product_attention(
                query, cache.keys[:, :, own], cache.values[:, :, own]
            )
            vector = vector + self.attention.join(attended)
        normed = self.before_feed_forward(vector)
        assert cache.before_feed_forward is not None
        mixed = shift_back(normed, cache.before_feed_forward[:, :1])
        cache.before_feed_forward = newest(_append(cache.before_feed_forward, normed), self.strands)
        cache.count += 1
        return vector + self.feed_forward(mixed)

    def _remember(
        self, cache: BlockCache, normed: Tensor, key: Tensor, value: Tensor, length: int
    ) -> None:
        def in_order(parts: Tensor) -> Tensor:  # (B * strands, H, K, d) to (B, H, m, d)
            return from_strands(parts.transpose(1, 2), self.strands, length).transpose(1, 2)

        cache.before_attention = newest(from_strands(normed, self.strands, length), self.strands)
        cache.keys = self._reached(in_order(key))
        cache.values = self._reached(in_order(value))

    def _reached(self, past: Tensor) -> Tensor:
        """The part of the past that a later vector may look at."""
        if self.window is None:
            return past
        return past[:, :, -self.window * self.strands :]


def _append(past: Tensor | None, new: Tensor, dim: int = 1) -> Tensor:
    assert past is not None, "step needs a cache that forward has filled"
    return torch.cat((past, new), dim)
