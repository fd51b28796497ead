"""Every algorithm by the name that the command line and the results know it by."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple

from agents.comparison.retrained import Retrained, RetrainedConfig
from agents.fixed import FIXED_POLICIES
from agents.learners.base import Learner
from agents.learners.fixed_order import FixedOrder, FixedOrderConfig
from agents.learners.flat import Flat, FlatConfig
from agents.learners.glom import GlomOrder, GlomOrderConfig
from agents.learners.original import ORIGINAL, ORIGINAL_POLICY
from agents.learners.reinforce import Reinforce, ReinforceConfig
from agents.learners.replay import ReplayConfig, ReplayReinforce
from agents.ppo.config import PPOConfig


class Algorithm(NamedTuple):
    """A learner and the configuration that makes it this algorithm."""

    source: type[Learner] | str
    """The learner's class, or ``module:name`` where importing it would load much."""
    config: Any
    """The default configuration, a frozen dataclass."""
    decided: tuple[str, ...] = ()
    """Fields of the configuration that the algorithm's name decides, so nobody may change them."""

    @property
    def learner(self) -> type[Learner]:
        """The learner's class."""
        if not isinstance(self.source, str):
            return self.source
        module, name = self.source.split(":")
        return getattr(import_module(module), name)


_PPO = "agents.ppo.learner:PPOLearner"

ALGORITHMS: dict[str, Algorithm] = {
    "reinforce": Algorithm(Reinforce, ReinforceConfig()),
    "replay": Algorithm(ReplayReinforce, ReplayConfig()),
    "ppo": Algorithm(_PPO, PPOConfig(), decided=("maskable",)),
    "maskable_ppo": Algorithm(_PPO, replace(PPOConfig(), maskable=True), decided=("maskable",)),
    "original": Algorithm(Reinforce, ORIGINAL),
    "original_policy": Algorithm(Reinforce, ORIGINAL_POLICY),
    **{
        name: Algorithm(FixedOrder, FixedOrderConfig(policy=name), decided=("policy",))
        for name in FIXED_POLICIES
    },
    "flat": Algorithm(Flat, FlatConfig()),
    "glom": Algorithm(GlomOrder, GlomOrderConfig()),
    "retrained": Algorithm(Retrained, RetrainedConfig()),
}


_LABEL = re.compile(r":[\w.-]+")


def algorithm(name: str) -> Algorithm:
    """The algorithm of that name; ``ValueError`` with the choices if there is none.

    A name may carry a label, such as ``replay:control``: the same algorithm, whose runs with other
    options or another budget are a row of their own.
    """
    base = unlabelled(name)
    if base not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {name!r}; choose from {', '.join(ALGORITHMS)}")
    if name != base and not _LABEL.fullmatch(name[len(base) :]):
        raise ValueError(
            f"the algorithm {name!r} has a bad label; expected letters, digits, '_', '-' and '.' "
            "behind the colon"
        )
    return ALGORITHMS[base]


def unlabelled(name: str) -> str:
    """The algorithm's name without its label."""
    return name.partition(":")[0]
