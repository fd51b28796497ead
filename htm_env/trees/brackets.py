"""Binary trees written in brackets (nested tuples, Newick, text), read as ordered merges."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Nested: TypeAlias = "int | tuple[Any, ...] | list[Any]"
"""A token index, or the ordered pair of what was merged."""

NEXT_TREE = None
"""The symbol between two trees of a forest."""


def parse_nested(nested: Nested) -> tuple[NDArray[np.int64], int]:
    """Merges (n - 1, 2) and number of leaves ``n``; ``ValueError`` if it is no binary tree."""
    return _parsed(_symbols_of_nested(nested))


def parse_newick(text: str) -> tuple[NDArray[np.int64], int]:
    """The same from Newick text, whose branch lengths and inner names are ignored."""
    return _parsed(_symbols_of_newick(text))


def parse_text(text: str) -> tuple[NDArray[np.int64], int]:
    """Merges (M, 2) and ``n`` of one line, whose trees are separated by ``|``."""
    symbols = re.findall(r"[(),|]|[^(),|\s]+", text)
    numbers = (int(one) if one.isdecimal() else one for one in symbols if one != ",")
    return _parsed(NEXT_TREE if one == "|" else one for one in numbers)


def _symbols_of_nested(nested: Nested) -> Iterator[object]:
    """Brackets and leaves from left to right, without recursion: a chain may be deep."""
    pending: list[Any] = [nested]
    while pending:
        item = pending.pop()
        if isinstance(item, (list, tuple)):
            yield "("
            pending += [")", *reversed(item)]
        else:
            yield item


def _symbols_of_newick(text: str) -> Iterator[object]:
    previous = ""
    for symbol in re.findall(r"[(),]|:[^(),;]*|[^(),;:\s]+", text):
        if symbol in "()":
            yield symbol
        elif symbol[0] not in ",:" and previous != ")":  # an inner node's name follows a bracket
            yield int(symbol) if symbol.isdecimal() else symbol
        previous = symbol


def _parsed(symbols: Iterable[object]) -> tuple[NDArray[np.int64], int]:
    """Merges and number of leaves of trees in brackets, with ``NEXT_TREE`` between two of them.

    Merge ``t`` is ``~t`` until the end, when the number of leaves is known.
    """
    merges: list[list[Any]] = []
    leaves: list[int] = []
    stack: list[Any] = []
    trees = 1
    for symbol in symbols:
        if symbol == ")":
            children: list[Any] = []
            while stack and stack[-1] != "(":
                children.insert(0, stack.pop())
            if not stack or len(children) != 2:
                raise ValueError(f"a merge is a pair in brackets, but one holds {len(children)}.")
            stack[-1] = ~len(merges)
            merges.append(children)
        elif symbol == "(":
            stack.append(symbol)
        elif symbol is NEXT_TREE:
            _check_ended(stack, trees)
            trees += 1
        elif isinstance(symbol, (int, np.integer)) and not isinstance(symbol, bool):
            leaves.append(int(symbol))
            stack.append(int(symbol))
        else:
            raise ValueError(f"a leaf is the integer index of a token, but one is {symbol!r}.")
    _check_ended(stack, trees)
    if sorted(leaves) != list(range(len(leaves))):
        raise ValueError(f"the leaves must be 0 to {len(leaves) - 1}, once each, but are {leaves}.")
    nodes = np.array(merges, dtype=np.int64).reshape(-1, 2)
    return np.where(nodes < 0, len(leaves) + ~nodes, nodes), len(leaves)


def _check_ended(stack: list[Any], trees: int) -> None:
    """Raise ``ValueError`` unless the stack holds this many trees, all of them closed."""
    if len(stack) != trees or "(" in stack:
        found = len(stack) - trees + 1
        raise ValueError(f"a tree is one node in matching brackets, but here are {found}.")
