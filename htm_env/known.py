"""Known mergers: what two tokens become is given by the problem, and nothing is learned or decoded.

Momenta of particles add up, sets are joined, strings are concatenated: a merge of such things has a
result that does not have to be learned. With a known reward beside it (``MergeReward`` in
``rewards.py``) an environment needs no autoencoder.
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

    Raises ``ValueError`` where the rule does not map embeddings to such embeddings, or is not
    commutative or associative on random tokens although it says so.
    """

    def __init__(self, token_dim: int, rule: Any, costs: MergeCosts | None = None) -> None:
        if isinstance(rule, type) or not callable(rule):
            given = f"the class {rule.__name__}" if isinstance(rule, type) else repr(rule)
            raise ValueError(
                f"the merger is {given}; expected a callable (first, second) -> merged, each of "
                "shape (merges, D)"
            )
        lift: Callable[[Tensor], Tensor] = getattr(rule, "lift", _as_it_is)
        lifted = _checked_lift(rule, lift, token_dim)
        merged = _checked_merges(rule, lifted)
        super().__init__({"token_dim": token_dim, "embedding_dim": lifted.shape[1]})
        self.rule, self._lift = rule, lift
        self.commutative = bool(getattr(rule, "commutative", False))
        self.associative = bool(getattr(rule, "associative", False))
        _check_symmetries(self, lifted, merged)
        self.momenta = getattr(rule, "momenta", None)
        self.merge_costs, self.costs_known = costs or _free, costs is not None

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


def _name(rule: Any) -> str:
    return str(getattr(rule, "__name__", type(rule).__name__))


def _checked_lift(
    rule: Any, lift: Callable[[Tensor], Tensor], token_dim: int
) -> Float[Tensor, "I D"]:
    """Embeddings of random tokens; ``ValueError`` where lifting them gives something else."""
    tokens = torch.rand(PROBES, token_dim, generator=torch.Generator().manual_seed(0)) + 0.5
    given = f"the merger {_name(rule)}'s lift"
    lifted = _called(given, lift, tokens)
    if not isinstance(lifted, Tensor) or lifted.ndim != 2 or len(lifted) != PROBES:
        raise ValueError(
            f"{given} gave {_described(lifted)} for tokens of shape {tuple(tokens.shape)}; "
            f"expected a tensor of embeddings of shape ({PROBES}, D)"
        )
    return _checked_numbers(given, lifted)


def _checked_merges(rule: Any, lifted: Float[Tensor, "I D"]) -> Float[Tensor, "I D"]:
    """What pairs of different embeddings become; ``ValueError`` where these are no embeddings."""
    given = f"the merger {_name(rule)}"
    merged = _called(given, rule, lifted, lifted.roll(1, 0))
    if not isinstance(merged, Tensor) or merged.shape != lifted.shape:
        raise ValueError(
            f"{given} gave {_described(merged)} for pairs of shape {tuple(lifted.shape)}; "
            "expected a tensor of the same shape"
        )
    return _checked_numbers(given, merged)


def _called(given: str, function: Callable[..., Any], *arguments: Tensor) -> object:
    """What a function returns; ``ValueError`` for one of other arguments."""
    try:
        result: object = function(*arguments)
    except TypeError as error:
        expected = "(tokens)" if len(arguments) == 1 else "(first, second)"
        raise ValueError(f"{given} does not take {expected}: {error}") from error
    return result


def _checked_numbers(given: str, values: Tensor) -> Tensor:
    if values.dtype != torch.float32:
        raise ValueError(f"{given} gave {values.dtype} for torch.float32; expected torch.float32")
    if not values.isfinite().all():
        found = float(values[~values.isfinite()][0])
        raise ValueError(f"{given} gave {found} for tokens between 0.5 and 1.5; expected numbers")
    return values


def _check_symmetries(
    known: KnownMerger, lifted: Float[Tensor, "I D"], merged: Float[Tensor, "I D"]
) -> None:
    """``ValueError`` where the order of tokens or of merges counts although it is said not to."""
    rule, others = known.rule, lifted.roll(1, 0)
    third = lifted.roll(2, 0)
    if known.commutative and not _close(merged, rule(others, lifted)):
        raise ValueError(
            f"the merger {_name(rule)} says commutative = True, but gave other numbers for "
            "(second, first) than for (first, second)"
        )
    if known.associative and not _close(rule(merged, third), rule(lifted, rule(others, third))):
        raise ValueError(
            f"the merger {_name(rule)} says associative = True, but three tokens became other "
            "numbers where the second and third were merged first"
        )


def _close(one: Tensor, other: Tensor) -> bool:
    """True <--> equal but for rounding, which sums of large and small numbers multiply."""
    return torch.allclose(one, other, rtol=1e-2, atol=1e-3)


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"an object of type {type(value).__name__}"
