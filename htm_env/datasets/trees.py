"""``TreesDataset``: the nodes of complete binary trees, as points of the plane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt64

from htm_env import checks
from htm_env.checks import Choices, Real
from htm_env.datasets.base import (
    LARGEST_SIZE,
    GeneratedArrays,
    GeneratedDataset,
    Shuffle,
    empty_merges,
    uniforms,
    write_balanced_joins,
    write_merges,
)

_MAX_HEIGHT = 10
_MAX_TREES = 1024
_MAX_TOKENS = 8192
_MAX_FACTOR = 10.0


@dataclass(frozen=True)
class TreesGeometry:
    """Geometry of the trees. An int or a list is taken as a tuple of choices too."""

    heights: Choices = (2, 3, 4)
    """Levels of a tree, drawn for each; height h has ``2**h - 1`` nodes; 1 to 10."""
    num_trees: Choices = (1,)
    """Trees of a sample, drawn for each sample."""
    separation_angle: Real = 45.0
    """Degrees between the directions of two siblings, seen from their parent."""
    deviation_angle: Real = 20.0
    """Degrees by which a subtree's heading turns outwards from the direction it lies in."""
    distance_factor: Real = 0.5
    """Factor of the parent-child distance from one level to the next."""
    initial_distance: Real = 50.0
    """Distance of the root's children from the root."""
    image_size: Real = 256.0
    """Side of the square image."""
    centre_fraction: Real = 0.25
    """Side of the central square that roots are drawn in, as a share of ``image_size``."""
    angle_jitter: Real = 0.0
    """Degrees: each child, with all below it, is turned about its parent by up to so much."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` naming the first parameter that is out of range."""
        heights = checks.whole_numbers("heights", self.heights, 1, _MAX_HEIGHT)
        num_trees = checks.whole_numbers("num_trees", self.num_trees, 1, _MAX_TREES)
        object.__setattr__(self, "heights", heights)
        object.__setattr__(self, "num_trees", num_trees)
        smallest = (2 ** min(heights) - 1) * min(num_trees)
        if smallest < 2:
            raise ValueError(
                f"heights {heights} with num_trees {num_trees} allow a sample of one token: "
                "expected at least two"
            )
        largest = (2 ** max(heights) - 1) * max(num_trees)
        if largest > _MAX_TOKENS:
            raise ValueError(
                f"heights {heights} with num_trees {num_trees} allow a sample of {largest} tokens: "
                f"expected at most {_MAX_TOKENS}"
            )
        factor = checks.positive("distance_factor", self.distance_factor, _MAX_FACTOR)
        object.__setattr__(self, "distance_factor", factor)
        for name in ("initial_distance", "image_size"):
            object.__setattr__(self, name, checks.positive(name, getattr(self, name), LARGEST_SIZE))
        for name, low, high in (
            ("separation_angle", 0.0, 360.0),
            ("deviation_angle", -180.0, 180.0),
            ("centre_fraction", 0.0, 1.0),
            ("angle_jitter", 0.0, 180.0),
        ):
            object.__setattr__(self, name, checks.number(name, getattr(self, name), low, high))


class TreesDataset(GeneratedDataset):
    """Every node ``(x, y)`` of complete binary trees is a token.

    The canonical merges of a subtree with top token ``v`` and child subtrees ``L`` and ``R`` are
    those of ``L``, those of ``R``, then ``(L, R)`` to ``x``, then ``(v, x)``; whole trees are then
    joined in a balanced way. The clades are the subtrees of two tokens or more.

    In generator order ("places") tree ``t`` has the places ``t * S .. t * S + S - 1``, with ``S``
    the nodes of the highest tree, and is a heap there: the children of ``v`` are ``2 v + 1``
    and ``2 v + 2``, and a lower tree is a prefix of a higher one.
    """

    name = "HTM-Trees-v0"
    geometry_class = TreesGeometry
    kind = "points"
    token_dim = 2

    def __init__(self, split: str = "train", geometry: TreesGeometry | None = None) -> None:
        super().__init__(split)
        self.geometry = TreesGeometry() if geometry is None else geometry
        self._height = max(self.geometry.heights)
        self._trees = max(self.geometry.num_trees)
        self._nodes = 2**self._height - 1
        self.max_tokens = self._nodes * self._trees
        # Post-order: leaving out the deepest levels of a tree leaves the rest in post-order.
        self._inner = np.array(_post_order(0, self._nodes // 2), dtype=np.int64)
        in_tree = np.array([_subtree(v, self._nodes) for v in self._inner.tolist()], dtype=bool)
        in_tree = in_tree.reshape(len(self._inner), self._nodes)
        self._clade_places = np.kron(np.eye(self._trees, dtype=bool), in_tree)  # (C, P)

    def generate(self, seeds: UInt64[np.ndarray, "B"]) -> GeneratedArrays:
        places, trees, jitters = self.max_tokens, self._trees, self.geometry.angle_jitter > 0
        drawn = uniforms(seeds, 1 + 4 * trees + places + (places if jitters else 0))
        counts, heights, root_x, root_y, heading, order, jitter = np.split(
            drawn, np.cumsum([1, trees, trees, trees, trees, places]), axis=1
        )

        num_trees = _choose(self.geometry.num_trees, counts[:, 0])  # (B,)
        sizes = 2 ** _choose(self.geometry.heights, heights) - 1
        sizes *= np.arange(trees) < num_trees[:, None]  # (B, trees), 0 where there is no tree
        present = np.arange(self._nodes) < sizes[:, :, None]  # (B, trees, S)
        shuffle = Shuffle.draw(order, present.reshape(-1, places))

        roots = np.stack([root_x, root_y], axis=2)
        points = self._points(roots, heading, jitter)
        merges, inner = self._merges(shuffle, sizes, num_trees)
        clades = shuffle.clades(self._clade_places, inner)
        return shuffle.tokens(points), shuffle.present, clades, merges

    def _points(
        self,
        roots: Float64[np.ndarray, "B K 2"],
        heading: Float64[np.ndarray, "B K"],
        jitter: Float64[np.ndarray, "B jitters"],
    ) -> Float64[np.ndarray, "B P 2"]:
        """The places' coordinates, from uniform numbers in [0, 1)."""
        geometry = self.geometry
        side = geometry.centre_fraction * geometry.image_size
        points = np.empty((*heading.shape, self._nodes, 2))
        points[:, :, 0] = (geometry.image_size - side) / 2 + side * roots
        headings = 2 * np.pi * heading[:, :, None]  # (B, K, nodes of this level)
        distance = geometry.initial_distance
        half, turn = np.deg2rad(geometry.separation_angle / 2), np.deg2rad(geometry.deviation_angle)
        shakes = (2 * jitter - 1) * np.deg2rad(geometry.angle_jitter)
        shakes = shakes.reshape(*heading.shape, -1)  # (B, K, S), or empty without jitter
        for level in range(1, self._height):
            first = 2**level - 1
            nodes = slice(first, 2 * first + 1)
            side_of_parent = np.tile([-1.0, 1.0], 2 ** (level - 1))
            parents = np.repeat(headings, 2, axis=2)
            if geometry.angle_jitter > 0:
                parents = parents + shakes[:, :, nodes]
            angles = parents + side_of_parent * half
            step = distance * np.stack([np.cos(angles), np.sin(angles)], axis=3)
            points[:, :, nodes] = np.repeat(points[:, :, first // 2 : first], 2, axis=2) + step
            headings = angles + side_of_parent * turn
            distance *= geometry.distance_factor
        return points.reshape(len(heading), -1, 2)

    def _merges(
        self,
        shuffle: Shuffle,
        sizes: Int64[np.ndarray, "B K"],
        num_trees: Int64[np.ndarray, "B"],
    ) -> tuple[Int64[np.ndarray, "B M 2"], Bool[np.ndarray, "B C"]]:
        """The canonical merges, and which of the inner nodes (a clade each) the trees have."""
        batch = len(sizes)
        num_tokens = sizes.sum(axis=1)
        merges = empty_merges(batch, self.max_tokens)
        slots = shuffle.slot_of_place.reshape(batch, self._trees, self._nodes)

        has_children = 2 * self._inner + 1 < sizes[:, :, None]  # (B, K, inner)
        exists = has_children.reshape(batch, -1)  # (B, C)
        siblings = 2 * (np.cumsum(exists, axis=1) - 1)  # index of the merge (L, R)
        made = num_tokens[:, None] + siblings  # node of (L, R); the next is the subtree's
        subtree = slots.copy()  # node of the subtree below each place
        whole = (made + 1).reshape(has_children.shape)
        subtree[:, :, self._inner] = np.where(has_children, whole, slots[:, :, self._inner])

        def flat(nodes: Int64[np.ndarray, "B K inner"]) -> Int64[np.ndarray, "B C"]:
            return nodes.reshape(batch, -1)

        left, right = subtree[:, :, 2 * self._inner + 1], subtree[:, :, 2 * self._inner + 2]
        write_merges(merges, exists, siblings, flat(left), flat(right))
        write_merges(merges, exists, siblings + 1, flat(slots[:, :, self._inner]), made)
        write_balanced_joins(
            merges, subtree[:, :, 0], num_trees, num_tokens, 2 * exists.sum(axis=1)
        )
        return merges, exists


def _choose(
    choices: tuple[int, ...], uniform: Float64[np.ndarray, "*shape"]
) -> Int64[np.ndarray, "*shape"]:
    return np.array(choices, dtype=np.int64)[(uniform * len(choices)).astype(np.int64)]


def _post_order(node: int, inner: int) -> list[int]:
    """The inner nodes (those below ``inner``) of the heap under ``node``, children first."""
    if node >= inner:
        return []
    return [*_post_order(2 * node + 1, inner), *_post_order(2 * node + 2, inner), node]


def _subtree(node: int, nodes: int) -> Bool[np.ndarray, "nodes"]:
    """True at ``node`` and everything below it in a heap."""
    below = np.zeros(nodes, dtype=bool)
    level = np.array([node])
    while level[0] < nodes:
        below[level] = True
        level = np.concatenate([2 * level + 1, 2 * level + 2])
    return below
