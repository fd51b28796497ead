"""Search for better whole trees of single samples under the model as it is.

What fits the model searches: local moves where an autoencoder's error is the cost of a tree
(``local_moves.py``), and annealing (``annealing.py``) where the merger is known, and so the cost of
every merge.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from agents.search.base import Found, Numbers, TreeSearch, numbers_of, numbers_of_seeds
from agents.search.local_moves import LocalMoves
from htm_env.autoencoder import TreeEncoder

__all__ = [
    "Found",
    "LocalMoves",
    "Numbers",
    "TreeSearch",
    "numbers_of",
    "numbers_of_seeds",
    "tree_search",
]


def tree_search(model: TreeEncoder, std: Float[Tensor, "T"], budget: int) -> TreeSearch:
    """The search that fits a model.

    ``budget``: for each sample, the merges whose cost is evaluated where the merger is known, else
    the trees that are evaluated. ``std`` are the units of the coordinates, by which an
    autoencoder's errors are measured.
    """
    if not model.costs_known:
        raise ValueError(
            "trees are searched by what merges cost, and this merger's reward has no of_merges; "
            "expected no search"
        )
    if model.merge_costs is None:
        return LocalMoves(model, std, budget)
    from agents.search.annealing import Annealing  # nothing that learns needs it

    return Annealing(model, budget)
