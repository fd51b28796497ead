"""How large a Glom is, how it iterates, and what it is trained with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from agents.config.dataclasses_json import check_bounds


@dataclass(frozen=True)
class GlomConfig:
    """The columns, and how their levels speak to one another."""

    levels: int = 3
    """Levels of a column, from parts to wholes."""
    level_width: int = 32
    """Numbers of one level of one column."""
    expansion: int = 2
    """Hidden units of the bottom-up and top-down nets, as a multiple of the level's width."""
    iterations: int = 6
    """From fresh columns; about twice the levels lets news go up and down once."""
    attention: bool = True
    """False <--> columns do not hear one another, and a token's are a function of itself alone."""
    sharpness: float = 2.0
    """Tau in the attention, softmax(tau X X^T) X; squared lengths of X measured 1 to 3."""
    agreement_decay: float = 0.0
    """What agreement one level further up counts in a level's attention, lambda; 0: nothing."""
    radius: float | None = None
    """Columns hear only those whose centroids lie within it, in standardised coordinates; None:
    all of them."""

    def __post_init__(self) -> None:
        check_bounds(
            self,
            levels=(1, math.inf),
            level_width=(1, math.inf),
            expansion=(1, math.inf),
            iterations=(1, math.inf),
            sharpness=(0, math.inf),
            agreement_decay=(0, 1),
        )
        if self.radius is not None:
            check_bounds(self, radius=(0, math.inf))


@dataclass(frozen=True)
class GlomEncoderConfig:
    """A Glom in front of the pair scorer."""

    glom: GlomConfig = field(default_factory=lambda: GlomConfig(sharpness=1.0))
    """Its columns; softer than islands want them, since a pair is to hear the others."""
    continued_iterations: int = 0
    """Iterations after a merge, from the columns that were there before it; 0: every population
    starts from fresh columns, so that what is chosen depends on nothing but what is observed."""
    denoising_weight: float = 0.0
    """Of restoring hidden tokens, beside the policy's own loss."""
    hidden_tokens: float = 0.2
    """The share of tokens that is hidden."""
    contrastive_weight: float = 0.0
    """Of telling populations apart, beside the policy's own loss."""
    temperature: float = 0.1
    """Of the similarities between crops of populations."""

    def __post_init__(self) -> None:
        check_bounds(
            self,
            continued_iterations=(0, math.inf),
            denoising_weight=(0, math.inf),
            hidden_tokens=(0, 1),
            contrastive_weight=(0, math.inf),
            temperature=(1e-6, math.inf),
        )


@dataclass(frozen=True)
class GlomTrainingConfig:
    """What a Glom of real tokens learns from (see :class:`agents.encoders.glom.TokenGlom`)."""

    denoising_weight: float = 1.0
    """Of restoring hidden coordinates."""
    hidden_tokens: float = 0.3
    """The share of tokens with hidden coordinates."""
    hidden_coordinates: float = 0.5
    """The share of such a token's coordinates that is hidden; 1 hides the whole token."""
    contrastive_weight: float = 0.3
    """Of telling scenes apart."""
    temperature: float = 0.1
    """Of the similarities between crops: the lower, the more the nearest scenes count."""

    def __post_init__(self) -> None:
        check_bounds(
            self,
            denoising_weight=(0, math.inf),
            hidden_tokens=(0, 1),
            hidden_coordinates=(0, 1),
            contrastive_weight=(0, math.inf),
            temperature=(1e-6, math.inf),
        )
