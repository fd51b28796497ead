"""Self-attention: pre-norm transformer blocks over the population, without positions."""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from agents.encoders.base import Context, ContextEncoder, attend, masked_mean, without_junk
from agents.encoders.config import AttentionConfig


class AttentionBlock(nn.Module):
    """A pre-norm transformer block (Xiong et al. 2020, "On layer normalization in the Transformer
    architecture").

    Raises ``ValueError`` where ``width`` is no multiple of ``heads``.
    """

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"the width is {width}; expected a multiple of {heads} heads")
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, expansion * width),
            nn.GELU(),
            nn.Linear(expansion * width, width),
        )

    def forward(
        self, tokens: Float[Tensor, "B P W"], active: Bool[Tensor, "B P"]
    ) -> Float[Tensor, "B P W"]:
        parts = self.query_key_value(self.before_attention(tokens))
        query, key, value = parts.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attend(query, key, value, active[:, None, None])  # (B, heads, P, d)
        tokens = tokens + self.output(attended.transpose(1, 2).flatten(2))
        return tokens + self.feed_forward(tokens)


class AttentionEncoder(ContextEncoder):
    """A transformer encoder (Vaswani et al. 2017) over the active tokens, which are a set."""

    def __init__(self, width: int, config: AttentionConfig, coordinates: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            AttentionBlock(width, config.heads, config.expansion) for _ in range(config.layers)
        )
        self.last_norm = nn.LayerNorm(width)

    def forward(
        self, tokens: Float[Tensor, "B P W"], active: Bool[Tensor, "B P"], **others: Any
    ) -> Context:
        tokens = without_junk(tokens, active)
        for block in self.blocks:
            tokens = block(tokens, active)
        tokens = without_junk(self.last_norm(tokens), active)
        return Context(tokens, masked_mean(tokens, active))
