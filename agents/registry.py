"""Every algorithm by its name on the command line and in results; building and loading learners.

Classes are named by strings and imported when they are used, so that names can be checked without
loading torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.config.dataclasses_json import config_from_dict, merged
from agents.config.run import RunConfig

if TYPE_CHECKING:
    from agents.learners.base import Learner


@dataclass(frozen=True)
class Algorithm:
    """A learner and the configuration that makes it this algorithm."""

    source: type[Learner] | str
    """The learner's class, or ``module:name`` of it."""
    defaults: Any = None
    """The default configuration or its class, or ``module:name`` of either; None for the learner's
    own."""
    decided: dict[str, Any] = field(default_factory=dict)
    """Fields of the configuration that the algorithm's name decides, with their values."""

    @property
    def learner(self) -> type[Learner]:
        """The learner's class."""
        return imported(self.source)

    @property
    def config(self) -> Any:
        """The default configuration, a frozen dataclass."""
        defaults = imported(self.defaults) or self.learner.config_class
        return replace(defaults() if isinstance(defaults, type) else defaults, **self.decided)


def imported(source: Any) -> Any:
    """The object that ``module:name`` names; anything but a string as it is."""
    if not isinstance(source, str):
        return source
    module, _, name = source.partition(":")
    return getattr(import_module(module), name)


FIXED = (
    "random",
    "cosine",
    "greedy",
    "beam",
    "chain",
    "balanced",
    "balanced_sorted",
    "nearest",
    "even",
    "average",
    "ward",
    "structure",
    "nearest_sorted",
    "even_sorted",
    "structure_sorted",
    "structure_canonical",
    "spans",
)
"""Names of the fixed policies; what they do is in :mod:`agents.fixed`."""
_REINFORCE = "agents.learners.reinforce:Reinforce"
_FIXED_ORDER = "agents.learners.fixed_order:FixedOrder"
_PPO = ("agents.ppo.learner:PPOLearner", "agents.ppo.config:PPOConfig")

ALGORITHMS: dict[str, Algorithm] = {
    "reinforce": Algorithm(_REINFORCE),
    "replay": Algorithm("agents.learners.replay:ReplayReinforce"),
    "ppo": Algorithm(*_PPO, decided={"maskable": False}),
    "maskable_ppo": Algorithm(*_PPO, decided={"maskable": True}),
    "original": Algorithm(_REINFORCE, "agents.learners.original:ORIGINAL"),
    "original_policy": Algorithm(_REINFORCE, "agents.learners.original:ORIGINAL_POLICY"),
    **{name: Algorithm(_FIXED_ORDER, decided={"policy": name}) for name in FIXED},
    "flat": Algorithm("agents.learners.flat:Flat"),
    "glom": Algorithm("agents.learners.glom:GlomOrder"),
    "retrained": Algorithm("agents.comparison.diagnoses:Retrained"),
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


def configured(name: str, changes: Mapping[str, Any]) -> Any:
    """The configuration of an algorithm with some options changed, nested as they are in it.

    Raises ``ValueError`` for an option that does not exist, that is of another type or out of
    range, or that the algorithm's name decides.
    """
    entry = algorithm(name)
    for option, value in entry.decided.items():
        if changes.get(option, value) != value:
            raise ValueError(f"{name} decides {option}; choose another algorithm")
    defaults = entry.config
    return config_from_dict(type(defaults), merged(asdict(defaults), changes))


def build_learner(run: RunConfig) -> Learner:
    """The untrained learner of a configuration.

    Raises ``ValueError`` for an algorithm or an option that does not exist or is out of range, and
    for data that the learner cannot use.
    """
    return algorithm(run.algo).learner.from_run(run)


def load_learner(directory: str | Path) -> Learner:
    """The learner of a run, of whatever class, in the state of its last checkpoint.

    Raises ``FileNotFoundError`` without a run or a checkpoint, ``ValueError`` for files that cannot
    be read.
    """
    from agents.runs.session import open_agent

    return open_agent(directory, build_learner)
