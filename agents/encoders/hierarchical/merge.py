"""The hierarchies of one layer become one."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from agents.encoders.hierarchical.compress import spread
from agents.encoders.hierarchical.config import HierarchyConfig
from agents.encoders.hierarchical.initialisation import plain_norm, start_small


class Merge(nn.Module):
    """A network with one hidden layer over the vectors of all hierarchies at a token, side by side.

    The hidden layer's part for each hierarchy is computed before its vectors are spread over their
    tokens, so that a coarse hierarchy costs little.
    """

    def __init__(self, hierarchies: Sequence[HierarchyConfig], into_all: bool) -> None:
        super().__init__()
        self.strides = [hierarchy.stride for hierarchy in hierarchies]
        self.widths = [hierarchy.width for hierarchy in hierarchies][: None if into_all else 1]
        hidden = hierarchies[0].width
        self.norms = nn.ModuleList(plain_norm(hierarchy.width) for hierarchy in hierarchies)
        self.hidden = nn.ModuleList(
            nn.Linear(hierarchy.width, hidden, bias=False) for hierarchy in hierarchies
        )
        self.output = nn.Linear(hidden, sum(self.widths), bias=False)
        start_small(self.output)

    def part(self, index: int, vectors: Float[Tensor, "B m W"]) -> Float[Tensor, "B m _"]:
        """What hierarchy ``index`` gives to the hidden layer, not yet spread."""
        return self.hidden[index](self.norms[index](vectors))

    def join(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """What is added to each hierarchy at every token (B, L, W), from parts (B, L, hidden)."""
        return list(self.output(silu(sum(parts[1:], parts[0]))).split(self.widths, dim=2))

    def forward(
        self, vectors: Sequence[Float[Tensor, "B _ _"]]
    ) -> tuple[list[Float[Tensor, "B _ _"]], list[Float[Tensor, "B _ _"]]]:
        """The hierarchies after the merge, and the parts before they were spread."""
        length = vectors[0].shape[1]
        parts = [self.part(index, each) for index, each in enumerate(vectors)]
        strides = self.strides
        pooled = self.join([spread(p, s, length) for p, s in zip(parts, strides, strict=True)])
        merged = list(vectors)
        for index, update in enumerate(pooled):
            merged[index] = merged[index] + update[:, :: strides[index]]
        return merged, parts
