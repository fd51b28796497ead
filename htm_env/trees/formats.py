"""Merges as scipy's linkage and as a networkx graph, and back, and from clades; brackets have a
file of their own.

Like :mod:`htm_env.trees.brackets`, it takes arrays and numbers of leaves, not a ``MergeTree``,
which checks what comes back from here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import networkx

Merges = NDArray[np.int64]


def write_linkage(
    merges: Merges, num_leaves: int, heights: ArrayLike | None
) -> NDArray[np.float64]:
    """(n - 1, 4): the pair, the height and the number of leaves of every merge.

    Raises ``ValueError`` for a forest, a single leaf, and heights that fall.
    """
    if num_leaves < 2 or len(merges) != num_leaves - 1:
        found = f"{len(merges)} merges over {num_leaves} tokens"
        raise ValueError(f"a linkage is a whole tree over at least 2 tokens, but here are {found}.")
    sizes = np.ones(2 * num_leaves - 1)
    for parent, pair in enumerate(merges, start=num_leaves):
        sizes[parent] = sizes[pair].sum()
    steps = np.arange(1, num_leaves) if heights is None else _checked(heights, merges, num_leaves)
    return np.column_stack([merges, steps, sizes[num_leaves:]]).astype(np.float64)


def read_linkage(matrix: ArrayLike) -> tuple[Merges, int]:
    """Merges (n - 1, 2) and ``n`` of a linkage; heights and sizes are not looked at.

    Raises ``ValueError`` unless it has four columns and whole node ids.
    """
    given = np.asarray(matrix, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] != 4 or len(given) == 0:
        raise ValueError(f"a linkage has the shape (n - 1, 4), n >= 2, but this has {given.shape}.")
    pairs = given[:, :2]
    if not (np.isfinite(pairs).all() and (pairs == np.floor(pairs)).all()):
        raise ValueError("the first two columns of a linkage are node ids, but not all are whole.")
    return pairs.astype(np.int64), len(given) + 1


def read_clades(clades: Iterable[Collection[int]], num_leaves: int) -> Merges:
    """Merges (M, 2) that make these clades, the smaller ones first; the leaf of the lowest number
    is in the first child.

    Raises ``ValueError`` naming a clade that has other leaves than ``0 .. n-1``, or that is not two
    of the leaves and smaller clades together.
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
                f"the clade {sorted(clade)} must be two of the leaves and smaller clades together, "
                f"but they are {[sorted(members[part]) for part in parts]}."
            )
        node = num_leaves + len(merges)
        merges.append(parts)
        members[node] = clade
        for leaf in clade:
            node_over[leaf] = node
    return np.array(merges, dtype=np.int64).reshape(-1, 2)


def write_networkx(merges: Merges, num_leaves: int) -> networkx.DiGraph:
    """Edges from parent to child with ``order`` 0 or 1; nodes know whether they are a leaf."""
    import networkx  # only here, since importing it takes longer than everything else together

    graph: networkx.DiGraph = networkx.DiGraph()
    for node in range(num_leaves + len(merges)):
        graph.add_node(node, leaf=node < num_leaves)
    for parent, (first, second) in enumerate(merges.tolist(), start=num_leaves):
        graph.add_edge(parent, first, order=0)
        graph.add_edge(parent, second, order=1)
    return graph


def read_networkx(graph: networkx.DiGraph) -> tuple[Merges, int]:
    """Merges (M, 2) and ``n`` of a graph as :func:`write_networkx` makes it.

    Raises ``ValueError`` unless the nodes are ``0 .. n+M-1``, those without children are the first
    ``n``, and every other one has a child of ``order`` 0 and one of ``order`` 1.
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
    return np.array(merges, dtype=np.int64).reshape(-1, 2), num_leaves


def _checked(heights: ArrayLike, merges: Merges, num_leaves: int) -> NDArray[Any]:
    """The heights as an array; ``ValueError`` unless they can be drawn."""
    given = np.asarray(heights, dtype=np.float64)
    if given.shape != (len(merges),):
        raise ValueError(f"heights must have the shape ({len(merges)},), but have {given.shape}.")
    if not (np.isfinite(given).all() and (given >= 0).all()):
        raise ValueError(f"heights must be finite and at least 0, but the least is {given.min()}.")
    of_node = np.concatenate([np.zeros(num_leaves), given])
    falls = np.flatnonzero((of_node[merges] > given[:, None]).any(axis=1))
    if len(falls):
        step = int(falls[0])
        below = float(of_node[merges[step]].max())
        raise ValueError(
            f"heights must not fall from child to parent, but merge {step} stands at "
            f"{given[step]:g} over a child at {below:g}."
        )
    return given
