"""Search for complete binary trees of a known geometry among points in unknown order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from htm_env.datasets import TreesGeometry

_STEPS_PER_POINT = 1000
"""Points placed before a search gives up, for each point there is."""
ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Rounding error of a coordinate, as a share of the image's side."""


class Search(NamedTuple):
    """The result of a search."""

    trees: list[list[int]] | None
    """The points of every tree as a heap (children of ``v``: ``2 v + 1``, ``2 v + 2``), large trees
    first; None if there is no such reading of the points."""
    gave_up: bool = False
    """True <--> there may be one, but too many would have to be tried."""


def find_trees(
    points: Float64[np.ndarray, "N 2"], geometry: TreesGeometry, tolerance: float
) -> Search:
    """Read all points as trees of the geometry's heights and number, each point once.

    Distances are within ``tolerance`` of the geometry's, directions within ``tolerance`` of the
    separation angle; angle jitter and rounding are allowed for. The root's heading is free. A
    backtracking search: it finds a reading wherever there is one, unless it gives up after a
    thousand steps a point.
    """
    search = _Searcher(points, geometry, tolerance)
    for wanted in forests(len(points), geometry.heights, geometry.num_trees):
        trees = search.place(wanted)
        if trees is not None or search.steps > search.limit:
            return Search(trees, trees is None)
    return Search(None)


def forests(size: int, heights: Sequence[int], numbers: Sequence[int]) -> Iterator[list[int]]:
    """The heights of trees, highest first, that have ``size`` nodes in all."""

    def extend(left: int, trees: int, choices: list[int]) -> Iterator[list[int]]:
        if trees == 0 and left == 0:
            yield []
        for place, height in enumerate(choices if trees and left else []):
            nodes = 2**height - 1
            if nodes <= left <= trees * nodes:  # the others are no higher
                for rest in extend(left - nodes, trees - 1, choices[place:]):
                    yield [height, *rest]

    for number in sorted(set(numbers)):
        yield from extend(size, number, sorted(set(heights), reverse=True))


class _Searcher:
    def __init__(
        self, points: Float64[np.ndarray, "N 2"], geometry: TreesGeometry, tolerance: float
    ) -> None:
        self.size, self.geometry = len(points), geometry
        self.slack = ROUNDING * geometry.image_size
        self.limit, self.steps = _STEPS_PER_POINT * len(points), 0
        ways = points[None] - points[:, None]  # (N, N, 2), from the first to the second
        apart = np.linalg.norm(ways, axis=2)
        self.directions = np.arctan2(ways[..., 1], ways[..., 0]).tolist()
        self.place_of = (apart <= self.slack).argmax(axis=1).tolist()
        """The first of the points that lie where each one lies."""
        self.half = math.radians(geometry.separation_angle / 2)
        self.turn = math.radians(geometry.deviation_angle)
        self.near: list[list[list[int]]] = [[]]
        """By level and point: the points that may be its children there."""
        self.allowed = [math.inf]
        """By level: how far a child's direction may be from where it should be, in radians."""
        jitter = math.radians(geometry.angle_jitter)
        angle = 2 * tolerance * self.half + jitter
        for level in range(1, max(geometry.heights)):
            distance = self._distance(level)
            close = np.abs(apart - distance) <= tolerance * distance + self.slack
            np.fill_diagonal(close, False)
            self.near.append([np.flatnonzero(row).tolist() for row in close])
            self.allowed.append(angle + self._rounding(level) + self._rounding(level - 1))
        # Of the two children of a root: both may be jittered and rounded.
        self.allowed_apart = angle + jitter + 2 * self._rounding(1)

    def _distance(self, level: int) -> float:
        return self.geometry.initial_distance * self.geometry.distance_factor ** (level - 1)

    def _rounding(self, level: int) -> float:
        """By how much rounded points can turn the direction to a child."""
        return 2 * self.slack / self._distance(level)

    def place(self, heights: Sequence[int]) -> list[list[int]] | None:
        """Points for all nodes of trees of these heights, or None."""
        # Trees of a single node take what is left.
        sizes = [2**height - 1 for height in heights if height > 1]
        starts = [sum(sizes[:tree]) for tree in range(len(sizes))]
        places = [
            (start, node) for start, size in zip(starts, sizes, strict=True) for node in range(size)
        ]
        twins = {
            start
            for start, size, before in zip(starts[1:], sizes[1:], sizes, strict=False)
            if size == before
        }
        chosen: list[int] = []
        used = [False] * self.size

        def candidates() -> Iterator[int]:
            """The points that the next place may have, after those chosen so far."""
            start, node = places[len(chosen)]
            if node == 0:
                # Of trees that are alike, one order is enough.
                lowest = chosen[start - (places[start - 1][1] + 1)] + 1 if start in twins else 0
                yield from (point for point in range(lowest, self.size) if not used[point])
                return
            tree = chosen[start:]
            tried = set()  # points in one place are alike, and one of them is enough
            for point in self.near[(node + 1).bit_length() - 1][tree[(node - 1) // 2]]:
                if used[point] or self.place_of[point] in tried:
                    continue
                if self._fits(tree, node, point):
                    tried.add(self.place_of[point])
                    yield point

        trying = [candidates()] if places else []
        while trying and len(chosen) < len(places):
            point = next(trying[-1], None)
            if point is None:
                trying.pop()
                if chosen:
                    used[chosen.pop()] = False
                continue
            self.steps += 1
            if self.steps > self.limit:
                return None
            chosen.append(point)
            used[point] = True
            if len(chosen) < len(places):
                trying.append(candidates())
        if len(chosen) < len(places):
            return None
        trees = [chosen[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        return trees + [[point] for point in range(self.size) if not used[point]]

    def _fits(self, tree: list[int], node: int, point: int) -> bool:
        """True <--> the direction of a point is that of a node, given those placed before it."""
        parent = (node - 1) // 2
        direction = self.directions[tree[parent]][point]
        if node == 1:
            return True
        if node == 2:
            between = direction - self.directions[tree[0]][tree[1]]
            return _wrapped(between - 2 * self.half) <= self.allowed_apart
        outwards = 1 if parent % 2 == 0 else -1
        side = 1 if node % 2 == 0 else -1
        incoming = self.directions[tree[(parent - 1) // 2]][tree[parent]]
        expected = incoming + outwards * self.turn + side * self.half
        return _wrapped(direction - expected) <= self.allowed[(node + 1).bit_length() - 1]


def _wrapped(angle: float) -> float:
    """The size of an angle in radians, at most pi."""
    return abs(math.remainder(angle, 2 * math.pi))
