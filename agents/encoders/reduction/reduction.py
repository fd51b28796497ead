"""``HierarchyReduction``: characters to words to sentences to a vector, by given spans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from agents.encoders.reduction.reducers import make_reducer
from agents.encoders.reduction.spans import (
    POSITIONS,
    EachSpan,
    EachVector,
    SpanTransformer,
    WithPositions,
)
from htm_env.autoencoder import seeded_initialisation
from htm_env.checks import Whole, whole_number
from htm_env.datasets.spans import checked_levels, checked_spans, span_owners

Network = Callable[[Tensor], Tensor]
"""A module or a function."""


@dataclass(frozen=True)
class ReductionLevel:
    """One level: what is done to its vectors, and how those of a span become one."""

    reducer: str | Network = "mean"
    """``"sum"``, ``"mean"``, ``"max"``, ``"attention"`` (softmax within the span, by a query that
    the level learns); or a function of (s, W, length), the vectors of ``s`` spans of one length,
    that reduces the last dimension, such as ``lambda spans: spans.amin(-1)``."""
    encoder: str | Network | None = None
    """Applied to the vectors before they are reduced: ``"linear"``, ``"mlp"`` (one hidden layer, as
    wide as its output), ``"transformer"`` (two blocks), a module of your own, or None. Your own
    takes (s, length, W), one row a span, and gives (s, length, width); it is called with spans of
    one length at a time, so it needs no mask: ``nn.TransformerEncoder(..)`` is one, with
    ``batch_first=True``."""
    width: Whole | None = None
    """Width of the vectors that are reduced, which the encoder gives; None: as before it."""
    positions: str | Network | None = None
    """Added to the vectors before the encoder, by their place within the span: ``"sinusoidal"``,
    ``"learned"`` (up to 512 places), a module that gives (M, W) for places (M,), or None. A sum or
    mean without an encoder stays blind to order all the same."""


if TYPE_CHECKING:
    Levels = Sequence[ReductionLevel]
else:
    # Anything, since the checks below answer better than a type.
    Levels = Any


class HierarchyReduction(nn.Module):
    """Reduces vectors to vectors of spans, level by level; the structure is given, not learned
    (after ``HierarchyReduction1d`` of github.com/TheDiscoMole/HierarchyReduction).

    With levels, each with an encoder, a width and a reducer, the spans of all levels are given at
    once, for one sample or many. Spans never see one another's vectors::

        reduction = HierarchyReduction(8, [ReductionLevel("attention", "mlp"), ReductionLevel()])
        words, sentences = reduction(characters, [[(0, 4), (5, 7)], [(0, 2)]])

    Without, one call is one level, and any number of calls follow one another::

        reduction = HierarchyReduction()  # sums; or reducer="max", or a function
        words = reduction(characters, [(0, 4), (5, 7)])
        sentences = reduction(words, [(0, 2)])
    """

    def __init__(
        self,
        width: Whole | Network | None = None,
        levels: Levels | None = None,
        *,
        reducer: str | Network | None = None,
        at_once: int = 2**16,
        generator: torch.Generator | None = None,
    ) -> None:
        """Makes the networks.

        Args:
            width: of the vectors that are reduced first, before their encoder. Without levels it is
                needed for ``reducer="attention"`` only. A function in its place is the reducer, as
                in the original.
            levels: one for each level of spans, from the finest on.
            reducer: without levels, that of every call: a name or a function, as in
                :class:`ReductionLevel`; None is the sum.
            at_once: the most vectors that an encoder of spans is given in one call, which bounds
                its memory; the activations of more than one call are computed again for gradients.
            generator: draws the initial weights of what is made here; torch's own where None.

        Raises:
            ValueError: there is no level, levels come without a width or with a ``reducer``, a
                width is no whole number from 1 on, a name is unknown (the message lists the
                choices), a level without an encoder has another width than what comes in, or an
                encoder would mix the spans.
        """
        super().__init__()
        if callable(width):
            if reducer is not None:
                raise ValueError(
                    f"the reducer is {width!r} and {reducer!r}; expected one of the two"
                )
            width, reducer = None, width
        if levels is not None and not levels:
            raise ValueError("a hierarchy reduction has no levels; expected at least one")
        listed = levels is None or isinstance(levels, Sequence)
        if not listed or not all(isinstance(level, ReductionLevel) for level in levels or ()):
            raise ValueError(f"the levels are {levels!r}; expected a list of ReductionLevel")
        if levels is not None and reducer is not None:
            raise ValueError(f"the reducer is {reducer!r} beside levels; expected one of the two")
        self.has_levels = levels is not None
        if levels is None:
            levels = [ReductionLevel("sum" if reducer is None else reducer)]
            if reducer == "attention" and width is None:
                raise ValueError("the width is None; expected a number for reducer 'attention'")
        elif width is None:
            raise ValueError("the width is None; expected that of the vectors, before the levels")
        if width is not None:
            whole_number("width", width, 1, 2**31)
        whole_number("at_once", at_once, 1, 2**31)
        self.width = width
        self.widths: list[int] = []
        """Widths of the vectors that each level gives."""
        positions, encoders, reducers = [], [], []
        before = 0 if width is None else width
        with seeded_initialisation(generator):
            for number, level in enumerate(levels):
                wide = before if level.width is None else level.width
                if self.has_levels:
                    whole_number(f"the width of level {number}", wide, 1, 2**31)
                positions.append(_positions(level.positions, before))
                encoders.append(_encoder(number, level.encoder, before, wide, at_once))
                reducers.append(make_reducer(level.reducer, wide))
                self.widths.append(wide)
                before = wide
        self.positions = nn.ModuleList(positions)
        self.encoders, self.reducers = nn.ModuleList(encoders), nn.ModuleList(reducers)

    def forward(self, input: Any, slices: Sequence[Any]) -> Any:
        """The vectors of spans.

        A span is a half-open pair ``(start, end)``; those of a level are an array (S, 2) or a list
        of pairs, in order and without overlap. What is in no span goes no further.

        Args:
            input: vectors (K, W), or several sequences of them: a nested tensor (strided or
                jagged), a list of tensors (n, W), or a tensor (B, n, W).
            slices: with levels, the spans of each level, those of the first over the vectors, those
                of every other one over the spans of the level before it; for several sequences,
                such a list for each. Without levels, the spans of one level.

        Returns:
            With levels, the vectors of each, the last being the roots: a tensor (spans, width), or
            for several sequences what ``input`` is (nested tensors for a tensor), a sequence
            each. Without levels, the vectors (S, W) of the spans of ``input``. Where that is
            several sequences, each of them *is* a span, and ``slices`` cut the row of their vectors
            into the sequences of the next level.

        Raises:
            ValueError: there are not as many levels as the module has, a span is empty, out of
                range, unordered or overlaps another (the message names level and span), vectors
                are not as wide as expected, or an encoder or reducer gives another shape than
                expected.
        """
        single = isinstance(input, Tensor) and not input.is_nested and input.ndim == 2
        if self.has_levels and single:
            return self._by_levels(input, slices)
        if single:
            return self._reduce(0, input, checked_spans("slices", _on_cpu(slices), len(input)))
        sequences, pack = _unpacked(input)
        if self.has_levels:
            joined, levels = join_samples(sequences, slices)
            counts = [[len(spans) for spans in level] for level in zip(*slices, strict=True)]
            reduced = zip(self._by_levels(joined, levels), counts, strict=True)
            return [pack(list(vectors.split(sizes))) for vectors, sizes in reduced]
        ends = np.cumsum([len(vectors) for vectors in sequences])
        spans = np.stack((np.append(0, ends[:-1]), ends), 1)
        spans = checked_spans("the sequences of the input", spans, int(ends[-1]))
        vectors = self._reduce(0, torch.cat(sequences), spans)
        cuts = checked_spans("slices", _on_cpu(slices), len(vectors))
        return pack([vectors[start:end] for start, end in cuts.tolist()])

    def _by_levels(
        self, values: Float[Tensor, "K W"], levels: Sequence[Any]
    ) -> list[Float[Tensor, "_ _"]]:
        if len(levels) != len(self.encoders):
            raise ValueError(
                f"there are spans of {len(levels)} levels; expected {len(self.encoders)}"
            )
        checked = checked_levels("spans", [_on_cpu(spans) for spans in levels], len(values))
        reduced = []
        for number, spans in enumerate(checked):
            values = self._reduce(number, values, spans)
            reduced.append(values)
        return reduced

    def _reduce(
        self, number: int, values: Float[Tensor, "K _"], spans: Int64[np.ndarray, "S 2"]
    ) -> Float[Tensor, "S _"]:
        """One level; ``spans`` are checked."""
        if number == 0 and self.width not in (None, values.shape[1]):
            raise ValueError(f"values have shape {tuple(values.shape)}; expected (K, {self.width})")
        owners = span_owners(spans, len(values))
        inside = np.flatnonzero(owners >= 0)
        lengths = spans[:, 1] - spans[:, 0]
        kept = values[torch.from_numpy(inside).to(values.device)]  # (M, W)
        encoded = self.encoders[number](self.positions[number](kept, lengths), lengths)
        return self.reducers[number](
            encoded, torch.from_numpy(owners[inside]).to(values.device), len(spans)
        )


def join_samples(
    values: Sequence[Float[Tensor, "_ W"]], levels: Sequence[Sequence[Any]]
) -> tuple[Float[Tensor, "K W"], list[Int64[np.ndarray, "_ 2"]]]:
    """Many samples as one call of :class:`HierarchyReduction` with levels takes them.

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


def _unpacked(sequences: Any) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    """The sequences, and what packs others in the same way."""
    if isinstance(sequences, Tensor):
        if not sequences.is_nested and sequences.ndim != 3:
            shape = tuple(sequences.shape)
            raise ValueError(f"the input has shape {shape}; expected (K, W) or (B, n, W)")
        layout = sequences.layout if sequences.is_nested else torch.strided
        pack: Callable[[list[Tensor]], Any]
        pack = partial(torch.nested.as_nested_tensor, layout=layout)
        found = list(sequences.unbind())
    elif isinstance(sequences, Sequence) and all(isinstance(one, Tensor) for one in sequences):
        pack, found = list, list(sequences)
    else:
        kind = type(sequences).__name__
        raise ValueError(f"the input is a {kind}; expected a tensor, or a list of tensors (n, W)")
    shapes = [tuple(vectors.shape) for vectors in found]
    if not found or any(len(shape) != 2 or shape[1] != shapes[0][-1] for shape in shapes):
        raise ValueError(
            f"the sequences have shapes {shapes}; expected at least one, all (n, W) of one width"
        )
    return found, pack


def _positions(positions: str | Network | None, width: int) -> nn.Module:
    if positions is None:
        return EachVector(nn.Identity())
    if callable(positions):
        return WithPositions(positions)
    if positions not in POSITIONS:
        choices = ", ".join(POSITIONS)
        raise ValueError(f"unknown positions {positions!r}; choose from {choices}, a module, None")
    return WithPositions(POSITIONS[positions](width))


def _encoder(
    number: int, encoder: str | Network | None, inputs: int, outputs: int, at_once: int
) -> nn.Module:
    name = f"the encoder of level {number}"
    if callable(encoder):
        return EachSpan(name, encoder, outputs, at_once)
    if encoder is None:
        if inputs != outputs:
            raise ValueError(
                f"level {number} has width {outputs} and no encoder; expected {inputs}, what comes "
                "in, or an encoder"
            )
        return EachVector(nn.Identity())
    if encoder == "linear":
        return EachVector(nn.Linear(inputs, outputs))
    if encoder == "mlp":
        hidden = nn.Linear(inputs, outputs)
        return EachVector(nn.Sequential(hidden, nn.GELU(), nn.Linear(outputs, outputs)))
    if encoder == "transformer":
        return EachSpan(name, SpanTransformer(inputs, outputs), outputs, at_once)
    raise ValueError(
        f"unknown encoder {encoder!r}; choose from linear, mlp, transformer, a module, None"
    )


def _on_cpu(spans: Any) -> Any:
    return spans.cpu().numpy() if isinstance(spans, Tensor) else spans
