"""The layers that language model and context encoder share: parallel hierarchies, merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from agents.encoders.config import HierarchyConfig
from agents.encoders.hierarchical.block import (
    BlockCache,
    HierarchyBlock,
    newest,
    plain_norm,
    start_small,
)


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

    def __init__(self, hierarchies: Sequence[HierarchyConfig], into_all: bool) -> None:
        super().__init__()
        self.strides = [hierarchy.stride for hierarchy in hierarchies]
        self.widths = [hierarchy.width for hierarchy in hierarchies][: None if into_all else 1]
        hidden = hierarchies[0].width
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
        """The update of each hierarchy at every token (B, L, W), from parts (B, L, hidden)."""
        return list(self.output(silu(sum(parts[1:], parts[0]))).split(self.widths, dim=2))

    def forward(
        self, vectors: Sequence[Float[Tensor, "B _ _"]]
    ) -> tuple[list[Float[Tensor, "B _ _"]], list[Float[Tensor, "B _ _"]]]:
        """The hierarchies after the merge, and the parts before they were spread."""
        length = vectors[0].shape[1]
        parts = [self.part(index, each) for index, each in enumerate(vectors)]
        strides = self.strides
        pooled = self.join([spread(p, s, length) for p, s in zip(parts, strides, strict=True)])
        merged = list(vectors)
        for index, update in enumerate(pooled):
            merged[index] = merged[index] + update[:, :: strides[index]]
        return merged, parts


@dataclass
class Cache:
    """The state of a whole model during generation, so that a new token costs one step."""

    blocks: list[list[BlockCache]]
    """Of each layer and hierarchy."""
    merged: list[list[Tensor]]
    """The last part of each hierarchy in each layer's merge, (B, 1, hidden)."""
    embedded: Float[Tensor, "B _ E"] | None = None
    """The last embedded tokens, as many as the coarsest vector is made of, less one."""
    count: int = 0
    """Tokens read so far."""


class Hierarchies(NamedTuple):
    """The vectors of each hierarchy, (B, ceil(L / stride), width)."""

    starts: list[Float[Tensor, "B _ _"]]
    """As compressed from the embedded tokens."""
    ends: list[Float[Tensor, "B _ _"]]
    """As they come out of the last layer; the first hierarchy's are the tokens'."""


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
        merge_into_all: bool,
    ) -> None:
        super().__init__()
        self.hierarchies = tuple(hierarchies)
        self.compress = nn.ModuleList(Compress(each, embedding, causal) for each in hierarchies)
        self.blocks = nn.ModuleList(
            nn.ModuleList(HierarchyBlock(each, causal) for each in hierarchies)
            for _ in range(layers)
        )
        # One hierarchy alone has nothing to merge.
        merges = layers if len(hierarchies) > 1 else 0
        self.merges = nn.ModuleList(Merge(hierarchies, merge_into_all) for _ in range(merges))

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
                vectors, parts = self.merges[layer](vectors)
                vectors = _present_only(vectors, there)
                if cache is not None:
                    cache.merged[layer] = [part[:, -1:] for part in parts]
        if cache is not None:
            reach = max(each.rate for each in self.hierarchies) - 1
            cache.embedded = newest(embedded, reach)
            cache.count = embedded.shape[1]
        return Hierarchies(starts, vectors)

    def empty_cache(self) -> Cache:
        """For ``forward`` to fill."""
        blocks = [[BlockCache() for _ in self.hierarchies] for _ in self.blocks]
        return Cache(blocks, merged=[[] for _ in self.blocks])

    def step(self, embedded: Float[Tensor, "B 1 E"], cache: Cache) -> Float[Tensor, "B 1 _"]:
        """The output of ``forward`` for the next token; ``cache`` is moved on.

        A hierarchy works only at the tokens where it has a new vector.
        """
        assert cache.embedded is not None, "step needs a cache that forward has filled"
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
                for index, update in enumerate(merge.join(cache.merged[layer])):
                    if index in vectors:
                        vectors[index] = vectors[index] + update
        cache.embedded = tokens[:, 1:]
        cache.count += 1
        return vectors[0]


def _present_only(vectors: list[Tensor], there: Sequence[Tensor | None]) -> list[Tensor]:
    return [
        each if mask is None else each.masked_fill(~mask[..., None], 0.0)
        for each, mask in zip(vectors, there, strict=True)
    ]
