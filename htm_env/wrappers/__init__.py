"""Wrappers for clients that take no ``Dict``, look elsewhere for masks, or search trees."""

from htm_env.wrappers.cheap_clone import CheapClone
from htm_env.wrappers.flat import Flat, FlatVector
from htm_env.wrappers.masked import Masked

__all__ = ["CheapClone", "Flat", "FlatVector", "Masked"]
