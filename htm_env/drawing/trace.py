"""``Trace``: one episode as numbers that a picture or a page can show."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from htm_env.trees.merge_tree import MergeTree

Numbers = NDArray[np.floating[Any]]


class Considered(NamedTuple):
    """The policy's probability of every ordered pair before one merge."""

    nodes: NDArray[np.int64]
    """(k,) the active nodes, in ascending order."""
    probabilities: Numbers
    """(k, k) of merging the row's node with the column's, in this order; 0 on the diagonal,
    and where the policy could not choose the pair."""


@dataclass(frozen=True, eq=False)
class Trace:
    """One sample of ``n`` tokens from its first merge to its root, without padding."""

    tokens: Numbers
    """(n, T) in raw units."""
    kind: str
    """Kind of the tokens: a name of :data:`htm_env.drawing.glyphs.KINDS`."""
    tree: MergeTree
    """``n - 1`` merges."""
    reconstructions: Numbers | None
    """(n, n, T): the tokens, decoded from the active nodes after ``0 .. n-1`` merges; raw units.
    None where nothing is decoded."""
    errors: Numbers
    """(n,) the ``nmse`` of each of them; where nothing is decoded the cost of the merges so far."""
    considered: tuple[Considered, ...]
    """The policy's choice before each merge; empty for a policy without probabilities."""
    title: str = ""
    """What the sample is called: its row in the data, with its name and label if it has them."""
    leaf_names: tuple[str, ...] = ()
    """What its ``n`` tokens are called; by their numbers if empty."""

    @cached_property
    def names(self) -> list[str]:
        """What the ``2n - 1`` nodes are called.

        Where every token goes by its number so do merged nodes, from ``n`` on; else they are
        ``m1``, ``m2``, ... by their merge, so that none is taken for a token.
        """
        leaves, merges = self.tree.num_leaves, len(self.tree.merges)
        numbers = [str(node) for node in range(leaves + merges)]
        if self.leaf_names in ((), tuple(numbers[:leaves])):
            return numbers
        return [*self.leaf_names, *(f"m{merge + 1}" for merge in range(merges))]

    @property
    def charges(self) -> Numbers:
        """(n - 1,) the error that each merge added: minus its incremental reward."""
        return np.diff(self.errors)

    @property
    def reconstruction(self) -> Numbers | None:
        """(n, T) the tokens that the root alone gives back; None where nothing is decoded."""
        return None if self.reconstructions is None else self.reconstructions[-1]

    @property
    def error_name(self) -> str:
        """What its errors are."""
        return "cost" if self.reconstructions is None else "nmse"
