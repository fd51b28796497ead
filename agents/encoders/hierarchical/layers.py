"""The layers that language model and context encoder share: parallel hierarchies, merged.

A block of one hierarchy is a token shift, attention in windows and a feed-forward network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention, silu

from agents.encoders.base import attend
from agents.encoders.config import HierarchyConfig

SHARE = 0.1
"""Factor of initial weights: a deep model starts near the identity, and a head near the uniform
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

    def __init__(self, width: int, heads: int, of_a_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * heads * of_a_head, bias=False)
        self.output = nn.Linear(heads * of_a_head, width, bias=False)
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
            self.attention = Attention(config.width, config.heads, config.of_a_head)
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


# ---------------------------------------------------------------- layers


def covered(
    tokens: Float[Tensor, "B L E"], rate: int, stride: int, causal: bool
) -> Float[Tensor, "B m _"]:
    """The tokens of each vector side by side, oldest first; zeros where there are none.

    Vector ``j`` covers the ``rate`` tokens that end with token ``j * stride`` where ``causal``,
    otherwise those that begin with it. Every length works: there are ``ceil(L / stride)``.
    """
    length = tokens.shape[1]
    last = (length - 1) // stride * stride
    around = (rate - 1, last + 1 - length) if causal else (0, last + rate - length)
    padded = pad(tokens, (0, 0, *around))
    # Not unfold, whose gradient was measured 40 times as slow at rate 2 and stride 1.
    return torch.cat([padded[:, first : first + last + 1 : stride] for first in range(rate)], 2)


def spread(
    vectors: Float[Tensor, "B m W"], stride: int, length: int
) -> Float[Tensor, "B {length} W"]:
    """Each vector ``stride`` times, cut to the length of the tokens."""
    if stride == 1:
        return vectors
    return vectors.repeat_interleave(stride, dim=1)[:, :length]


class Compress(nn.Module):
    """A strided convolution from embedded tokens to the vectors of one hierarchy.

    The simple hierarchical transformer (P. Wang 2023, "simple-hierarchical-transformer") has two
    layers here; the feed-forward network of the first block makes the second one needless.
    """

    def __init__(self, config: HierarchyConfig, embedding: int, causal: bool) -> None:
        super().__init__()
        self.rate, self.stride, self.causal = config.rate, config.stride, causal
        self.project: nn.Module = nn.Linear(config.rate * embedding, config.width, bias=False)
        if config.rate == 1 and embedding == config.width:
            self.project = nn.Identity()

    def forward(self, tokens: Float[Tensor, "B L E"]) -> Float[Tensor, "B _ _"]:
        if self.rate == 1:
            return self.project(tokens)
        return self.project(covered(tokens, self.rate, self.stride, self.causal))


class Merge(nn.Module):
    """A network with one hidden layer over the vectors of all hierarchies at a token, side by side.

    The hidden layer's part for each hierarchy is computed before its vectors are spread over their
    tokens, so that a coarse hierarchy costs little.
    """

    def __init__(
        self, hierarchies: Sequence[HierarchyConfig], receivers: Sequence[int], hidden: int
    ) -> None:
        """``receivers`` are the numbers of the hierarchies that the result is added to."""
        super().__init__()
        self.strides = [hierarchy.stride for hierarchy in hierarchies]
        self.receivers = tuple(receivers)
        self.widths = [hierarchies[index].width for index in receivers]
        self.norms = nn.ModuleList(plain_norm(hierarchy.width) for hierarchy in hierarchies)
        self.hidden = nn.ModuleList(
            nn.Linear(hierarchy.width, hidden, bias=False) for hierarchy in hierarchies
        )
        self.output = nn.Linear(hidden, sum(self.widths), bias=False)
        start_small(self.output)

    def part(self, index: int, vectors: Float[Tensor, "B m W"]) -> Float[Tensor, "B m _"]:
        """The part of hierarchy ``index`` in the hidden layer, not yet spread."""
        return self.hidden[index](self.norms[index](vectors))

    def join(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The update of each receiver at every token (B, L, W), from parts (B, L, hidden)."""
        return list(self.output(silu(sum(parts[1:], parts[0]))).split(self.widths, dim=2))

    def forward(
        self, vectors: Sequence[Float[Tensor, "B _ _"]], length: int
    ) -> tuple[list[Float[Tensor, "B _ _"]], list[Float[Tensor, "B _ _"]]]:
        """The hierarchies of ``length`` tokens after the merge, and the parts before they were
        spread."""
        parts = [self.part(index, each) for index, each in enumerate(vectors)]
        strides = self.strides
        pooled = self.join([spread(p, s, length) for p, s in zip(parts, strides, strict=True)])
        merged = list(vectors)
        for index, update in zip(self.receivers, pooled, strict=True):
            merged[index] = merged[index] + update[:, :: strides[index]]
        return merged, parts


@dataclass
class Cache:
    """The state of a whole model during generation, so that a new token costs one step; ``forward``
    fills it."""

    blocks: list[list[BlockCache]]
    """Caches of each layer and hierarchy."""
    merged: list[list[Tensor]]
    """The last part of each hierarchy in each layer's merge, (B, 1, hidden)."""
    ends: list[Tensor] = field(init=False)
    """The last vector of each hierarchy as it comes out of the last layer, (B, 1, width)."""
    embedded: Float[Tensor, "B _ E"] = field(init=False)
    """The last embedded tokens, as many as the coarsest vector is made of, less one."""
    count: int = 0
    """Tokens read so far."""


class Hierarchies(NamedTuple):
    """The vectors of each hierarchy, (B, ceil(L / stride), width)."""

    starts: list[Float[Tensor, "B _ _"]]
    """As compressed from the embedded tokens."""
    ends: list[Float[Tensor, "B _ _"]]
    """As they come out of the last layer."""


class HierarchicalLayers(nn.Module):
    """Blocks of each hierarchy side by side, and a merge after each layer (after the simple
    hierarchical transformer, P. Wang 2023, and Nawrot et al. 2021, "Hierarchical Transformers Are
    More Efficient Language Models").
    """

    def __init__(
        self,
        hierarchies: Sequence[HierarchyConfig],
        layers: int,
        embedding: int,
        causal: bool,
        receivers: Sequence[int] = (0,),
    ) -> None:
        """``receivers`` are the hierarchies that what is merged is added to."""
        super().__init__()
        self.hierarchies = tuple(hierarchies)
        self.compress = nn.ModuleList(Compress(each, embedding, causal) for each in hierarchies)
        self.blocks = nn.ModuleList(
            nn.ModuleList(HierarchyBlock(each, causal) for each in hierarchies)
            for _ in range(layers)
        )
        # One hierarchy alone has nothing to merge.
        merges = layers if len(hierarchies) > 1 else 0
        hidden = hierarchies[receivers[0]].width
        self.merges = nn.ModuleList(Merge(hierarchies, receivers, hidden) for _ in range(merges))

    def forward(
        self,
        embedded: Float[Tensor, "B L E"],
        present: Bool[Tensor, "B L"] | None = None,
        cache: Cache | None = None,
    ) -> Hierarchies:
        """All tokens at once.

        Args:
            embedded: the tokens; zeros where there is none.
            present: True <--> a token is there; each row's come first. None is everywhere.
            cache: an empty one is filled for ``step`` to go on from.
        """
        there = [
            None if present is None else present[:, :: each.stride] for each in self.hierarchies
        ]
        vectors = _present_only([compress(embedded) for compress in self.compress], there)
        starts = vectors
        for layer, blocks in enumerate(cast("list[list[HierarchyBlock]]", self.blocks)):
            caches = cache.blocks[layer] if cache else [None] * len(vectors)
            vectors = [
                block(each, mask, of)
                for block, each, mask, of in zip(blocks, vectors, there, caches, strict=True)
            ]
            if self.merges:
                vectors, parts = self.merges[layer](vectors, embedded.shape[1])
                vectors = _present_only(vectors, there)
                if cache is not None:
                    cache.merged[layer] = [part[:, -1:] for part in parts]
        if cache is not None:
            reach = max(each.rate for each in self.hierarchies) - 1
            cache.embedded = newest(embedded, reach)
            cache.ends = [each[:, -1:] for each in vectors]
            cache.count = embedded.shape[1]
        return Hierarchies(starts, vectors)

    def empty_cache(self) -> Cache:
        """For ``forward`` to fill."""
        blocks = [[BlockCache() for _ in self.hierarchies] for _ in self.blocks]
        return Cache(blocks, merged=[[] for _ in self.blocks])

    def step(self, embedded: Float[Tensor, "B 1 E"], cache: Cache) -> list[Float[Tensor, "B 1 _"]]:
        """The last vector of each hierarchy after the next token; ``cache`` is moved on.

        A hierarchy works only at the tokens where it has a new vector.
        """
        tokens = torch.cat((cache.embedded, embedded), 1)
        vectors = {
            index: cast(Compress, self.compress[index]).project(
                tokens[:, -each.rate :].flatten(1)[:, None]
            )
            for index, each in enumerate(self.hierarchies)
            if cache.count % each.stride == 0
        }
        for layer, blocks in enumerate(cast("list[list[HierarchyBlock]]", self.blocks)):
            for index in vectors:
                vectors[index] = blocks[index].step(vectors[index], cache.blocks[layer][index])
            if self.merges:
                merge = cast(Merge, self.merges[layer])
                for index, vector in vectors.items():
                    cache.merged[layer][index] = merge.part(index, vector)
                updates = merge.join(cache.merged[layer])
                for index, update in zip(merge.receivers, updates, strict=True):
                    if index in vectors:
                        vectors[index] = vectors[index] + update
        cache.embedded = tokens[:, 1:]
        for index, vector in vectors.items():
            cache.ends[index] = vector
        cache.count += 1
        return cache.ends


def _present_only(vectors: list[Tensor], there: Sequence[Tensor | None]) -> list[Tensor]:
    return [
        each if mask is None else each.masked_fill(~mask[..., None], 0.0)
        for each, mask in zip(vectors, there, strict=True)
    ]
