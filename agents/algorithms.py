"""Every algorithm by the name that the command line and the results know it by."""

from __future__ import annotations

from typing import Any, NamedTuple

from agents.fixed import FIXED_POLICIES
from agents.fixed_order import FixedOrder, FixedOrderConfig
from agents.flat import Flat, FlatConfig
from agents.learner import Learner
from agents.original import ORIGINAL, ORIGINAL_POLICY
from agents.reinforce import Reinforce, ReinforceConfig
from agents.retrained import Retrained, RetrainedConfig


class Algorithm(NamedTuple):
    """A learner and the configuration that makes it this algorithm."""

    learner: type[Learner]
    config: Any
    """The default configuration, a frozen dataclass."""
    decided: tuple[str, ...] = ()
    """Fields of the configuration that the algorithm's name decides, so nobody may change them."""


ALGORITHMS: dict[str, Algorithm] = {
    "reinforce": Algorithm(Reinforce, ReinforceConfig()),
    "original": Algorithm(Reinforce, ORIGINAL),
    "original_policy": Algorithm(Reinforce, ORIGINAL_POLICY),
    **{
        name: Algorithm(FixedOrder, FixedOrderConfig(policy=name), decided=("policy",))
        for name in FIXED_POLICIES
    },
    "flat": Algorithm(Flat, FlatConfig()),
    "retrained": Algorithm(Retrained, RetrainedConfig()),
}


def algorithm(name: str) -> Algorithm:
    """The algorithm of that name; ``ValueError`` with the choices if there is none."""
    if name not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {name!r}; choose from {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]
