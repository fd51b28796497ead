"""Every algorithm by its name on the command line and in results; building and loading learners.

Classes are named by strings and imported when they are used, so that names can be checked without
loading torch. A name is one of :data:`ALGORITHMS`, one that an installed package gives in the group
of entry points ``htm.algorithms``, or ``module:Class`` of a learner or of Stable-Baselines3's
interface: ``sb3:DQN``, ``sb3_contrib:TRPO``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.config.dataclasses_json import config_from_dict, flattened, merged
from agents.config.errors import did_you_mean
from agents.config.plug_ins import check_module, named_object, names_object
from agents.config.run import RunConfig

if TYPE_CHECKING:
    from agents.learners.base import Learner


@dataclass(frozen=True)
class Algorithm:
    """A learner and the configuration that makes it this algorithm."""

    source: type[Learner] | str
    """The learner's class, or ``module:Class`` of it."""
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
    "balanced_hilbert",
    "nearest",
    "even",
    "average",
    "ward",
    "closest",
    "closest_single",
    "recurrent",
    "structure",
    "nearest_sorted",
    "even_sorted",
    "closest_sorted",
    "closest_single_sorted",
    "recurrent_sorted",
    "structure_sorted",
    "nearest_hilbert",
    "even_hilbert",
    "closest_hilbert",
    "recurrent_hilbert",
    "structure_hilbert",
    "structure_canonical",
    "spans",
    "exact",
    "kt",
    "cambridge_aachen",
)
"""Names of the fixed policies; what they do is in :mod:`agents.fixed`."""
RETRAINED = "retrained"
"""The algorithm that follows the trees of another run; for comparisons."""
_REINFORCE = "agents.learners.reinforce:Reinforce"
_FIXED_ORDER = "agents.learners.fixed_order:FixedOrder"
_STABLE_BASELINES = (
    "agents.stable_baselines.learner:StableBaselinesLearner",
    "agents.stable_baselines.config:StableBaselinesConfig",
)
_PPO = ("agents.ppo.learner:PPOLearner", "agents.ppo.config:PPOConfig")

ALGORITHMS: dict[str, Algorithm] = {
    "reinforce": Algorithm(_REINFORCE),
    "rloo": Algorithm(_REINFORCE, "agents.learners.rloo:RLOO"),
    "replay": Algorithm("agents.learners.replay:ReplayReinforce"),
    "ppo": Algorithm(*_PPO, decided={"maskable": False}),
    "maskable_ppo": Algorithm(*_PPO, decided={"maskable": True}),
    "original": Algorithm(_REINFORCE, "agents.learners.original:ORIGINAL"),
    "original_policy": Algorithm(_REINFORCE, "agents.learners.original:ORIGINAL_POLICY"),
    **{name: Algorithm(_FIXED_ORDER, decided={"policy": name}) for name in FIXED},
    "flat": Algorithm("agents.learners.flat:Flat"),
    "glom": Algorithm("agents.learners.glom:GlomOrder"),
    RETRAINED: Algorithm("agents.comparison.diagnoses:Retrained"),
}

ENTRY_POINTS = "htm.algorithms"
"""The group of entry points in which a package gives names to learners of its own."""

_LABEL = re.compile(r"[\w.-]+")


def check_algorithm(name: str) -> None:
    """Raise ``ValueError`` with the choices where no algorithm can have that name.

    Imports nothing: that ``module:Class`` is an algorithm shows when it is loaded.
    """
    base, label = _parts(name)
    if label is not None and not _LABEL.fullmatch(label):
        raise ValueError(
            f"the algorithm {name!r} has a bad label; expected letters, digits, '_', '-' and '.' "
            "behind the colon"
        )
    if base in ALGORITHMS or base in installed():
        return
    known = choices()
    like = did_you_mean(base.partition(":")[0], known)
    if not names_object(base):
        raise ValueError(
            f"unknown algorithm {name!r}{like}; choose from {', '.join(known)}; or module:Class of "
            "your own, or sb3:DQN, sb3_contrib:TRPO, ..."
        )
    try:
        check_module(base, "algorithm")
    except ValueError as error:
        raise ValueError(f"{error}{like}") from None


def algorithm(name: str) -> Algorithm:
    """The algorithm of that name; ``ValueError`` with the choices if there is none.

    A name may carry a label, such as ``replay:control`` or ``my_module:MyLearner:control``: the
    same algorithm, whose runs with other options or another budget are a row of their own. The
    module of ``module:Class`` is imported.
    """
    check_algorithm(name)
    base = unlabelled(name)
    if base in ALGORITHMS:
        return ALGORITHMS[base]
    source = installed().get(base, base)
    what = "algorithm" if source == base else f"algorithm {base!r}, which is installed as"
    found = named_object(source, what)
    if hasattr(found, "from_run"):
        return Algorithm(found)
    return Algorithm(*_STABLE_BASELINES, decided={"model": source})


@cache
def installed() -> dict[str, str]:
    """``module:Class`` of the algorithms that installed packages name."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}


def choices() -> tuple[str, ...]:
    """Names to train: all but that of :mod:`agents.comparison.diagnoses`, which needs a run."""
    return tuple(dict.fromkeys(n for n in (*ALGORITHMS, *installed()) if n != RETRAINED))


def unlabelled(name: str) -> str:
    """The algorithm's name without its label."""
    return _parts(name)[0]


def file_name(name: str) -> str:
    """The algorithm's name in names of files and folders: without colons, but for a label's."""
    base, label = _parts(name)
    return base.replace(":", "-") + ("" if label is None else f":{label}")


def _parts(name: str) -> tuple[str, str | None]:
    """The algorithm's name, and its label if it has one.

    The part before the first colon decides: the name of an algorithm has a label behind it, the
    name of a module a class, and behind a second colon a label.
    """
    first, *rest = name.split(":", 2)
    if rest and first not in ALGORITHMS and first not in installed():
        return f"{first}:{rest[0]}", rest[1] if len(rest) > 1 else None
    return first, ":".join(rest) if rest else None


def configured(name: str, changes: Mapping[str, Any]) -> Any:
    """The configuration of an algorithm with some options changed, nested as they are in it.

    Raises ``ValueError`` for an option that does not exist, that is of another type or out of
    range, or that the algorithm's name decides.
    """
    entry = algorithm(name)
    defaults = entry.config
    for path in sorted(set(flattened(dict(changes))) - set(flattened(asdict(defaults)))):
        others = [] if _has(defaults, path) else list(_having(path))
        if others:
            raise ValueError(f"{name} has no option {path!r}; {', '.join(others)} have it")
    _check_decided(name, entry, changes)
    return config_from_dict(type(defaults), merged(asdict(defaults), changes))


def _check_decided(name: str, entry: Algorithm, options: Mapping[str, Any]) -> None:
    for option, value in entry.decided.items():
        if options.get(option, value) != value:
            raise ValueError(f"{name} decides {option}; choose another algorithm")


def _has(config: Any, path: str) -> bool:
    """True <--> the dotted path leads to an option, or into one that takes an object."""
    for part in path.split("."):
        if isinstance(config, dict):
            return True
        if not hasattr(config, part):
            return False
        config = getattr(config, part)
    return True


def _having(path: str) -> Iterator[str]:
    """The learners that have an option, and the fixed orders together."""
    for name, entry in ALGORITHMS.items():
        if name not in (*FIXED[1:], RETRAINED) and _has(entry.config, path):
            yield "the fixed orders" if name in FIXED else name


def build_learner(run: RunConfig) -> Learner:
    """The untrained learner of a configuration, with the algorithm's defaults where it has none.

    Raises ``ValueError`` for an algorithm or an option that does not exist or is out of range, for
    one that the algorithm's name decides otherwise, and for data that the learner cannot use.
    """
    entry = algorithm(run.algo)
    _check_decided(run.algo, entry, run.config)
    config = run.config | entry.decided
    if entry.defaults is not None:  # they differ from those of the learner's class
        config = merged(asdict(entry.config), config)
    return entry.learner.from_run(replace(run, config=config))


def load_learner(
    directory: str | Path, data: str | Path | None = None, *, needs_data: bool = False
) -> Learner:
    """The learner of a run, of whatever class, in the state of its last checkpoint.

    ``data`` is a file to take for its data, and where neither is there, ``needs_data`` decides
    between an error and a warning (see :func:`agents.runs.session.open_agent`).

    Where ``config.json`` names an object of a module, as ``module:Class``, the module is found on
    Python's path and imported; one that lies in the folder of the run is refused, so that opening a
    folder that someone else made runs no code that came with it.

    Raises ``FileNotFoundError`` without a run or a checkpoint, ``ValueError`` for files that cannot
    be read.
    """
    from agents.runs.session import open_agent

    return open_agent(directory, build_learner, data, needs_data=needs_data)
