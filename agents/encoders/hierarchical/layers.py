"""The layers that language model and context encoder share: parallel hierarchies, merged.

A block of one hierarchy is a token shift, attention in windows and a feed-forward network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention, silu

from agents.encoders.base import attend
from agents.encoders.config import HierarchyConfig

SHARE = 0.1
"""Factor of initial weights that start small. Not 0, with which no gradient would reach what lies
before."""


def norm_before(width: int, weights: bool) -> nn.LayerNorm:
    """A layer norm without a bias, so that zeros stay zeros.

    ``weights`` are what a language model learns faster with; an encoder of a policy does without
    them (OLMo, Groeneveld et al. 2024), since the linear layer that follows has its own.
    """
    return nn.LayerNorm(width, elementwise_affine=weights, bias=False)


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


def moved_on(vectors: Float[Tensor, "B K _"], new: Float[Tensor, "B 1 _"]) -> Tensor:
    """As many vectors, ``new`` behind them and the oldest gone."""
    return torch.cat((vectors, new), 1)[:, 1:]


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

    def project(
        self, vectors: Float[Tensor, "B K W"], start: int = 0
    ) -> tuple[Float[Tensor, "B H K d"], Float[Tensor, "B H K d"], Float[Tensor, "B H K d"]]:
        """Queries, keys and values of the positions from ``start`` on."""
        parts = self.query_key_value(vectors).unflatten(2, (3 * self.heads, -1)).transpose(1, 2)
        turned, value = parts.split((2 * self.heads, self.heads), 1)
        query, key = rotate(turned, start).chunk(2, dim=1)
        return query, key, value

    def join(self, attended: Float[Tensor, "B H K d"]) -> Float[Tensor, "B K W"]:
        return self.output(attended.transpose(1, 2).flatten(2))


class HierarchyBlock(nn.Module):
    """Pre-norm, with a token shift in front of attention and feed-forward network."""

    def __init__(self, config: HierarchyConfig, causal: bool) -> None:
        super().__init__()
        self.strands, self.window, self.causal = config.strands, config.window, causal
        self.attention = None
        if config.window != 0:
            self.before_attention = norm_before(config.width, weights=causal)
            self.attention = Attention(config.width, config.heads, config.of_a_head)
        hidden = round(config.expansion * config.width)
        self.before_feed_forward = norm_before(config.width, weights=causal)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.width, hidden),
            nn.GELU(),
            nn.Linear(hidden, config.width, bias=False),
        )

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

        def shifted(before: nn.Module) -> tuple[Tensor, Tensor]:
            normed = before(vectors)
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
            cache.before_attention = moved_on(cache.before_attention, normed)
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
        cache.before_feed_forward = moved_on(cache.before_feed_forward, normed)
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
    Angles have at least 32 bits: in bfloat16 neighbouring positions above 256 would be the same.
    """
    length, half = vectors.shape[2], vectors.shape[3] // 2
    exact, device = torch.promote_types(vectors.dtype, torch.float32), vectors.device
    positions = torch.arange(start, start + length, device=device, dtype=exact)
    exponents = torch.arange(half, device=device, dtype=exact) / half
    angles = positions[:, None] * 10_000.0**-exponents  # (K, d / 2)
    cosine, sine = angles.cos().to(vectors.dtype), angles.sin().to(vectors.dtype)
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
    tokens: Float[Tensor, "B L E"], rate: int, stride: int, causal: bool, apart: int = 1
) -> Float[Tensor, "B m _"]:
    """The tokens of each vector side by side, oldest first; zeros where there are none.

    Vector ``j`` covers ``rate`` tokens, ``apart`` places from one to the next, that end with token
    ``j * stride`` where ``causal``, otherwise that begin with it. Every length works: there are
    ``ceil(L / stride)``.
    """
    length = tokens.shape[1]
    last = (length - 1) // stride * stride
    reach = (rate - 1) * apart
    around = (reach, last + 1 - length) if causal else (0, last + 1 + reach - length)
    padded = pad(tokens, (0, 0, *around))
    # Not unfold, whose gradient was measured 40 times as slow at rate 2 and stride 1.
    firsts = range(0, reach + 1, apart)
    return torch.cat([padded[:, first : first + last + 1 : stride] for first in firsts], 2)


def spread(
    vectors: Float[Tensor, "B m W"], stride: int, length: int
) -> Float[Tensor, "B {length} W"]:
    """Each vector ``stride`` times, cut to the length of the tokens."""
    if stride == 1:
        return vectors
    return vectors.repeat_interleave(stride, dim=1)[:, :length]


class Compress(nn.Module):
    """The first vectors of one hierarchy, each made of several embedded tokens, or of the vectors
    of a lower hierarchy."""

    def __init__(
        self, config: HierarchyConfig, embedding: int, causal: bool, below: HierarchyConfig | None
    ) -> None:
        """``below`` is the hierarchy whose vectors it takes; None: the embedded tokens."""
        super().__init__()
        self.causal = causal
        self.count, self.stride, self.apart = config.rate, config.stride, 1
        width = embedding
        if below is not None:
            self.count, self.stride = config.rate // below.rate, config.stride // below.stride
            self.apart, width = below.strands, below.width
        self.project: nn.Module
        if self.count > 1:
            compressor = Attending if config.compressor == "attention" else convolution
            self.project = compressor(config, self.count, width)
        elif width != config.width:
            self.project = nn.Linear(width, config.width, bias=False)
        else:
            self.project = nn.Identity()

    @property
    def reach(self) -> int:
        """The places from the first to the last of what a vector is made of."""
        return (self.count - 1) * self.apart

    def forward(self, parts: Float[Tensor, "B _ _"]) -> Float[Tensor, "B _ _"]:
        """All vectors of a sequence."""
        if self.count == 1:
            return self.project(parts)
        return self.project(covered(parts, self.count, self.stride, self.causal, self.apart))

    def newest(self, parts: Float[Tensor, "B _ _"]) -> Float[Tensor, "B 1 W"]:
        """The vector that ends with the last part alone."""
        return self.project(parts[:, -1 - self.reach :: self.apart].flatten(1)[:, None])


def convolution(config: HierarchyConfig, count: int, width: int) -> nn.Linear:
    """A linear layer over the parts side by side. The original has a hidden layer here; measured,
    it learns no faster, and the feed-forward network of the first block follows anyway."""
    return nn.Linear(count * width, config.width, bias=False)


class Attending(nn.Module):
    """Self-attention of the parts: the last one's query over all of them, added to it."""

    def __init__(self, config: HierarchyConfig, count: int, width: int) -> None:
        super().__init__()
        self.count = count
        self.norm = norm_before(width, weights=True)
        self.attention = Attention(width, config.heads, config.of_a_head)
        self.project = nn.Linear(width, config.width, bias=False)

    def forward(self, parts: Float[Tensor, "B m _"]) -> Float[Tensor, "B m _"]:
        chunks = parts.unflatten(2, (self.count, -1)).flatten(0, 1)  # (B * m, count, width)
        query, key, value = self.attention.project(self.norm(chunks))
        attended = scaled_dot_product_attention(query[:, :, -1:], key, value)
        joined = chunks[:, -1:] + self.attention.join(attended)
        return self.project(joined).view(*parts.shape[:2], -1)


class Merge(nn.Module):
    """A network with one hidden layer over the vectors of all hierarchies at a token, side by side.

    The hidden layer's part for each hierarchy is computed before its vectors are spread over their
    tokens, so that a coarse hierarchy costs little.
    """

    def __init__(
        self, hierarchies: Sequence[HierarchyConfig], receivers: Sequence[int], weights: bool = True
    ) -> None:
        """``receivers`` are the numbers of the hierarchies that the result is added to, ``weights``
        those of the norms."""
        super().__init__()
        self.strides = [hierarchy.stride for hierarchy in hierarchies]
        self.receivers = tuple(receivers)
        self.widths = [hierarchies[index].width for index in receivers]
        hidden = sum(self.widths)
        self.norms = nn.ModuleList(
            norm_before(hierarchy.width, weights) for hierarchy in hierarchies
        )
        self.hidden = nn.ModuleList(
            nn.Linear(hierarchy.width, hidden, bias=False) for hierarchy in hierarchies
        )
        self.output = nn.Linear(hidden, sum(self.widths), bias=False)

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
    """The last embedded tokens, as many as a vector may be made of."""
    starts: list[Tensor] = field(init=False)
    """The first vectors of each hierarchy, as many as one of the next hierarchy may be made of."""
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
        chained: bool = False,
        share_attention: bool = False,
    ) -> None:
        """
        Args:
            hierarchies: their options.
            layers: blocks of each hierarchy.
            embedding: width of the embedded tokens.
            causal: True <--> no vector depends on a later token.
            receivers: the hierarchies that what is merged is added to.
            chained: each hierarchy is made of the vectors of the next lower one.
            share_attention: the hierarchies of a layer have one attention.
        """
        super().__init__()
        self.hierarchies = tuple(hierarchies)
        self.rising = sorted(range(len(hierarchies)), key=lambda index: hierarchies[index].rate)
        self.below: dict[int, int] = {}
        if chained:
            self.below = dict(zip(self.rising[1:], self.rising, strict=False))
        self.compress = nn.ModuleList(
            Compress(each, embedding, causal, hierarchies[self.below[index]])
            if index in self.below
            else Compress(each, embedding, causal, None)
            for index, each in enumerate(hierarchies)
        )
        self.blocks = nn.ModuleList(
            nn.ModuleList(HierarchyBlock(each, causal) for each in hierarchies)
            for _ in range(layers)
        )
        if share_attention:
            for blocks in cast("Iterable[list[HierarchyBlock]]", self.blocks):
                for block in blocks:
                    block.attention = blocks[0].attention
        # One hierarchy alone has nothing to merge.
        merges = layers if len(hierarchies) > 1 else 0
        self.merges = nn.ModuleList(Merge(hierarchies, receivers, causal) for _ in range(merges))

    def forward(
        self,
        embedded: Float[Tensor, "B L E"],
        present: Bool[Tensor, "B L"] | None = None,
        cache: Cache | None = None,
        merging: bool = True,
    ) -> Hierarchies:
        """All tokens at once.

        Args:
            embedded: the tokens; zeros where there is none.
            present: True <--> a token is there; each row's come first. None is everywhere.
            cache: an empty one is filled for ``step`` to go on from, which merges.
            merging: False <--> nothing is merged, every hierarchy is by itself.
        """
        there = [
            None if present is None else present[:, :: each.stride] for each in self.hierarchies
        ]
        made: dict[int, Tensor] = {}
        for index in self.rising:
            parts = made[self.below[index]] if index in self.below else embedded
            made[index] = self.compress[index](parts)
        vectors = starts = _present_only([made[index] for index in range(len(made))], there)
        for layer, blocks in enumerate(cast("list[list[HierarchyBlock]]", self.blocks)):
            caches = cache.blocks[layer] if cache else [None] * len(vectors)
            vectors = [
                block(each, mask, of)
                for block, each, mask, of in zip(blocks, vectors, there, caches, strict=True)
            ]
            if self.merges and merging:
                vectors, parts = self.merges[layer](vectors, embedded.shape[1])
                vectors = _present_only(vectors, there)
                if cache is not None:
                    cache.merged[layer] = [part[:, -1:] for part in parts]
        if cache is not None:
            cache.embedded = newest(embedded, self._kept(None))
            cache.starts = [newest(each, self._kept(index)) for index, each in enumerate(starts)]
            cache.ends = [each[:, -1:] for each in vectors]
            cache.count = embedded.shape[1]
        return Hierarchies(starts, vectors)

    @torch.no_grad()
    def start_small(self) -> None:
        """Shrink the initial weights of all that is added to vectors, so that they are nearly what
        they started from. Good for a policy, whose gradients are noise at first; a language model
        learns more slowly with it."""
        for module in self.modules():
            if isinstance(module, Attention | Merge):
                module.output.weight.mul_(SHARE)
            elif isinstance(module, HierarchyBlock):
                cast(nn.Linear, module.feed_forward[2]).weight.mul_(SHARE)

    def empty_cache(self) -> Cache:
        """For ``forward`` to fill."""
        blocks = [[BlockCache() for _ in self.hierarchies] for _ in self.blocks]
        return Cache(blocks, merged=[[] for _ in self.blocks])

    def step(self, embedded: Float[Tensor, "B 1 E"], cache: Cache) -> list[Float[Tensor, "B 1 _"]]:
        """The last vector of each hierarchy after the next token; ``cache`` is moved on.

        A hierarchy works only at the tokens where it has a new vector.
        """
        cache.embedded = moved_on(cache.embedded, embedded)
        vectors: dict[int, Tensor] = {}
        for index in self.rising:
            if cache.count % self.hierarchies[index].stride == 0:
                below = self.below.get(index)
                parts = cache.embedded if below is None else cache.starts[below]
                vectors[index] = cast(Compress, self.compress[index]).newest(parts)
                cache.starts[index] = moved_on(cache.starts[index], vectors[index])
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
        for index, vector in vectors.items():
            cache.ends[index] = vector
        cache.count += 1
        return cache.ends

    def _kept(self, source: int | None) -> int:
        """How many vectors of a hierarchy, or (None) embedded tokens, a later vector is made of."""
        made_of = [
            cast(Compress, compress).reach + 1
            for index, compress in enumerate(self.compress)
            if self.below.get(index) == source
        ]
        return max(made_of, default=0)


def _present_only(vectors: list[Tensor], there: Sequence[Tensor | None]) -> list[Tensor]:
    return [
        each if mask is None else each.masked_fill(~mask[..., None], 0.0)
        for each, mask in zip(vectors, there, strict=True)
    ]
