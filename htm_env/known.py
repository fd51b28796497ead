"""Known mergers: what two tokens become is given by the problem, and nothing is learned or decoded.

Momenta of particles add up, sets are joined, strings are concatenated: a merge of such things has a
result that nobody has to learn. With a known reward beside it (``MergeReward`` in ``rewards.py``)
an environment needs no autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from htm_env.autoencoder import MergeCosts, TreeEncoder

PROBES = 3
"""Tokens that a merger is tried on before it is used."""


class KnownMerger(TreeEncoder):
    """Tokens and merges as the problem itself gives them, in the place of an autoencoder.

    Args:
        token_dim: ``T``, coordinates of a token.
        rule: a callable ``rule(first (I, D), second (I, D)) -> (I, D)``, for many merges at once.
            Where it has a method ``lift``, that makes embeddings ``(..., D)`` of raw tokens
            ``(..., T)``; without one, a token is its own embedding. Its attribute ``commutative``
            (False if it has none) says that the order within a pair means nothing; ``associative``,
            that an embedding depends on nothing but the set of leaves under it. A merger of
            particles has a method ``momenta`` (see ``TreeEncoder.momenta``).
        costs: what merges cost (see ``TreeEncoder.merge_costs``); nothing if None.

    Raises ``ValueError`` where the rule does not map embeddings to such embeddings.
    """

    def __init__(self, token_dim: int, rule: Any, costs: MergeCosts | None = None) -> None:
        if isinstance(rule, type) or not callable(rule):
            given = f"the class {rule.__name__}" if isinstance(rule, type) else repr(rule)
            raise ValueError(
                f"the merger is {given}; expected a callable (first, second) -> merged, each of "
                "shape (merges, D)"
            )
        lift: Callable[[Tensor], Tensor] = getattr(rule, "lift", _as_it_is)
        dim = _checked_dim(rule, lift, token_dim)
        super().__init__({"token_dim": token_dim, "embedding_dim": dim})
        self.rule, self._lift = rule, lift
        self.commutative = bool(getattr(rule, "commutative", False))
        self.associative = bool(getattr(rule, "associative", False))
        self.momenta = getattr(rule, "momenta", None)
        self.merge_costs = costs or _free

    def lifter(self, standardised: Float[Tensor, "*rows T"]) -> Float[Tensor, "*rows D"]:
        # In double precision: what standardising rounds off is not to be lost a second time.
        tokens = standardised.double() * self.token_std + self.token_mean
        return self._lift(tokens.to(standardised.dtype))

    def merger(self, pairs: Float[Tensor, "I two_D"]) -> Float[Tensor, "I D"]:
        merged: Tensor = self.rule(*pairs.chunk(2, dim=1))
        return merged


def _as_it_is(tokens: Tensor) -> Tensor:
    return tokens


def _free(first: Tensor, second: Tensor, merged: Tensor, last: Bool[Tensor, "I"]) -> Tensor:
    """The cost of merges of which none is known."""
    return merged.new_zeros(len(merged))


def _checked_dim(rule: Any, lift: Callable[[Tensor], Tensor], token_dim: int) -> int:
    """The embedding dimension; ``ValueError`` where lifting or merging changes it."""
    tokens = torch.ones(PROBES, token_dim)
    lifted: object = lift(tokens)
    if not isinstance(lifted, Tensor) or lifted.ndim != 2 or len(lifted) != PROBES:
        raise ValueError(
            f"the merger's lift gave {_described(lifted)} for tokens of shape "
            f"{tuple(tokens.shape)}; expected embeddings of shape ({PROBES}, D)"
        )
    merged: object = rule(lifted, lifted)
    if not isinstance(merged, Tensor) or merged.shape != lifted.shape:
        raise ValueError(
            f"the merger gave {_described(merged)} for pairs of shape {tuple(lifted.shape)}; "
            "expected the same shape"
        )
    return lifted.shape[1]


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"an object of type {type(value).__name__}"
