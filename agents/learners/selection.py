"""Selection of the fixed order that a policy clones at first, by successive halving.

The orders that take part are the same for all data. Each trains an autoencoder of its own, since
orders that share one disturb each other: what is learned of one family of trees depends on what
else is in the mixture. Half of them are left out round by round, the winner's autoencoder is kept,
and goes on learning (Karnin, Koren and Somekh 2013, "Almost optimal exploration in multi-armed
bandits"; Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter
optimization").
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from agents.fixed import FixedPolicy
from agents.optim.autoencoder_trainer import AutoencoderTrainer
from htm_env.files import load_weights
from htm_env.types import TokenBatch

ORDERS = (
    "balanced_sorted",
    "balanced_hilbert",
    "nearest_sorted",
    "nearest_hilbert",
    "even_sorted",
    "even_hilbert",
    "closest_sorted",
    "closest_hilbert",
    "closest_single_sorted",
)
"""The fixed orders that need no hierarchy, and put every pair into an order of its own. A tree in
random order is left out: an autoencoder learns the same tree in sorted order better."""
BY_COST = ("greedy",)
"""The order under a known merger, where a merge's cost is known without decoding."""
BROKEN = 1e6
"""Value of an error that is not finite."""
WARM_UP = 2 / 3
"""Share of the laps of a round that do not count: early on, whatever is simplest leads."""


class Halving:
    """Names of which the worse half is left out round by round, until one is left.

    The rounds have equal shares of the budget up to ``end``. What counts is the mean logarithm of
    the errors reported in a round, after its first laps.

    One alone is selected at once. Raises ``ValueError`` for an end outside [0, 1].
    """

    def __init__(self, names: Sequence[str], end: float) -> None:
        if not 0 <= end <= 1:
            raise ValueError(f"the selection ends at {end}; expected a share of the budget, 0 to 1")
        self.names = tuple(dict.fromkeys(names))
        self.end = end
        self.remaining = list(self.names)
        """Those that are not left out yet, the best of the last round first."""
        self._rounds = max(1, len(self.names).bit_length() - 1)
        self._ended = 0  # rounds
        self._laps: list[list[float]] = []  # logarithms of the errors of the remaining, in order

    @property
    def open(self) -> bool:
        """True <--> more than one is left."""
        return len(self.remaining) > 1

    @property
    def best(self) -> str:
        """The best of the last round; the first name before any.

        Raises ``ValueError`` where there are none.
        """
        if not self.names:
            raise ValueError("there is no demonstrator; expected at least one fixed policy")
        return self.remaining[0]

    def report(self, errors: Mapping[str, float]) -> None:
        """One lap: an error of each that remains."""
        given = (errors[name] for name in self.remaining)
        finite = (error if math.isfinite(error) else BROKEN for error in given)
        self._laps.append([math.log(max(error, 1e-30)) for error in finite])

    def advance(self, progress: float) -> None:
        """End the rounds whose time is over at this share of the budget."""
        while self.open and progress >= self.end * (self._ended + 1) / self._rounds:
            self.halve()

    def choose(self, name: str) -> None:
        """End the selection with this one."""
        self.remaining = [name]

    def halve(self) -> None:
        """End a round: the better half stays, in order; the first ones, if there was no lap."""
        lately = self._laps[int(WARM_UP * len(self._laps)) :]
        sums = [sum(errors) for errors in zip(*lately, strict=True)] or [0.0] * len(self.remaining)
        order = sorted(range(len(self.remaining)), key=sums.__getitem__)
        self.remaining = [self.remaining[index] for index in order[: len(order) // 2]]
        self._ended += 1
        self._laps = []

    def state(self) -> dict[str, Any]:
        laps = [list(errors) for errors in self._laps]
        return {"remaining": list(self.remaining), "ended": self._ended, "laps": laps}

    def restore(self, state: dict[str, Any]) -> None:
        self.remaining, self._ended = list(state["remaining"]), state["ended"]
        self._laps = [list(errors) for errors in state["laps"]]


@dataclass
class Contestant:
    """A fixed order, and the training of an autoencoder on its trees alone."""

    planner: FixedPolicy
    trainer: AutoencoderTrainer

    def learn(
        self, batch: TokenBatch, generator: torch.Generator, progress: float
    ) -> tuple[Int64[Tensor, "B M 2"], dict[str, float]]:
        """One step on the trees of these samples; the trees, and the scalars of the step."""
        merges = self.planner.plan(batch, generator)
        return merges, self.trainer.update(batch, merges, progress)

    def state(self) -> dict[str, Any]:
        weights = copy.deepcopy(self.trainer.autoencoder.state_dict())
        return {"autoencoder": weights, "trainer": self.trainer.state()}

    def restore(self, state: dict[str, Any]) -> None:
        load_weights(self.trainer.autoencoder, state["autoencoder"])
        self.trainer.restore(state["trainer"])
