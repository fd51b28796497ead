"""``ContextEncoder``: a vector for every token that depends on the population around it.

A policy that scores each pair alone is myopic, since whether two tokens belong together can depend
on the others. An encoder in front of the pair scorer gives every active token a second vector that
may depend on all of them, and the population one of its own.

Three promises hold for every encoder. Inactive slots never influence active ones: junk in them,
even NaN, changes nothing, exactly. All but those that are ``ordered`` are permutation-equivariant.
And a population without an active token gives zeros, never NaN.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class Spans(NamedTuple):
    """The sample's own tokens, and the slot of the population that holds each of them by now."""

    tokens: Float[Tensor, "B K T"]
    """Standardised coordinates of the tokens that the episode started with."""
    owners: Int[Tensor, "B K"]
    """The slot that the token was merged into (its own at first); -1 where there is no token."""


class Context(NamedTuple):
    """The output of an encoder for a population."""

    tokens: Float[Tensor, "B P W"]
    """Every active token in its context; zeros in empty slots."""
    summary: Float[Tensor, "B W"]
    """The population in one vector."""
    state: Any = None
    """From which a later call may continue instead of computing it again; None where nothing."""
    losses: dict[str, Float[Tensor, ""]] = {}  # noqa: RUF012  never changed
    """Auxiliary losses by name, already weighted, to be added to the policy's."""


class ContextEncoder(nn.Module):
    """Gives the tokens of a population context; ``W`` is the width of what it takes and gives."""

    needs: tuple[str, ...] = ()
    """Names among ``centroids``, ``order`` (or ``leaf_order``) and ``spans`` that its forward
    pass asks for: the property ``needs`` of its options."""
    ordered: ClassVar[bool] = False
    """True <--> the result depends on ``order``, so that it is no function of a set."""
    carries: bool = False
    """True <--> policies go on from one merge's ``state`` to the next; it is then a tensor
    ``(B, P, ...)``, a slot's part its own."""
    has_losses: bool = False
    """True <--> its contexts come with losses of its own, which the learner has to add."""

    def merged_state(self, first: Tensor, second: Tensor) -> Tensor:
        """The initial state of a merged token, from its children's parts ``(..., *part)``."""
        return (first + second) / 2

    @abstractmethod
    def forward(
        self,
        tokens: Float[Tensor, "B P W"],
        active: Bool[Tensor, "B P"],
        *,
        centroids: Float[Tensor, "B P T"] | None = None,
        order: Int[Tensor, "B P"] | None = None,
        spans: Spans | None = None,
        state: Any = None,
        generator: torch.Generator | None = None,
    ) -> Context:
        """The context of every token; an encoder names the arguments that it uses.

        Args:
            tokens: slots that are not ``active`` may hold anything.
            active: True <--> the slot holds a token.
            centroids: mean standardised coordinates of the tokens under each slot.
            order: the rank of each active slot along a curve or in the forest; -1 in empty slots.
            spans: the tokens under each slot.
            state: what an earlier call gave, its rows and slots in step with ``tokens``.
            generator: draws what the encoder's own losses need (each row of ``tokens`` is then a
                scene of its own); without it there are none.

        Raises ``ValueError`` where something that it needs is not given.
        """

    def needed(self, name: str, value: Any) -> Any:
        """``value``; ``ValueError`` that names the argument where it is None."""
        if value is None:
            raise ValueError(f"{type(self).__name__} needs {name}, which was not given")
        return value


def without_junk(
    tokens: Float[Tensor, "B P W"], active: Bool[Tensor, "B P"]
) -> Float[Tensor, "B P W"]:
    """The tokens with zeros in the slots that are not active, whatever they held."""
    return tokens.masked_fill(~active[..., None], 0.0)


def masked_mean(
    tokens: Float[Tensor, "B P W"], active: Bool[Tensor, "B P"]
) -> Float[Tensor, "B W"]:
    """The mean of the active tokens; zeros where there is none."""
    count = active.sum(1, keepdim=True).clamp(min=1)
    return without_junk(tokens, active).sum(1) / count


def attend(
    query: Float[Tensor, "B H Q d"],
    key: Float[Tensor, "B H K d"],
    value: Float[Tensor, "B H K v"],
    mask: Bool[Tensor, "#B #H #Q K"] | None,
    scale: float | None = None,
) -> Float[Tensor, "B H Q v"]:
    """Softmax attention to what ``mask`` allows (True <--> allowed; None: all is); 0 where nothing
    is.

    One padded call for all populations: measured twice as fast on CPU as ragged ones at these
    sizes.
    """
    attended = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale
    )
    return attended if mask is None else attended.masked_fill(~mask.any(-1, keepdim=True), 0.0)
