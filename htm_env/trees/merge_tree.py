"""One sample's forest of ordered binary merges, and the ways in which people write trees."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import networkx

Nested: TypeAlias = "int | tuple[Any, ...] | list[Any]"
"""A token index, or the ordered pair of what was merged."""

NEXT_TREE = None
"""The symbol between two trees of a forest."""


@dataclass(frozen=True, eq=False)
class MergeTree:
    """The merges made so far over ``n`` tokens: a tree once there are ``n - 1`` of them.

    Nodes are numbered as in scipy's linkage: the tokens are the leaves ``0 .. n-1`` and merge ``t``
    makes node ``n + t``. The order within a pair is kept everywhere. The order of the merges is
    kept by linkage and networkx; brackets (nested, Newick, text) do not hold it, so that what they
    give back is the same tree with its merges numbered from the left.

    Brackets and clades name a leaf by the index of its token in the set as it was given, which is
    the leaf's own number unless ``leaves`` says otherwise.
    """

    merges: NDArray[np.int64]
    """(M, 2) node ids, ``M <= n - 1``, read-only; rows of -1 at the end are padding and dropped."""
    num_leaves: int
    """The number of tokens ``n``, at least 1."""
    leaves: NDArray[np.int64]
    """(n,) the index of each leaf's token in its set as it was given, read-only: ``0 .. n-1`` but
    for sets with empty places."""

    def __init__(self, merges: ArrayLike, num_leaves: int, leaves: ArrayLike | None = None) -> None:
        """Raises ``ValueError`` naming the first merge that is not one of a forest, and for
        ``leaves`` that are not ``n`` different indices."""
        object.__setattr__(self, "num_leaves", int(num_leaves))
        object.__setattr__(self, "merges", _checked(merges, self.num_leaves))
        object.__setattr__(self, "leaves", _checked_leaves(leaves, self.num_leaves))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MergeTree):
            return NotImplemented
        same_leaves = np.array_equal(self.leaves, other.leaves)
        return same_leaves and np.array_equal(self.merges, other.merges)

    def __hash__(self) -> int:
        return hash((self.leaves.tobytes(), self.merges.tobytes()))

    @property
    def num_nodes(self) -> int:
        """Leaves and merges together."""
        return self.num_leaves + len(self.merges)

    @property
    def height(self) -> int:
        """Merges on the longest way from a root down to a leaf; 0 before the first merge."""
        return int(self.heights().max())

    def children(self) -> Iterator[tuple[int, int, int]]:
        """``(parent, first, second)`` of every merge, in the order of the merges."""
        for parent, (first, second) in enumerate(self.merges.tolist(), start=self.num_leaves):
            yield parent, first, second

    def roots(self) -> list[int]:
        """The active nodes in ascending order: those that no merge has used yet."""
        return sorted(set(range(self.num_nodes)) - set(self.merges.flatten().tolist()))

    def heights(self) -> NDArray[np.int64]:
        """(n + M,) merges on the longest way from each node down to a leaf; leaves have 0."""
        heights = np.zeros(self.num_nodes, dtype=np.int64)
        for parent, first, second in self.children():
            heights[parent] = 1 + max(heights[first], heights[second])
        return heights

    def depths(self) -> NDArray[np.int64]:
        """(n + M,) merges between each node and the root over it; roots have 0."""
        depths = np.zeros(self.num_nodes, dtype=np.int64)
        for parent, first, second in reversed(list(self.children())):
            depths[[first, second]] = depths[parent] + 1
        return depths

    def clades(self) -> list[frozenset[int]]:
        """The leaves under each merge, in the order of the merges."""
        clades = [frozenset([leaf]) for leaf in self.leaves.tolist()]
        for _, first, second in self.children():
            clades.append(clades[first] | clades[second])
        return clades[self.num_leaves :]

    def nested(self, node: int | None = None) -> Nested:
        """Nested pairs of token indices under ``node``, by default the single root.

        Raises ``ValueError`` if there are several roots and none is named, or no such node.
        """
        nested: list[Nested] = self.leaves.tolist()
        for _, first, second in self.children():
            nested.append((nested[first], nested[second]))
        return nested[self._root(node)]

    def newick(self, node: int | None = None, names: Sequence[object] | None = None) -> str:
        """The tree under ``node`` (by default the single root) as Newick, as in ``((0,1),2);``.

        ``names`` are those of the tokens of the set as it was given; token indices if None. Names
        of more than letters, digits, points and signs are quoted.

        Raises ``ValueError`` as :meth:`nested` does, and for fewer names than there are tokens.
        """
        return self._brackets(",", names)[self._root(node)] + ";"

    def __str__(self) -> str:
        """One line, as in ``((0, 1), 2)``; the trees of a forest are separated by `` | ``."""
        brackets = self._brackets(", ")
        return " | ".join(brackets[root] for root in self.roots())

    def to_networkx(self) -> networkx.DiGraph:
        """Edges from parent to child with ``order`` 0 or 1; nodes say whether they are a leaf."""
        import networkx  # only here, since importing it takes longer than everything else together

        graph: networkx.DiGraph = networkx.DiGraph()
        for node in range(self.num_nodes):
            graph.add_node(node, leaf=node < self.num_leaves)
        for parent, first, second in self.children():
            graph.add_edge(parent, first, order=0)
            graph.add_edge(parent, second, order=1)
        return graph

    def to_linkage(self, heights: ArrayLike | None = None) -> NDArray[np.float64]:
        """(n - 1, 4) scipy's linkage matrix of a whole tree, as ``dendrogram`` draws it.

        Row ``t`` is merge ``t``: its two nodes in their order, its height, and the leaves under it.
        ``heights`` (n - 1,) are at least 0 and never fall from a child to its parent, which is all
        that drawing needs; by default a merge is at its step, ``1 .. n-1``, so that they also rise
        from row to row (scipy's ``is_monotonic``).

        Raises ``ValueError`` for a forest, a single token, and for other heights.
        """
        merges, num_leaves = self.merges, self.num_leaves
        if num_leaves < 2 or len(merges) != num_leaves - 1:
            found = f"{len(merges)} merges over {num_leaves} tokens"
            raise ValueError(
                f"a linkage is a whole tree over at least 2 tokens, but here are {found}."
            )
        sizes = np.ones(2 * num_leaves - 1)
        for parent, pair in enumerate(merges, start=num_leaves):
            sizes[parent] = sizes[pair].sum()
        steps = np.arange(1, num_leaves) if heights is None else _checked_heights(heights, self)
        return np.column_stack([merges, steps, sizes[num_leaves:]]).astype(np.float64)

    @classmethod
    def from_nested(cls, nested: Nested) -> MergeTree:
        """The tree that :meth:`nested` writes; merges are numbered from the left, deepest first.

        Raises ``ValueError`` unless every node is a pair and the leaves are ``0 .. n-1``.
        """
        return cls(*_parsed(_symbols_of_nested(nested)))

    @classmethod
    def from_newick(cls, text: str, names: Sequence[object] | None = None) -> MergeTree:
        """The tree that :meth:`newick` writes; branch lengths and inner names are ignored.

        ``names`` are those of the tokens of the set as it was given, of which the tree may have
        some only; without them the leaves are ``0 .. n-1``.

        Raises ``ValueError`` as :meth:`from_nested` does, for brackets that do not match, and for a
        leaf that is none of the names or one that two tokens have.
        """
        symbols = list(_symbols_of_newick(text))
        if names is None:
            numbers = (int(one) if leaf and one.isdecimal() else one for one, leaf in symbols)
            return cls(*_parsed(numbers))
        index = {str(name): place for place, name in enumerate(names)}
        if len(index) < len(names):
            raise ValueError("two tokens have one name: expected a name of its own for each.")
        for one, leaf in symbols:
            if leaf and one not in index:
                raise ValueError(f"a leaf is {one!r}, which is none of the {len(index)} tokens.")
        named = [index[one] if leaf else one for one, leaf in symbols]
        leaves = sorted({one for one in named if isinstance(one, int)})
        rank: dict[object, int] = {leaf: number for number, leaf in enumerate(leaves)}
        return cls(*_parsed(rank.get(one, one) for one in named), leaves or [0])

    @classmethod
    def from_text(cls, text: str) -> MergeTree:
        """The tree, or forest, that ``str`` writes; merges are numbered as in :meth:`from_nested`.

        Raises ``ValueError`` as :meth:`from_newick` does.
        """
        symbols = re.findall(r"[(),|]|[^(),|\s]+", text)
        numbers = (int(one) if one.isdecimal() else one for one in symbols if one != ",")
        return cls(*_parsed(NEXT_TREE if one == "|" else one for one in numbers))

    @classmethod
    def from_clades(cls, clades: Iterable[Collection[int]], num_leaves: int) -> MergeTree:
        """The forest that has these clades, given in any order, over tokens ``0 .. n-1``.

        Smaller clades are merged first; the order within pairs is not in them, so the child with
        the lowest token comes first. Raises ``ValueError`` naming a clade that is not two of the
        tokens and smaller clades together.
        """
        node_over, members = list(range(num_leaves)), {leaf: {leaf} for leaf in range(num_leaves)}
        merges: list[list[int]] = []
        for clade in sorted(map(set, clades), key=len):
            if not clade <= set(range(num_leaves)):
                raise ValueError(f"the leaves are 0 to {num_leaves - 1}, but a clade is {clade}.")
            parts = list(dict.fromkeys(node_over[leaf] for leaf in sorted(clade)))
            together = set().union(*(members[part] for part in parts))
            if len(parts) != 2 or together != clade:
                raise ValueError(
                    f"the clade {sorted(clade)} must be two of the leaves and smaller clades "
                    f"together, but they are {[sorted(members[part]) for part in parts]}."
                )
            node = num_leaves + len(merges)
            merges.append(parts)
            members[node] = clade
            for leaf in clade:
                node_over[leaf] = node
        return cls(merges, num_leaves)

    @classmethod
    def from_linkage(cls, matrix: ArrayLike) -> MergeTree:
        """The tree of a linkage (n - 1, 4), scipy's own or :meth:`to_linkage`'s; heights are lost.

        Raises ``ValueError`` where it has another shape, or its nodes make no tree.
        """
        given = np.asarray(matrix, dtype=np.float64)
        if given.ndim != 2 or given.shape[1] != 4 or len(given) == 0:
            raise ValueError(
                f"a linkage has the shape (n - 1, 4), n >= 2, but this has {given.shape}."
            )
        pairs = given[:, :2]
        if not (np.isfinite(pairs).all() and (pairs == np.floor(pairs)).all()):
            raise ValueError(
                "the first two columns of a linkage are node ids, but not all are whole."
            )
        return cls(pairs.astype(np.int64), len(given) + 1)

    @classmethod
    def from_networkx(cls, graph: networkx.DiGraph) -> MergeTree:
        """The forest that :meth:`to_networkx` writes, whatever the order of its nodes and edges.

        Raises ``ValueError`` for other node ids, a node without exactly the children of ``order``
        0 and 1, and a graph that is no forest.
        """
        nodes = set(graph.nodes)
        if nodes != set(range(len(nodes))):
            found = sorted(map(str, nodes))
            raise ValueError(f"the nodes must be 0 to {len(nodes) - 1}, but are {found}.")
        num_leaves = sum(degree == 0 for _, degree in graph.out_degree)
        merges = []
        for node in range(len(nodes)):
            edges = list(graph.out_edges(node, data="order"))
            orders = [order for *_, order in edges]
            if orders == [] and node < num_leaves:
                continue
            if node < num_leaves or orders not in ([0, 1], [1, 0]):
                wanted = "no children" if node < num_leaves else "children of order 0 and 1"
                raise ValueError(f"node {node} must have {wanted}, but has some of order {orders}.")
            merges.append([child for _, child, _ in sorted(edges, key=lambda edge: edge[2])])
        return cls(merges, num_leaves)

    def _root(self, node: int | None) -> int:
        roots = self.roots() if node is None else [node]
        if len(roots) > 1:
            raise ValueError(
                f"this forest has {len(roots)} roots, {roots}: name the node you want."
            )
        if not 0 <= roots[0] < self.num_nodes:
            raise ValueError(f"there is no node {node}: the nodes are 0 to {self.num_nodes - 1}.")
        return roots[0]

    def _brackets(self, comma: str, names: Sequence[object] | None = None) -> list[str]:
        texts = [str(leaf) for leaf in self.leaves]
        if names is not None:
            if len(names) <= self.leaves.max():
                raise ValueError(f"{len(names)} names, but there is a token {self.leaves.max()}.")
            texts = [_quoted(str(names[leaf])) for leaf in self.leaves]
        for _, first, second in self.children():
            texts.append(f"({texts[first]}{comma}{texts[second]})")
        return texts


def _checked(merges: ArrayLike, num_leaves: int) -> NDArray[np.int64]:
    """The merges without padding, as a read-only copy; ``ValueError`` if they are no forest."""
    if num_leaves < 1:
        raise ValueError(f"a tree needs at least 1 leaf, but num_leaves is {num_leaves}.")
    given = np.asarray(merges)
    if given.size == 0:
        given = np.empty((0, 2), dtype=np.int64)
    if given.ndim != 2 or given.shape[1] != 2 or not np.issubdtype(given.dtype, np.integer):
        shape = f"{given.dtype} of shape {given.shape}"
        raise ValueError(f"merges must be integers of shape (M, 2), but are {shape}.")
    padding = (given == -1).all(axis=1)
    count = len(given) if not padding.any() else int(padding.argmax())
    if not padding[count:].all():
        raise ValueError(f"merge {count} is padding (-1), but merges follow it.")
    used: set[int] = set()
    for step, pair in enumerate(given[:count].tolist()):
        for node in pair:
            if not 0 <= node < num_leaves + step:
                known = f"the nodes are 0 to {num_leaves + step - 1} by then"
                raise ValueError(f"merge {step} joins node {node}, but {known}.")
            if node in used:
                raise ValueError(f"merge {step} joins node {node}, which was merged before.")
        if pair[0] == pair[1]:
            raise ValueError(f"merge {step} joins node {pair[0]} with itself.")
        used.update(pair)
    result = given[:count].astype(np.int64)  # always a copy
    result.setflags(write=False)
    return result


def _checked_leaves(leaves: ArrayLike | None, num_leaves: int) -> NDArray[np.int64]:
    """The token index of every leaf, as a read-only copy."""
    result = np.array(range(num_leaves) if leaves is None else leaves, dtype=np.int64)
    if result.shape != (num_leaves,) or len(set(result.tolist())) < num_leaves or result.min() < 0:
        found = result.tolist()
        raise ValueError(f"leaves must be {num_leaves} different indices, but are {found}.")
    result.setflags(write=False)
    return result


def _checked_heights(heights: ArrayLike, tree: MergeTree) -> NDArray[np.float64]:
    """The heights as an array; ``ValueError`` unless they can be drawn."""
    merges = tree.merges
    given = np.asarray(heights, dtype=np.float64)
    if given.shape != (len(merges),):
        raise ValueError(f"heights must have the shape ({len(merges)},), but have {given.shape}.")
    if not (np.isfinite(given).all() and (given >= 0).all()):
        raise ValueError(f"heights must be finite and at least 0, but the least is {given.min()}.")
    of_node = np.concatenate([np.zeros(tree.num_leaves), given])
    falls = np.flatnonzero((of_node[merges] > given[:, None]).any(axis=1))
    if len(falls):
        step = int(falls[0])
        below = float(of_node[merges[step]].max())
        raise ValueError(
            f"heights must not fall from child to parent, but merge {step} is at "
            f"{given[step]:g} over a child at {below:g}."
        )
    return given


# ---------------------------------------------------------------- trees in brackets


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


def _symbols_of_newick(text: str) -> Iterator[tuple[str, bool]]:
    """Brackets and leaves from left to right; True <--> it is a leaf."""
    previous = ""
    for symbol in re.findall(r"'(?:[^']|'')*'|[(),]|:[^(),;]*|[^(),;:\s]+", text):
        if symbol in "()":
            yield symbol, False
        elif symbol[0] not in ",:" and previous != ")":  # an inner node's name follows a bracket
            quoted = symbol[0] == symbol[-1] == "'" and len(symbol) > 1
            yield symbol[1:-1].replace("''", "'") if quoted else symbol, True
        previous = symbol


def _quoted(name: str) -> str:
    """A name as Newick has it: quoted where it holds more than letters, digits, points, signs."""
    if re.fullmatch(r"[A-Za-z0-9.+-]+", name):
        return name
    return "'" + name.replace("'", "''") + "'"


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
