"""The layers that language model and context encoder share: parallel hierarchies, merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from agents.encoders.hierarchical.block import HierarchyBlock
from agents.encoders.hierarchical.cache import BlockCache, Cache, newest
from agents.encoders.hierarchical.compress import Compress
from agents.encoders.hierarchical.config import HierarchyConfig
from agents.encoders.hierarchical.merge import Merge


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
        """What ``forward`` would give the next token; ``cache`` is moved on.

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
