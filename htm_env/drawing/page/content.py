"""The JSON of every episode on the page: plain numbers, rounded to visible precision.

Two things keep populations of 128 tokens small. A merge changes the reconstruction of the tokens
under it and of no others, so only these are written. And of the probabilities of all ordered pairs
only the largest are, with the chosen pair's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from htm_env.drawing.glyphs import kind_named
from htm_env.drawing.trace import Considered, Numbers, Trace

SHOWN_PAIRS = 10
"""The ordered pairs, most probable first, that are shown beside the chosen one."""
DIGITS_OF_EXTENT = 5
"""A coordinate is rounded to the ten thousandth part of the tokens' extent, or finer."""
DIGITS = 5
"""Significant digits of errors, charges and probabilities."""


def page_content(traces: Mapping[str, Trace]) -> dict[str, Any]:
    """The page's JSON; raises ``ValueError`` without samples or for one that is not finite."""
    if not traces:
        raise ValueError("a page needs at least 1 sample, but got none.")
    return {"samples": [_sample(name, trace) for name, trace in traces.items()]}


def _sample(name: str, trace: Trace) -> dict[str, Any]:
    _check_finite(name, trace)
    on_page = kind_named(trace.kind, trace.tokens.shape[1]).on_page
    tokens = trace.tokens if on_page is None else on_page(trace.tokens)
    decimals, decoded = _decimals(tokens), trace.reconstructions
    steps = enumerate(trace.tree.clades(), start=1)
    return {
        "name": name,
        "title": trace.title,
        "names": trace.names,  # of all nodes
        "kind": trace.kind,
        "dim": tokens.shape[1],
        "tokens": _rounded(tokens, decimals),  # flat, token by token
        "merges": trace.tree.merges.tolist(),
        # Before the first merge; null where nothing is decoded.
        "start": None if decoded is None else _rounded(decoded[0], decimals),
        # Of every merge, the tokens under it in ascending order.
        "changes": []
        if decoded is None
        else [_rounded(decoded[step, sorted(clade)], decimals) for step, clade in steps],
        "measure": trace.error_name,
        "errors": _significant(trace.errors),
        "charges": _significant(trace.charges),  # differences of rounded errors would be rough
        # As many as there are merges, or none at all.
        "considered": [
            _considered(considered, (first, second))
            for considered, (first, second) in zip(
                trace.considered, trace.tree.merges.tolist(), strict=False
            )
        ],
    }


def _considered(considered: Considered, chosen: tuple[int, int]) -> dict[str, Any]:
    """The most probable pairs ``[first, second, probability]`` and the chosen one, best first."""
    nodes, probabilities = considered
    pairs = probabilities > 0  # the others could not be chosen
    first, second = np.nonzero(pairs)
    best = np.argsort(-probabilities[pairs], kind="stable")[:SHOWN_PAIRS]
    shown = [(int(nodes[first[pair]]), int(nodes[second[pair]])) for pair in best]
    if chosen not in shown:
        shown.append(chosen)
    place = {node: index for index, node in enumerate(nodes.tolist())}
    values = _significant(np.array([probabilities[place[i], place[j]] for i, j in shown]))
    return {
        "count": int(pairs.sum()),
        "pairs": [[*pair, value] for pair, value in zip(shown, values, strict=True)],
    }


def _check_finite(name: str, trace: Trace) -> None:
    probabilities = [considered.probabilities.ravel() for considered in trace.considered]
    decoded = trace.reconstructions
    numbers = {
        "tokens": trace.tokens,
        "reconstructions": np.zeros(0) if decoded is None else decoded,
        "errors": trace.errors,
        "probabilities": np.concatenate([*probabilities, np.zeros(0)]),
    }
    for what, values in numbers.items():
        if not np.isfinite(values).all():
            raise ValueError(f"sample {name} has {what} that are not finite: nothing to draw.")


def _decimals(tokens: Numbers) -> list[int]:
    """Number of decimals that each coordinate needs, by its extent over the sample's tokens."""
    extents = np.ptp(tokens.astype(np.float64), axis=0)
    extents = np.where(extents > 0, extents, np.maximum(np.abs(tokens).max(axis=0), 1e-6))
    decimals: list[int] = (DIGITS_OF_EXTENT - 1 - np.floor(np.log10(extents)).astype(int)).tolist()
    return decimals


def _rounded(values: Numbers, decimals: list[int]) -> list[float]:
    """(k, T) numbers, each coordinate with its own decimals, as one flat list."""
    columns = [
        np.round(values[:, axis].astype(np.float64), places) for axis, places in enumerate(decimals)
    ]
    return np.stack(columns, axis=1).ravel().tolist()


def _significant(values: Numbers) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]
