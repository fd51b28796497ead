"""Layers that read a sequence at its full length before and after they read it shortened."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from agents.encoders.config import HierarchyConfig
from agents.encoders.hierarchical.layers import (
    BlockCache,
    Cache,
    Compress,
    Hierarchies,
    HierarchyBlock,
    moved_on,
    newest,
    norm_before,
    spread,
)


class HourglassLayers(nn.Module):
    """Causal blocks of one hierarchy inside those of the next lower one (Nawrot et al. 2021,
    "Hierarchical Transformers Are More Efficient Language Models").

    A hierarchy's vectors go through the first half of its blocks, are shortened to those of the
    next higher hierarchy, which does the same, receive what comes back, and go through the second
    half. The highest has all its blocks in the middle.
    """

    def __init__(
        self, hierarchies: Sequence[HierarchyConfig], blocks: Sequence[int], embedding: int
    ) -> None:
        """
        Args:
            hierarchies: their options; rates and strides are multiples of the next lower ones.
            blocks: of each hierarchy; of an odd number the second half has one more.
            embedding: width of the embedded tokens.
        """
        super().__init__()
        self.hierarchies, self.counts = tuple(hierarchies), tuple(blocks)
        rising = sorted(range(len(hierarchies)), key=lambda index: hierarchies[index].rate)
        self.lowest = rising[0]
        self.above = dict(pairwise(rising))
        below = {high: low for low, high in self.above.items()}
        self.compress = nn.ModuleList(
            Compress(each, embedding, True, hierarchies[below[index]] if index in below else None)
            for index, each in enumerate(hierarchies)
        )
        self.before, self.after, self.back = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for index, (each, count) in enumerate(zip(hierarchies, blocks, strict=True)):
            first = count // 2 if index in self.above else count
            made = [HierarchyBlock(each, causal=True) for _ in range(count)]
            self.before.append(nn.ModuleList(made[:first]))
            self.after.append(nn.ModuleList(made[first:]))
            back: nn.Module = nn.Identity()
            if index in self.above:
                wide = hierarchies[self.above[index]].width
                linear = nn.Linear(wide, each.width, bias=False)
                back = nn.Sequential(norm_before(wide, weights=True), linear)
            self.back.append(back)

    def forward(
        self,
        embedded: Float[Tensor, "B L E"],
        *,
        cache: Cache | None = None,
        merging: bool = True,
    ) -> Hierarchies:
        """All tokens at once.

        Args:
            embedded: the tokens.
            cache: an empty one is filled for ``step`` to go on from, which merges.
            merging: False <--> nothing comes back from a higher hierarchy.
        """
        starts: list[Tensor] = [embedded] * len(self.hierarchies)
        ends = list(starts)

        def read(index: int, parts: Tensor) -> Tensor:
            vectors = starts[index] = self.compress[index](parts)
            caches = iter(cache.blocks[index]) if cache else None
            for block in self._blocks(self.before, index):
                vectors = block(vectors, None, next(caches) if caches else None)
            if index in self.above:
                higher = self.above[index]
                if cache is not None:
                    cache.starts[index] = newest(vectors, self._made_of(higher))
                part = self.back[index](read(higher, vectors))
                if cache is not None:
                    cache.merged[index] = [part[:, -1:]]
                if merging:
                    vectors = vectors + spread(part, self._ratio(index), vectors.shape[1])
            for block in self._blocks(self.after, index):
                vectors = block(vectors, None, next(caches) if caches else None)
            ends[index] = vectors
            return vectors

        if cache is not None:
            cache.embedded = newest(embedded, self._made_of(self.lowest))
            cache.count = embedded.shape[1]
        read(self.lowest, embedded)
        if cache is not None:
            cache.ends = [each[:, -1:] for each in ends]
        return Hierarchies(starts, ends)

    def empty_cache(self) -> Cache:
        """For ``forward`` to fill: blocks of each hierarchy, what came back last to it, and as many
        vectors from before that as a higher one is made of (``starts``)."""
        blocks = [[BlockCache() for _ in range(count)] for count in self.counts]
        cache = Cache(blocks, merged=[[] for _ in self.counts])
        cache.starts = [torch.empty(0) for _ in self.counts]
        return cache

    def step(self, embedded: Float[Tensor, "B 1 E"], cache: Cache) -> list[Float[Tensor, "B 1 _"]]:
        """The last vector of each hierarchy after the next token; ``cache`` is moved on.

        A hierarchy works only at the tokens where it has a new vector.
        """

        def read(index: int, parts: Tensor) -> Tensor:
            vector = cast(Compress, self.compress[index]).newest(parts)
            caches = iter(cache.blocks[index])
            for block in self._blocks(self.before, index):
                vector = block.step(vector, next(caches))
            if index in self.above:
                higher = self.above[index]
                cache.starts[index] = moved_on(cache.starts[index], vector)
                if cache.count % self.hierarchies[higher].stride == 0:
                    cache.merged[index] = [self.back[index](read(higher, cache.starts[index]))]
                vector = vector + cache.merged[index][0]
            for block in self._blocks(self.after, index):
                vector = block.step(vector, next(caches))
            cache.ends[index] = vector
            return vector

        cache.embedded = moved_on(cache.embedded, embedded)
        read(self.lowest, cache.embedded)
        cache.count += 1
        return cache.ends

    def _blocks(self, of: nn.ModuleList, index: int) -> Iterable[HierarchyBlock]:
        return cast("Iterable[HierarchyBlock]", of[index])

    def _made_of(self, index: int) -> int:
        """The places from the first to the last of what a vector of this hierarchy is made of."""
        return cast(Compress, self.compress[index]).reach + 1

    def _ratio(self, index: int) -> int:
        """Vectors of this hierarchy from one of the next higher one to the next."""
        return self.hierarchies[self.above[index]].stride // self.hierarchies[index].stride
