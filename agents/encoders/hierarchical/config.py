"""The sizes of hierarchies, of the language model and of the context encoder made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from agents.config.dataclasses_json import check_bounds


@dataclass(frozen=True)
class HierarchyConfig:
    """One of the parallel hierarchies.

    Its ``j``-th vector is made of ``rate`` tokens. In a causal model these are the ones that end
    with token ``j * stride``, so that no vector is seen before its last token; otherwise those that
    begin with it. Tokens ``j * stride`` to ``(j + 1) * stride - 1`` are given the ``j``-th vector.
    """

    rate: int = 1
    """Tokens in one vector; a multiple of the stride. 1 is the tokens themselves."""
    stride: int = 1
    """Tokens from one vector to the next. At 1 the hierarchy is applied at every token and what a
    token is given is never late; at ``rate`` the vectors do not overlap, the hierarchy costs
    ``rate`` times less, and a causal token may be ``rate - 1`` tokens ahead of what it is given."""
    width: int = 64
    """Of its vectors; a multiple of 4."""
    heads: int = 4
    """Of each attention; the width of one has to be even."""
    expansion: float = 2.0
    """Hidden units of the feed-forward network, as a multiple of the width."""
    window: int | None = None
    """Attention reaches vectors less than this many places away, a place being ``rate`` tokens;
    None is all of them, 0 is no attention: then only the token shift looks at neighbours."""

    def __post_init__(self) -> None:
        check_bounds(
            self,
            rate=(1, math.inf),
            stride=(1, math.inf),
            width=(4, math.inf),
            heads=(1, math.inf),
        )
        check_bounds(self, expansion=(1 / self.width, math.inf))  # one hidden unit
        if self.rate % self.stride:
            raise ValueError(f"rate is {self.rate}; expected a multiple of stride {self.stride}")
        if self.width % 4:
            raise ValueError(f"width is {self.width}; expected a multiple of 4")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width is {self.width}; expected {self.heads} heads of an even width each"
            )
        if self.window is not None:
            check_bounds(self, window=(0, math.inf))

    @property
    def strands(self) -> int:
        """How many vectors cover a token: this many interleaved sequences do not overlap."""
        return self.rate // self.stride


def check_hierarchies(hierarchies: tuple[HierarchyConfig, ...]) -> None:
    """Raise ``ValueError`` unless rates rise strictly from 1."""
    rates = [hierarchy.rate for hierarchy in hierarchies]
    if rates[:1] != [1] or sorted(set(rates)) != rates:
        raise ValueError(f"the rates are {rates}; expected 1 first, then strictly larger ones")


@dataclass(frozen=True)
class HierarchicalTransformerConfig:
    """A causal language model."""

    vocabulary: int = 256
    """Number of different tokens."""
    layers: int = 2
    """Each has a block for every hierarchy and a merge of them all."""
    hierarchies: tuple[HierarchyConfig, ...] = (
        HierarchyConfig(),
        HierarchyConfig(rate=2),
        HierarchyConfig(rate=8),
    )
    """By rising rate; the first, of rate 1, predicts the tokens."""
    merge_into_all: bool = False
    """True <--> what is merged goes back into every hierarchy, not only into the first."""
    next_weight: float = 0.0
    """Of each hierarchy's loss for the vector that follows; 0 leaves it out."""
    codes: int = 0
    """0 compares with the next vector itself (cosine); otherwise the next vector's tokens are
    quantised to one of this many codes by a frozen random projection, and the code predicted."""
    reconstruction_weight: float = 0.0
    """Of the loss for telling the tokens from each coarse vector made of them; 0 leaves it out."""

    def __post_init__(self) -> None:
        check_hierarchies(self.hierarchies)
        check_bounds(
            self,
            vocabulary=(1, math.inf),
            layers=(1, math.inf),
            next_weight=(0.0, math.inf),
            codes=(0, math.inf),
            reconstruction_weight=(0.0, math.inf),
        )


ORDERS = {"curve": "order", "leaves": "leaf_order"}
"""What an encoder needs for each order."""


@dataclass(frozen=True)
class HierarchicalConfig:
    """The context encoder; all its hierarchies have the policy's width."""

    layers: int = 2
    """Each has a block for every hierarchy and a merge of them all."""
    rates: tuple[int, ...] = (1, 2, 8)
    """Neighbouring tokens in one vector of each hierarchy: 1 first, then rising."""
    heads: int = 4
    """Of each attention."""
    expansion: float = 2.0
    """Hidden units of each feed-forward network, as a multiple of the width."""
    order: str = "curve"
    """Who stands beside whom: curve (a space-filling one through the centroids) or leaves (the
    leaf order of the forest, which for tokens in random order says nothing at first)."""
    window: int | None = 16
    """Attention reaches vectors less than this many places away on either side, so that the cost
    grows with ``P * window``; None is all of them, 0 is no attention."""

    def __post_init__(self) -> None:
        check_bounds(self, layers=(1, math.inf), heads=(1, math.inf))
        if self.order not in ORDERS:
            raise ValueError(f"unknown order {self.order!r}; choose from {list(ORDERS)}")
        check_hierarchies(self.hierarchies(8 * self.heads))

    def hierarchies(self, width: int) -> tuple[HierarchyConfig, ...]:
        """Their vectors do not overlap."""
        return tuple(
            HierarchyConfig(rate, rate, width, self.heads, self.expansion, self.window)
            for rate in self.rates
        )
