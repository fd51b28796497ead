"""``HierarchyReduction``: characters to words to sentences to a vector, by given spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from agents.encoders.reduction.reducers import make_reducer
from htm_env.autoencoder import seeded_initialisation
from htm_env.datasets.spans import checked_levels, span_owners


@dataclass(frozen=True)
class ReductionLevel:
    """One level: what is done to its vectors, and how those of a span become one."""

    reducer: str = "mean"
    """``"sum"``, ``"mean"``, ``"max"`` or ``"attention"`` (softmax within the span, by a query that
    the level learns)."""
    encoder: str | nn.Module | None = None
    """Applied to the vectors before they are reduced: ``"linear"``, ``"mlp"`` (one hidden layer, as
    wide as its output), a module of your own that takes (K, W) and gives (K, width), or None."""
    width: int | None = None
    """Width of the vectors that are reduced, which the encoder gives; None: as before it."""


class HierarchyReduction(nn.Module):
    """Reduces vectors to vectors of spans, level by level; the structure is given, not learned.

    All spans of all samples are reduced in one call a level, with exact gradients. Several samples
    follow one another (see :func:`join_samples`)::

        reduction = HierarchyReduction(8, [ReductionLevel("attention", "mlp"), ReductionLevel()])
        words, sentences = reduction(characters, [[(0, 4), (5, 7)], [(0, 2)]])
    """

    def __init__(
        self,
        width: int,
        levels: Sequence[ReductionLevel],
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        """Makes the networks.

        Args:
            width: of the vectors that are reduced first, before their encoder.
            levels: one for each level of spans, from the finest on.
            generator: draws the initial weights of the encoders made here; torch's own where None.

        Raises:
            ValueError: there is no level, a width is below 1, a reducer or an encoder is unknown
                (the message lists the choices), or a level without an encoder has another width
                than what comes in.
        """
        super().__init__()
        if not levels:
            raise ValueError("a hierarchy reduction has no levels; expected at least one")
        if width < 1:
            raise ValueError(f"the width is {width}; expected at least 1")
        self.width = width
        self.widths: list[int] = []
        """Widths of the vectors that each level gives."""
        encoders, reducers = [], []
        with seeded_initialisation(generator):
            for number, level in enumerate(levels):
                wide = width if level.width is None else level.width
                if wide < 1:
                    raise ValueError(f"level {number} has width {wide}; expected at least 1")
                encoders.append(_encoder(number, level.encoder, width, wide))
                reducers.append(make_reducer(level.reducer, wide))
                self.widths.append(width := wide)
        self.encoders, self.reducers = nn.ModuleList(encoders), nn.ModuleList(reducers)

    def forward(
        self, values: Float[Tensor, "K W"], levels: Sequence[Any]
    ) -> list[Float[Tensor, "_ _"]]:
        """The vectors of the spans of every level, (spans, width) each; the last are the roots.

        Args:
            values: the vectors of all samples, one behind the other.
            levels: the half-open spans ``(start, end)`` of each level, in order: an array (S, 2) or
                a list of pairs. Those of the first level are over ``values``, those of every other
                one over the spans of the level before it. What is in no span goes no further.

        Raises:
            ValueError: there are not as many levels as the module has, a span is empty, out of
                range, unordered or overlaps another (the message names level and span), or vectors
                are not as wide as expected.
        """
        if len(levels) != len(self.encoders):
            raise ValueError(
                f"there are spans of {len(levels)} levels; expected {len(self.encoders)}"
            )
        if values.ndim != 2 or values.shape[1] != self.width:
            raise ValueError(f"values have shape {tuple(values.shape)}; expected (K, {self.width})")
        checked = checked_levels("spans", [_on_cpu(spans) for spans in levels], len(values))
        reduced = []
        for number, spans in enumerate(checked):
            encoded = self.encoders[number](values)
            if encoded.shape != (len(values), self.widths[number]):
                raise ValueError(
                    f"the encoder of level {number} gave shape {tuple(encoded.shape)}; expected "
                    f"{(len(values), self.widths[number])}"
                )
            owners = torch.from_numpy(span_owners(spans, len(values))).to(values.device)
            values = self.reducers[number](encoded, owners, len(spans))
            reduced.append(values)
        return reduced


def join_samples(
    values: Sequence[Float[Tensor, "_ W"]], levels: Sequence[Sequence[Any]]
) -> tuple[Float[Tensor, "K W"], list[Int64[np.ndarray, "_ 2"]]]:
    """Many samples as one call of :class:`HierarchyReduction` takes them.

    Args:
        values: the vectors of each sample.
        levels: the spans of each level of each sample, over that sample alone.

    Raises:
        ValueError: there are not as many samples in both, samples differ in their number of levels,
            or a span cannot be used (the message names sample, level and span).
    """
    if len(values) != len(levels) or not values:
        raise ValueError(
            f"there are values of {len(values)} samples and spans of {len(levels)}; expected as "
            "many, at least one"
        )
    checked = []
    for sample, (vectors, given) in enumerate(zip(values, levels, strict=True)):
        if len(given) != len(levels[0]):
            raise ValueError(
                f"sample {sample} has spans of {len(given)} levels; expected {len(levels[0])}, as "
                "in sample 0"
            )
        on_cpu = [_on_cpu(spans) for spans in given]
        checked.append(checked_levels(f"sample {sample}", on_cpu, len(vectors)))
    lengths = np.array([len(vectors) for vectors in values])
    joined = []
    for spans in zip(*checked, strict=True):
        before = np.cumsum(lengths) - lengths
        joined.append(np.concatenate([one + at for one, at in zip(spans, before, strict=True)]))
        lengths = np.array([len(one) for one in spans])
    return torch.cat(list(values)), joined


def _encoder(number: int, encoder: str | nn.Module | None, inputs: int, outputs: int) -> nn.Module:
    if isinstance(encoder, nn.Module):
        return encoder
    if encoder is None:
        if inputs != outputs:
            raise ValueError(
                f"level {number} has width {outputs} and no encoder; expected {inputs}, what comes "
                "in, or an encoder"
            )
        return nn.Identity()
    if encoder == "linear":
        return nn.Linear(inputs, outputs)
    if encoder == "mlp":
        return nn.Sequential(nn.Linear(inputs, outputs), nn.GELU(), nn.Linear(outputs, outputs))
    raise ValueError(f"unknown encoder {encoder!r}; choose from linear, mlp, a module, None")


def _on_cpu(spans: Any) -> Any:
    return spans.cpu().numpy() if isinstance(spans, Tensor) else spans
