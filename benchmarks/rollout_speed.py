"""Rollouts alone, compiled, on arrays and on tensors: ``python -m benchmarks.rollout_speed``.

Microseconds of a merge: the policy chooses, the merger merges, and nothing learns. The networks are
the shipped ones of 64 numbers, untrained, on random tokens; all ways are called by turns. On a
processor a rollout among all pairs is compiled where numba is installed (the extra ``fast``) and on
arrays where it is not; on tensors it is everywhere else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from agents.networks.scorers import make_scorer
from agents.rollouts.candidates import CandidateLists
from agents.rollouts.pair_scores import (
    ArrayScorer,
    NodeTables,
    PairArrays,
    PairScorer,
    PairScores,
    Positions,
)
from agents.rollouts.rollout import Network, rollout
from benchmarks.measuring import Row, one_by_one, seconds_by_turns
from benchmarks.scaling import COORDINATES, EMBEDDING_DIM, points
from benchmarks.table import origin, report
from htm_env.autoencoder import HTMAutoencoder

SIZES = ((1, 128), (8, 128), (64, 15), (64, 128), (256, 15))
"""Trees at once, and tokens of each."""


class TensorScores(PairScores):
    """Scores of a rollout that are not offered as arrays."""

    def __init__(self, scores: PairScores) -> None:
        self.scores = scores

    def at(self, step: Any) -> Any:
        return self.scores.at(step)

    def after(self, step: Any, children: Any, parent: Any) -> None:
        self.scores.after(step, children, parent)


class OnTensors:
    """A pair scorer whose rollouts are on tensors."""

    def __init__(self, policy: PairScorer) -> None:
        self.policy = policy

    def pair_scores(self, tables: NodeTables, positions: Positions) -> PairScores:
        return TensorScores(self.policy.pair_scores(tables, positions))  # type: ignore[attr-defined]

    def candidate_scores(self, tables: NodeTables, lists: CandidateLists) -> PairScores:
        return self.policy.candidate_scores(tables, lists)  # type: ignore[attr-defined, no-any-return]


class Uncompiled:
    """A pair scorer on arrays that gives no weights to what is compiled."""

    def __init__(self, scorer: ArrayScorer) -> None:
        self.features, self.scores = scorer.features, scorer.scores
        self.paired_scores, self.symmetric = scorer.paired_scores, scorer.symmetric

    def weights(self) -> None:
        return None


class ArrayScores(TensorScores):
    """Scores that are offered as arrays, and not to what is compiled."""

    def on_arrays(self) -> PairArrays | None:
        arrays = self.scores.on_arrays()
        return None if arrays is None else arrays._replace(scorer=Uncompiled(arrays.scorer))


class OnArrays(OnTensors):
    """A pair scorer whose rollouts are on arrays, step by step."""

    def pair_scores(self, tables: NodeTables, positions: Positions) -> PairScores:
        return ArrayScores(self.policy.pair_scores(tables, positions))  # type: ignore[attr-defined]


def measure(trees: int, tokens: int, seconds: float) -> Row:
    """One row."""
    generator = torch.Generator().manual_seed(1)
    autoencoder = HTMAutoencoder(COORDINATES, EMBEDDING_DIM, generator=generator)
    policy, batch = make_scorer("pointer", EMBEDDING_DIM, 128), points(tokens, trees)
    # As in training without a price of entropy.
    options: dict[str, Any] = {"measure_entropy": False, "ordered_entropy": False}
    ways: dict[str, Network] = {"tensors": OnTensors(policy), "arrays": OnArrays(policy)}
    if find_spec("numba"):
        ways["compiled"] = policy
    taken = seconds_by_turns(
        {
            name: partial(rollout, autoencoder, network, batch, generator, **options)
            for name, network in ways.items()
        },
        seconds,
    )
    merges = trees * (tokens - 1)
    row: Row = {"trees": trees, "tokens": tokens}
    row |= {f"us a merge, {name}": 1e6 * time / merges for name, time in taken.items()}
    fast = [name for name in taken if name != "tensors"]
    return row | {f"times as fast, {name}": taken["tensors"] / taken[name] for name in fast}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each row")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = one_by_one([(*size, options.seconds) for size in SIZES], measure)
    words = sys.argv[1:] if arguments is None else arguments
    report("rollout_speed", rows, made_by=origin("benchmarks.rollout_speed", words))


if __name__ == "__main__":
    main()
