"""The options of the context encoders, which import none of their networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from agents.config.dataclasses_json import LARGEST, check_bounds
from htm_env.checks import check_choice


@dataclass(frozen=True)
class AttentionConfig:
    """The size of the transformer."""

    needs: ClassVar[tuple[str, ...]] = ()
    """See :attr:`agents.encoders.base.ContextEncoder.needs`."""
    layers: int = 2
    """Blocks, each of attention and a feed-forward network."""
    heads: int = 4
    """Heads of each attention; they share the width."""
    expansion: int = 2
    """Hidden units of the feed-forward network, as a multiple of the width."""

    def __post_init__(self) -> None:
        size = (1, LARGEST)
        check_bounds(self, layers=size, heads=size, expansion=size)


@dataclass(frozen=True)
class GlomConfig:
    """The columns, and how their levels act on one another."""

    levels: int = 3
    """Levels of a column, from parts to wholes."""
    level_width: int = 32
    """Numbers of one level of one column."""
    expansion: int = 2
    """Hidden units of the bottom-up and top-down nets, as a multiple of the level's width."""
    iterations: int = 6
    """From fresh columns; about twice the levels lets news go up and down once."""
    attention: bool = True
    """False <--> columns do not attend to one another: a token's is a function of it alone."""
    sharpness: float = 2.0
    """Tau in the attention, softmax(tau X X^T) X; squared lengths of X measured 1 to 3."""
    agreement_decay: float = 0.0
    """The weight in a level's attention of agreement one level further up, lambda; 0: none."""
    radius: float | None = None
    """Columns attend only to those whose centroids lie within it, in standardised coordinates;
    None: to all of them."""
    attend_self: bool = True
    """False <--> a column attends to others only."""
    place_frequencies: int = 0
    """Sinusoids of each coordinate of its centroid that a column receives, beside its token and in
    its top-down nets; 0: it does not know its place."""
    neighbourhood: float | None = None
    """The bottom-up nets receive the level below of the columns whose centroids lie within it too,
    in standardised coordinates; None: of their own column alone."""

    def __post_init__(self) -> None:
        check_bounds(
            self,
            levels=(1, LARGEST),
            level_width=(1, LARGEST),
            expansion=(1, LARGEST),
            iterations=1,
            sharpness=0,
            agreement_decay=(0, 1),
            place_frequencies=(0, LARGEST),
        )
        if self.radius is not None:
            check_bounds(self, radius=0)
        if self.neighbourhood is not None:
            check_bounds(self, neighbourhood=1e-6)

    @property
    def needs_coordinates(self) -> bool:
        """True <--> weights depend on how many coordinates a centroid has."""
        return self.place_frequencies > 0 or self.neighbourhood is not None

    @property
    def needs_centroids(self) -> bool:
        """True <--> something depends on where the columns are."""
        return self.radius is not None or self.needs_coordinates


@dataclass(frozen=True)
class GlomTrainingConfig:
    """The losses of a Glom of tokens or of images."""

    denoising_weight: float = 1.0
    """Weight of restoring what is hidden."""
    hidden_tokens: float = 0.3
    """The share of tokens with hidden coordinates; of an image, that of its hidden region."""
    hidden_coordinates: float = 0.5
    """The share of such a token's coordinates that is hidden; 1 hides the whole token. A patch is
    hidden whole."""
    contrastive_weight: float = 0.3
    """Weight of distinguishing scenes."""
    regions: bool = False
    """True <--> of a set, as always of an image, what is hidden and what is cropped are tokens near
    to one another; False: any tokens are hidden, and the crops are two halves drawn at random."""
    crop_share: float = 0.6
    """The share of a scene that is in each of its two crops, where these are regions."""
    temperature: float = 0.1
    """Temperature of crops' similarities: the lower, the more the nearest scenes count."""

    def __post_init__(self) -> None:
        check_bounds(
            self,
            denoising_weight=0,
            hidden_tokens=(0, 1),
            hidden_coordinates=(0, 1),
            contrastive_weight=0,
            crop_share=(0, 1),
            temperature=1e-6,
        )


@dataclass(frozen=True)
class GlomEncoderConfig:
    """A Glom in front of the pair scorer."""

    glom: GlomConfig = field(default_factory=lambda: GlomConfig(sharpness=1.0))
    """Its columns; softer than is good for islands, since a pair should depend on the others."""
    continued_iterations: int = 0
    """Iterations after a merge, from the columns that were there before it; 0: every population
    starts from fresh columns, so that the choice depends on nothing but the observation."""
    denoising_weight: float = 0.0
    """Weight of restoring hidden tokens, beside the policy's own loss."""
    hidden_tokens: float = 0.2
    """The share of tokens that is hidden."""
    contrastive_weight: float = 0.0
    """Weight of distinguishing populations, beside the policy's own loss."""
    temperature: float = 0.1
    """Temperature of the similarities between crops of populations."""

    def __post_init__(self) -> None:
        check_bounds(
            self,
            continued_iterations=0,
            denoising_weight=0,
            hidden_tokens=(0, 1),
            contrastive_weight=0,
            temperature=1e-6,
        )

    @property
    def needs(self) -> tuple[str, ...]:
        return ("centroids",) if self.glom.needs_centroids else ()


COMPRESSORS = ("convolution", "attention")
"""What makes one vector of several tokens, by name."""


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
    """Width of its vectors; a multiple of 4."""
    heads: int = 4
    """Heads of each attention; the width of one has to be even."""
    expansion: float = 2.0
    """Hidden units of the feed-forward network, as a multiple of the width."""
    window: int | None = None
    """Attention reaches vectors less than this many places away, a place being ``rate`` tokens;
    None is all of them, 0 is no attention: then only the token shift mixes neighbours."""
    head_width: int | None = None
    """Numbers of one head; None: the heads share the width."""
    compressor: str = "convolution"
    """What makes one vector of ``rate`` tokens: convolution or attention."""

    def __post_init__(self) -> None:
        size = (1, LARGEST)
        check_bounds(self, rate=size, stride=size, width=(4, LARGEST), heads=size)
        check_choice("compressor", self.compressor, COMPRESSORS)
        check_bounds(self, expansion=(1 / self.width, LARGEST))  # one hidden unit at least
        if self.rate % self.stride:
            raise ValueError(f"rate is {self.rate}; expected a multiple of stride {self.stride}")
        if self.width % 4:
            raise ValueError(f"width is {self.width}; expected a multiple of 4")
        if self.head_width is None and self.width % (2 * self.heads):
            raise ValueError(
                f"width is {self.width}; expected {self.heads} heads of an even width each"
            )
        if self.head_width is not None and (self.head_width < 2 or self.head_width % 2):
            raise ValueError(f"head_width is {self.head_width}; expected an even number from 2 on")
        if self.window is not None:
            check_bounds(self, window=0)

    @property
    def of_a_head(self) -> int:
        """Numbers of one head."""
        return self.width // self.heads if self.head_width is None else self.head_width

    @property
    def strands(self) -> int:
        """The vectors that cover a token; so many interleaved sequences do not overlap."""
        return self.rate // self.stride


def check_hierarchies(hierarchies: tuple[HierarchyConfig, ...]) -> None:
    """Raise ``ValueError`` unless rates rise strictly from 1."""
    rates = [hierarchy.rate for hierarchy in hierarchies]
    if rates[:1] != [1] or sorted(set(rates)) != rates:
        raise ValueError(f"the rates are {rates}; expected 1 first, then strictly larger ones")


ORDERS = {"curve": "order", "leaves": "leaf_order"}
"""The ``needs`` of each order."""


@dataclass(frozen=True)
class HierarchicalConfig:
    """The context encoder; all its hierarchies have the policy's width."""

    layers: int = 2
    """Each has a block for every hierarchy and a merge of them all."""
    rates: tuple[int, ...] = (1, 2, 8)
    """Neighbouring tokens in one vector of each hierarchy: 1 first, then rising."""
    heads: int = 4
    """Heads of each attention."""
    expansion: float = 2.0
    """Hidden units of each feed-forward network, as a multiple of the width."""
    order: str = "curve"
    """Order of neighbours: curve (a space-filling one through the centroids) or leaves (the
    leaf order of the forest, which for tokens in random order is random at first)."""
    window: int | None = 16
    """Attention reaches vectors less than this many places away on either side, so that the cost
    grows with ``P * window``; None is all of them, 0 is no attention."""

    def __post_init__(self) -> None:
        check_bounds(self, layers=(1, LARGEST), heads=(1, LARGEST))
        if self.order not in ORDERS:
            raise ValueError(f"unknown order {self.order!r}; choose from {list(ORDERS)}")
        check_hierarchies(self.hierarchies(8 * self.heads))

    @property
    def needs(self) -> tuple[str, ...]:
        return (ORDERS[self.order],)

    def hierarchies(self, width: int) -> tuple[HierarchyConfig, ...]:
        """Their vectors do not overlap."""
        return tuple(
            HierarchyConfig(rate, rate, width, self.heads, self.expansion, self.window)
            for rate in self.rates
        )


REDUCERS = ("sum", "mean", "max", "attention")
"""The functions that make one vector of those of a group."""


@dataclass(frozen=True)
class SpanConfig:
    """The reducers from leaves to a token, and from tokens to the population."""

    needs: ClassVar[tuple[str, ...]] = ("spans",)
    reducers: tuple[str, ...] = ("mean", "max")
    """Reductions of the leaves under a token, side by side: sum, mean, max, attention."""
    summary: str = "attention"
    """Reduction of the active tokens: sum, mean, max or attention."""
    expansion: int = 2
    """Hidden units of the networks, as a multiple of the width."""

    def __post_init__(self) -> None:
        check_bounds(self, expansion=(1, LARGEST))
        if not self.reducers:
            raise ValueError("reducers is (); expected at least one")
        for name in (*self.reducers, self.summary):
            if name not in REDUCERS:
                raise ValueError(f"unknown reducer {name!r}; choose from {', '.join(REDUCERS)}")


@dataclass(frozen=True)
class ContextConfig:
    """The options of all context encoders; only those of the chosen one count."""

    width: int = 64
    """Numbers that a token has inside the encoder; embeddings are lifted to it first."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    glom: GlomEncoderConfig = field(default_factory=GlomEncoderConfig)
    hierarchical: HierarchicalConfig = field(default_factory=HierarchicalConfig)
    spans: SpanConfig = field(default_factory=SpanConfig)

    def __post_init__(self) -> None:
        check_bounds(self, width=(1, LARGEST))
