"""Rollouts alone, on arrays and on tensors: ``python -m benchmarks.rollout_speed``.

Microseconds of a merge: the policy chooses, the merger merges, and nothing learns. The networks are
the shipped ones of 64 numbers, untrained, on random tokens; both ways are called by turns. On a
processor a rollout among all pairs is on arrays; on tensors it is everywhere else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from agents.networks.scorers import make_scorer
from agents.rollouts.candidates import CandidateLists
from agents.rollouts.pair_scores import NodeTables, PairScorer, PairScores, Positions
from agents.rollouts.rollout import rollout
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


def measure(trees: int, tokens: int, seconds: float) -> Row:
    """One row."""
    generator = torch.Generator().manual_seed(1)
    autoencoder = HTMAutoencoder(COORDINATES, EMBEDDING_DIM, generator=generator)
    policy, batch = make_scorer("pointer", EMBEDDING_DIM, 128), points(tokens, trees)
    # As in training without a price of entropy.
    options: dict[str, Any] = {"measure_entropy": False, "ordered_entropy": False}
    taken = seconds_by_turns(
        {
            "tensors": lambda: rollout(autoencoder, OnTensors(policy), batch, generator, **options),
            "arrays": lambda: rollout(autoencoder, policy, batch, generator, **options),
        },
        seconds,
    )
    merges = trees * (tokens - 1)
    row: Row = {"trees": trees, "tokens": tokens}
    row |= {f"us a merge, {name}": 1e6 * time / merges for name, time in taken.items()}
    return row | {"times as fast": taken["tensors"] / taken["arrays"]}


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
