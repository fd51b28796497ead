"""A transformer block of one hierarchy: token shift, attention in windows, feed-forward network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from agents.encoders.base import attend
from agents.encoders.config import HierarchyConfig

SHARE = 0.1
"""Of torch's initial weights: a deep model starts near the identity, and a head near the uniform
distribution. Not 0, with which no gradient would reach what lies before."""


@torch.no_grad()
def start_small(layer: nn.Module) -> None:
    """Shrink the initial weights of a linear layer."""
    cast(nn.Linear, layer).weight.mul_(SHARE)


def plain_norm(width: int) -> nn.LayerNorm:
    """A layer norm without weights, since a linear layer follows that has its own (OLMo, Groeneveld
    et al. 2024): as good here, and half as many tensors for the optimizer."""
    return nn.LayerNorm(width, elementwise_affine=False)


@dataclass
class BlockCache:
    """The state of one block during generation, which ``forward`` fills and ``step`` goes on from.

    Vectors are in the order of their hierarchy, its strands interleaved.
    """

    keys: Float[Tensor, "B H _ d"] = field(init=False)
    """Already turned to their positions; as many as the window may still reach."""
    values: Float[Tensor, "B H _ d"] = field(init=False)
    before_attention: Float[Tensor, "B _ W"] = field(init=False)
    """The last inputs of the token shift, one vector a strand."""
    before_feed_forward: Float[Tensor, "B _ W"] = field(init=False)
    count: int = 0
    """Vectors read so far."""


def newest(vectors: Tensor, count: int, dim: int = 1) -> Tensor:
    """The last ``count`` vectors along ``dim``, with zeros before them where there are fewer."""
    length = vectors.shape[dim]
    if length >= count:
        return vectors.narrow(dim, length - count, count)
    shape = list(vectors.shape)
    shape[dim] = count - length
    return torch.cat((vectors.new_zeros(shape), vectors), dim)


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
            mixed = shift_back(normed, cache.before_attention[:, :1])
            cache.before_attention = newest(
                torch.cat((cache.before_attention, normed), 1), self.strands
            )
            query, key, value = self.attention.project(mixed, cache.count // self.strands)
            cache.keys = self._reached(torch.cat((cache.keys, key), 2))
            cache.values = self._reached(torch.cat((cache.values, value), 2))
            own = slice((cache.keys.shape[2] - 1) % self.strands, None, self.strands)
            attended = scaled_dot_product_attention(
                query, cache.keys[:, :, own], cache.values[:, :, own]
            )
            vector = vector + self.attention.join(attended)
        normed = self.before_feed_forward(vector)
        mixed = shift_back(normed, cache.before_feed_forward[:, :1])
        cache.before_feed_forward = newest(
            torch.cat((cache.before_feed_forward, normed), 1), self.strands
        )
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
        """The part of the past that a later vector may attend to."""
        if self.window is None:
            return past
        return past[:, :, -self.window * self.strands :]


def shift_back(
    vectors: Float[Tensor, "B K W"], before: Float[Tensor, "B 1 W"] | None = None
) -> Float[Tensor, "B K W"]:
    """The second half of the features comes from the vector before (as in RWKV, Peng et al. 2023);
    ``before``, or zeros, precede the first."""
    kept, shifted = vectors.chunk(2, dim=2)
    if before is None:
        shifted = pad(shifted, (0, 0, 1, -1))
    else:
        shifted = torch.cat((before.chunk(2, dim=2)[1], shifted[:, :-1]), 1)
    return torch.cat((kept, shifted), 2)


def shift_both_ways(vectors: Float[Tensor, "B K W"]) -> Float[Tensor, "B K W"]:
    """A quarter of the features comes from the vector before, a quarter from the one after."""
    half, quarter = vectors.shape[2] // 2, vectors.shape[2] // 4
    kept, earlier, later = vectors.split((half, quarter, quarter), dim=2)
    return torch.cat((kept, pad(earlier, (0, 0, 1, -1)), pad(later, (0, 0, -1, 1))), 2)


def rotate(vectors: Float[Tensor, "B H K d"], start: int = 0) -> Float[Tensor, "B H K d"]:
    """Turn the queries or keys of positions ``start``, ``start + 1``, ... (Su et al. 2021,
    "RoFormer: Enhanced Transformer with Rotary Position Embedding").

    A product of two turned vectors depends on the distance of their positions, not on ``start``.
    """
    length, half = vectors.shape[2], vectors.shape[3] // 2
    positions = torch.arange(start, start + length, device=vectors.device, dtype=vectors.dtype)
    exponents = torch.arange(half, device=vectors.device, dtype=vectors.dtype) / half
    angles = positions[:, None] * 10_000.0**-exponents  # (K, d / 2)
    cosine, sine = angles.cos(), angles.sin()
    first, second = vectors.chunk(2, dim=3)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), 3)


def full_attention(
    query: Float[Tensor, "B H K d"],
    key: Float[Tensor, "B H K d"],
    value: Float[Tensor, "B H K d"],
    causal: bool,
    present: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B H K d"]:
    """Attention to every vector that is ``present``, in causal attention up to the own one.

    Zeros where all are absent. Raises ``ValueError`` for causal attention with absent vectors: a
    causal sequence is never padded here.
    """
    _not_both(causal, present)
    if present is None:
        return scaled_dot_product_attention(query, key, value, is_causal=causal)
    return attend(query, key, value, present[:, None, None])


def local_attention(
    query: Float[Tensor, "B H K d"],
    key: Float[Tensor, "B H K d"],
    value: Float[Tensor, "B H K d"],
    window: int,
    causal: bool,
    present: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B H K d"]:
    """Attention to the vectors less than ``window`` places away; in causal attention, before.

    The sequence is cut into blocks of ``window`` vectors, each of which attends to itself and the
    blocks beside it (Beltagy et al. 2020, "Longformer"; Roy et al. 2021, "Efficient content-based
    sparse attention", for the blocks): time and memory O(K * window).
    """
    _not_both(causal, present)
    batch, heads, length, _ = query.shape
    if length <= window:
        return full_attention(query, key, value, causal, present)
    blocks = -(-length // window)
    surplus = blocks * window - length
    after = 0 if causal else window
    queries = pad(query, (0, 0, 0, surplus)).reshape(batch, heads * blocks, window, -1)

    def beside(vectors: Tensor) -> Tensor:
        padded = pad(vectors, (0, 0, window, surplus + after))
        seen = padded.unfold(2, 2 * window + after, window).transpose(3, 4)
        return seen.reshape(batch, heads * blocks, 2 * window + after, -1)

    if present is None:
        present = torch.ones(1, length, dtype=torch.bool, device=query.device)
    there = pad(present, (window, surplus + after)).unfold(1, 2 * window + after, window)
    mask = there[:, :, None] & in_window(window, causal, query.device)  # (B, blocks, w, seen)
    mask = mask[:, None].expand(-1, heads, -1, -1, -1).flatten(1, 2)
    attended = attend(queries, beside(key), beside(value), mask)
    return attended.reshape(batch, heads, blocks * window, -1)[:, :, :length]


def in_window(window: int, causal: bool, device: torch.device) -> Bool[Tensor, "w seen"]:
    """True <--> a block's vector may attend to this one of those from the block before on."""
    own = torch.arange(window, device=device)[:, None] + window
    other = torch.arange(2 * window if causal else 3 * window, device=device)
    distance = own - other
    return (distance < window) & (distance >= 0 if causal else distance > -window)


def _not_both(causal: bool, present: Tensor | None) -> None:
    if causal and present is not None:
        raise ValueError("attention is causal and has absent vectors; expected one of the two")
