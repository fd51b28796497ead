"""``KeysDataset``: scenes in which a key token says which of two matchings is the right one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, UInt64

from htm_env import checks
from htm_env.checks import Whole
from htm_env.datasets.base import (
    GeneratedArrays,
    GeneratedDataset,
    Shuffle,
    pair_merges,
    uniforms,
)

_MAX_ITEMS = 2048


@dataclass(frozen=True)
class KeysGeometry:
    """Size of the scenes."""

    num_items: Whole = 8
    """Items of a scene, an even number; the key comes on top."""
    palette: Whole = 8
    """Colours, and shapes, that there are; a scene shows ``num_items / 2`` of each."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` naming the first parameter that is out of range."""
        num_items = checks.whole_number("num_items", self.num_items, 4, _MAX_ITEMS)
        if num_items % 2:
            raise ValueError(f"num_items is {num_items}: expected an even number")
        palette = checks.whole_number("palette", self.palette, num_items // 2, _MAX_ITEMS)
        object.__setattr__(self, "num_items", num_items)
        object.__setattr__(self, "palette", palette)


class KeysDataset(GeneratedDataset):
    """Items that match in two ways, and a key that says which of the two holds.

    Every item has exactly one partner of its colour and exactly one, another, of its shape. A token
    is ``(0, cos c, sin c, cos s, sin s)`` for an item whose colour and shape are the angles ``c``
    and ``s``, and ``(1, 0, 0, 0, 0)`` or ``(-1, 0, 0, 0, 0)`` for the key: colours match, or shapes
    do. The clades are the pairs that match. Nothing but the key tells which: turning the rule
    around only swaps the names of the two properties, whose values are drawn alike. The values come
    from a palette of evenly spaced angles, which is turned at random in every scene: no scene comes
    twice, in whatever split.

    In generator order the items are in a ring in which each shares the rule's property with one
    neighbour and the other property with the other, so that the pairs are the tokens ``2 k`` and
    ``2 k + 1``; the key is last. The canonical merges make the pairs one after another, join them
    in a balanced way, and take in the key at the end.
    """

    name = "HTM-Keys-v0"
    geometry_class = KeysGeometry
    kind = "items"
    token_dim = 5
    default_reward = "right_merges"

    def __init__(self, split: str = "train", geometry: KeysGeometry | None = None) -> None:
        super().__init__(split)
        self.geometry = KeysGeometry() if geometry is None else geometry
        self.max_tokens = self.geometry.num_items + 1
        pairs = np.repeat(np.eye(self.geometry.num_items // 2, dtype=bool), 2, axis=1)
        self._clade_places = np.pad(pairs, ((0, 0), (0, 1)))  # (C, P): the key is in none

    def generate(self, seeds: UInt64[np.ndarray, "B"]) -> GeneratedArrays:
        batch, places, palette = len(seeds), self.max_tokens, self.geometry.palette
        num_pairs = self.geometry.num_items // 2
        drawn = uniforms(seeds, 1 + 2 * (palette + 1) + places)
        rule, ruled, other, order = np.split(
            drawn, np.cumsum([1, palette + 1, palette + 1]), axis=1
        )
        shuffle = Shuffle.draw(order, np.ones((batch, places), dtype=bool))
        tokens = shuffle.tokens(self._places(rule[:, 0] < 0.5, ruled, other))

        exists = np.ones((batch, num_pairs), dtype=bool)
        merges = pair_merges(shuffle.slot_of_place, exists, np.full(batch, places))
        merges[:, -1, 0] = 2 * places - 3  # the node of all items
        merges[:, -1, 1] = shuffle.slot_of_place[:, -1]
        return tokens, shuffle.present, shuffle.clades(self._clade_places, exists), merges

    def _places(
        self,
        colours_match: Bool[np.ndarray, "B"],
        ruled: Float64[np.ndarray, "B palette_and_turn"],
        other: Float64[np.ndarray, "B palette_and_turn"],
    ) -> Float64[np.ndarray, "B P 5"]:
        """The tokens of the places, from uniform numbers in [0, 1)."""
        items, num_pairs = self.geometry.num_items, self.geometry.num_items // 2
        place = np.arange(items)
        matching = self._angles(ruled)[:, place // 2]  # (B, items)
        alike = self._angles(other)[:, (place + 1) // 2 % num_pairs]
        colour = np.where(colours_match[:, None], matching, alike)
        shape = np.where(colours_match[:, None], alike, matching)
        tokens = np.zeros((len(ruled), self.max_tokens, 5))
        tokens[:, -1, 0] = np.where(colours_match, 1.0, -1.0)
        tokens[:, :-1, 1], tokens[:, :-1, 2] = np.cos(colour), np.sin(colour)
        tokens[:, :-1, 3], tokens[:, :-1, 4] = np.cos(shape), np.sin(shape)
        return tokens

    def _angles(
        self, drawn: Float64[np.ndarray, "B palette_and_turn"]
    ) -> Float64[np.ndarray, "B pairs"]:
        """As many different angles of the palette as there are pairs, in random order."""
        chosen = np.argsort(drawn[:, 1:], axis=1, kind="stable")[:, : self.geometry.num_items // 2]
        angles: np.ndarray = (chosen + drawn[:, :1]) * (2 * np.pi / self.geometry.palette)
        return angles
