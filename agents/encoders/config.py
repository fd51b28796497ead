"""What every context encoder can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from agents.config.dataclasses_json import check_bounds
from agents.encoders.attention import AttentionConfig
from agents.encoders.glom import GlomEncoderConfig
from agents.encoders.hierarchical import HierarchicalConfig
from agents.encoders.reduction import SpanConfig


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
        check_bounds(self, width=(1, math.inf))
