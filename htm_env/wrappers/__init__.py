"""Wrappers for clients without ``Dict``, with masks elsewhere, plain networks, or tree search."""

from htm_env.wrappers.cheap_clone import CheapClone
from htm_env.wrappers.flat import Flat, FlatVector
from htm_env.wrappers.masked import Masked
from htm_env.wrappers.sorted import Sorted, Sorting

__all__ = ["CheapClone", "Flat", "FlatVector", "Masked", "Sorted", "Sorting"]
