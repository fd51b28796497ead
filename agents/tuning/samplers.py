"""What chooses the options of trials."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from agents.config.errors import did_you_mean
from agents.config.plug_ins import check_module, named_object, names_object

if TYPE_CHECKING:
    from agents.tuning.space import Space, Values


@runtime_checkable
class Sampler(Protocol):
    """It is made of a space and a seed: ``Class(space, seed)``."""

    learns: ClassVar[bool]
    """True <--> it is to see errors before it has drawn all trials."""

    def ask(self, count: int) -> list[Values]:
        """Values for so many trials."""

    def tell(self, values: Values, error: float) -> None:
        """Take the validation error of a trial, infinity where it diverged; in the order of
        asking."""


class RandomSampler:
    """Every option by itself, uniformly (Bergstra and Bengio 2012)."""

    learns = False

    def __init__(self, space: Space, seed: int) -> None:
        import numpy as np

        self._space, self._generator = space, np.random.default_rng(seed)

    def ask(self, count: int) -> list[Values]:
        from agents.tuning.space import draw

        return [draw(self._space, self._generator) for _ in range(count)]

    def tell(self, values: Values, error: float) -> None:
        """It learns nothing."""


class OptunaSampler:
    """Optuna's tree-structured Parzen estimator."""

    learns = True

    def __init__(self, space: Space, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed)
        self._space, self._study = space, optuna.create_study(sampler=sampler)
        self._asked: list[tuple[Any, Values]] = []

    def ask(self, count: int) -> list[Values]:
        from agents.tuning.space import Choice

        made = []
        for _ in range(count):
            trial, values = self._study.ask(), {}
            for path, option in self._space.items():
                if isinstance(option, Choice):
                    # Of numbers, since it takes no lists.
                    places = list(range(len(option.values)))
                    values[path] = option.values[trial.suggest_categorical(path, places)]
                elif option.is_whole:
                    low, high = int(option.low), int(option.high)
                    values[path] = trial.suggest_int(path, low, high, log=option.log)
                else:
                    low_, high_ = float(option.low), float(option.high)
                    values[path] = trial.suggest_float(path, low_, high_, log=option.log)
            self._asked.append((trial, values))
            made.append(values)
        return made

    def tell(self, values: Values, error: float) -> None:
        place = next(k for k, (_, asked) in enumerate(self._asked) if asked == values)
        trial, _ = self._asked.pop(place)
        if math.isfinite(error):
            self._study.tell(trial, error)
        else:
            import optuna

            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)


SAMPLERS = {"random": RandomSampler, "optuna": OptunaSampler}


def check_sampler(name: str) -> None:
    """Raise ``ValueError`` where no sampler has that name, or its library is missing."""
    if name == "optuna" and find_spec("optuna") is None:
        raise ValueError(
            "the sampler optuna needs Optuna: pip install 'htm-rl[optuna]', or "
            "pip install '.[optuna]' in a checkout"
        )
    if name in SAMPLERS:
        return
    if not names_object(name):
        raise ValueError(
            f"unknown sampler {name!r}{did_you_mean(name, SAMPLERS)}; choose from "
            f"{', '.join(SAMPLERS)}; or module:Class of your own"
        )
    check_module(name, "sampler")


def make_sampler(name: str, space: Space, seed: int) -> Sampler:
    """The sampler of that name; ``ValueError`` where it is none."""
    check_sampler(name)
    made = SAMPLERS[name] if name in SAMPLERS else named_object(name, "sampler")
    sampler = made(space, seed)
    if not isinstance(sampler, Sampler):
        raise ValueError(f"the sampler {name!r} has no learns, ask and tell")
    return sampler
