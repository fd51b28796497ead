"""Networks over spans: each span by itself, and the place of a vector within its span."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import gcd

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from agents.encoders.attention import AttentionBlock

Lengths = Int64[np.ndarray, "S"]
"""The vectors in each span; the spans follow one another."""


def equal_lengths(
    lengths: Lengths, at_once: int
) -> Iterator[tuple[Int64[np.ndarray, "s"], Int64[np.ndarray, "s length"]]]:
    """Spans of the same length together: their numbers, and the rows of their vectors.

    Such spans are a batch without padding. ``K`` vectors have fewer than ``sqrt(2 K)`` different
    lengths, so the groups are few where the vectors are many.

    Args:
        lengths: of all spans; those of 0 are left out.
        at_once: the most vectors of a group; a longer span is a group of its own.
    """
    starts = np.cumsum(lengths) - lengths
    order = np.argsort(lengths, kind="stable")
    order = order[np.searchsorted(lengths[order], 1) :]
    for spans in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        length = int(lengths[spans[0]]) if len(spans) else 1
        size = max(1, at_once // length)
        for first in range(0, len(spans), size):
            numbers = spans[first : first + size]
            yield numbers, starts[numbers, None] + np.arange(length)


class EachVector(nn.Module):
    """A network of single vectors, which needs no spans."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Float[Tensor, "M W"], lengths: Lengths) -> Float[Tensor, "M _"]:
        return self.network(values)


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Modules that mix the samples of a batch."""


class EachSpan(nn.Module):
    """A network of sequences, called with the spans of one length after the other.

    It is given (s, length, W), one row a span, and gives (s, length, width). There is no padding,
    so it needs no mask. Where the vectors are more than ``at_once``, its activations are computed
    again in the backward pass, so that those of one group at a time are in memory.

    Raises ``ValueError`` where a part of the network would mix the spans, since it does not take
    the batch first or normalises over the batch; or where the network gives another shape. Of a
    function the parts are unknown, and their weights are none of this module's.
    """

    def __init__(
        self, name: str, network: Callable[[Tensor], Tensor], width: int, at_once: int
    ) -> None:
        super().__init__()
        self.name, self.network, self.width, self.at_once = name, network, width, at_once
        for path, part in self.named_modules():
            if not getattr(part, "batch_first", True):
                raise ValueError(
                    f"{name}: {path} has batch_first=False; expected True, since its rows are spans"
                )
            if isinstance(part, BATCH_NORMS):
                raise ValueError(
                    f"{name}: {path} is a {type(part).__name__}, which mixes the spans; expected "
                    "another norm, such as LayerNorm"
                )

    def forward(self, values: Float[Tensor, "M W"], lengths: Lengths) -> Float[Tensor, "M _"]:
        again = torch.is_grad_enabled() and len(values) > self.at_once
        parts, places = [values.new_zeros(0, self.width)], [np.zeros(0, dtype=np.int64)]
        for _, rows in equal_lengths(lengths, self.at_once):
            spans = values[torch.from_numpy(rows).to(values.device)]  # (s, length, W)
            encoded = (
                checkpoint(self.network, spans, use_reentrant=False)
                if again
                else self.network(spans)
            )
            expected = (*rows.shape, self.width)
            shape = getattr(encoded, "shape", None)
            if shape != expected:
                gave = f"a {type(encoded).__name__}" if shape is None else f"shape {tuple(shape)}"
                raise ValueError(f"{self.name} gave {gave}; expected {expected}")
            parts.append(encoded.flatten(0, 1))
            places.append(rows.ravel())
        back = np.argsort(np.concatenate(places))
        return torch.cat(parts)[torch.from_numpy(back).to(values.device)]


class SpanTransformer(nn.Module):
    """Two pre-norm transformer blocks, of up to four heads."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lift = nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs)
        self.blocks = nn.ModuleList(AttentionBlock(outputs, gcd(outputs, 4), 4) for _ in range(2))

    def forward(self, spans: Float[Tensor, "s length W"]) -> Float[Tensor, "s length V"]:
        spans = self.lift(spans)
        present = torch.ones(spans.shape[:2], dtype=torch.bool, device=spans.device)
        for block in self.blocks:
            spans = block(spans, present)
        return spans


# ---------------------------------------------------------------- positions

LONGEST = 512
"""Places that are learned."""


def places_of(lengths: Lengths) -> Int64[Tensor, "M"]:
    """The place of each vector within its span, from 0 on."""
    starts = np.cumsum(lengths) - lengths
    return torch.from_numpy(np.arange(lengths.sum()) - np.repeat(starts, lengths))


class SinusoidalPositions(nn.Module):
    """Sines and cosines of the place (Vaswani et al. 2017, section 3.5), sines first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, places: Int64[Tensor, "M"]) -> Float[Tensor, "M W"]:
        half = (self.width + 1) // 2
        rates = 10_000.0 ** (-torch.arange(half, device=places.device) / half)
        angles = places[:, None] * rates
        return torch.cat((angles.sin(), angles.cos()), 1)[:, : self.width]


class LearnedPositions(nn.Module):
    """A learned vector for each of the first ``LONGEST`` places; ``ValueError`` for a later one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(LONGEST, width)
        nn.init.normal_(self.table.weight, std=0.1)

    def forward(self, places: Int64[Tensor, "M"]) -> Float[Tensor, "M W"]:
        if len(places) and int(places.max()) >= LONGEST:
            raise ValueError(
                f"a span has {int(places.max()) + 1} vectors; expected at most {LONGEST} with "
                "learned positions"
            )
        return self.table(places)


class WithPositions(nn.Module):
    """Adds a vector for its place within the span to each vector."""

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Float[Tensor, "M W"], lengths: Lengths) -> Float[Tensor, "M W"]:
        return values + self.network(places_of(lengths).to(values.device)).to(values.dtype)


POSITIONS: dict[str, Callable[[int], nn.Module]] = {
    "sinusoidal": SinusoidalPositions,
    "learned": LearnedPositions,
}
"""The constructor of every kind of position, from the width of the vectors."""
