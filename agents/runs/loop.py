"""The training loop: updates a learner until the budget is used, and yields events.

The caller logs, draws and saves; the loop itself writes nothing. What is logged and evaluated when
depends on the share of the budget that is used and on nothing else, so under a budget of merges it
falls on the same updates in every run, interrupted or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

from agents.config.budget import Budget
from agents.optim.ranks import Ranks

LOG_POINTS = 200
"""Rows of scalars over the whole budget."""
EVALUATIONS = 20
"""Validations over the whole budget; a divisor of the log points, so each has its row."""
NO_MERGES = 20
"""Updates in a row without a merge after which a budget of merges is taken to never end."""
ROUNDING = 1e-9
"""So that 58 / 400 of the budget is 29 log points of 200, and not 28.999."""
CHECKPOINT_SECONDS = 60.0
"""A checkpoint is also due when the last one is older than this."""
ACTIVITIES = ("start_up", "updates", "evaluation", "pictures", "checkpoints")
"""What a run takes its time for; whatever else there is takes next to none."""
Scalars = Mapping[str, float | None]
"""By TensorBoard tag; None where there is no value, such as clades of data without a hierarchy."""


@runtime_checkable
class Trainable(Protocol):
    """An object that the loop can train."""

    merges_made: int
    """Merges made for learning so far."""
    updates: int

    def update(self, progress: float) -> dict[str, float]:
        """Learn once, ``progress`` in [0, 1] through the budget; returns scalars by tag.

        Adds 1 to ``updates``, and the merges that it made to ``merges_made``.
        """


@dataclass(frozen=True)
class Position:
    """Progress of a run."""

    progress: float
    """The share of the budget that is used, from 0 to 1."""
    seconds: float
    merges: int
    updates: int


@dataclass(frozen=True)
class Updated:
    """The learner has learned once."""

    position: Position
    scalars: dict[str, float]


@dataclass(frozen=True)
class Logged:
    """A row is due: scalars averaged since the last row, and validation scores if it has any."""

    position: Position
    scalars: dict[str, float | None]
    evaluation: int | None
    """Number of the evaluation, from 1 to :data:`EVALUATIONS`; None if it is none."""


@dataclass(frozen=True)
class CheckpointDue:
    """The state is complete and worth saving now."""

    position: Position


Event = Updated | Logged | CheckpointDue


class Training:
    """One run of one learner over one budget; it can be saved after any event that says so.

    Args:
        learner: its counters may start above 0.
        budget: counts from here on, whatever the learner did before.
        validate: returns the validation scores, by tag; must not use the learner's generator.
        clock: seconds of wall time.
        ranks: the processes that learn together, which all run this loop; this one alone if None.
            They agree on the position and on when to stop, so that all make the same updates. The
            budget counts the merges of all, and so does ``learner.merges_made``.
    """

    def __init__(
        self,
        learner: Trainable,
        budget: Budget,
        validate: Callable[[], dict[str, float | None]] | None = None,
        clock: Callable[[], float] = perf_counter,
        ranks: Ranks | None = None,
    ) -> None:
        self.learner, self.budget = learner, budget
        self.ranks = Ranks() if ranks is None else ranks
        self.stopped = False
        """True <--> a stop was asked for, in this process or in another one."""
        self.activity = ""
        """What takes its time now, for a person: an update, or a validation."""
        self.spent = dict.fromkeys(ACTIVITIES, 0.0)
        """Seconds of every activity so far, in the loop and beside it."""
        self._clock = clock
        self._validate = validate
        self._first_merge = learner.merges_made
        self._seconds_before = 0.0
        self._running_since: float | None = None
        self._logged = 0  # log points passed
        self._evaluated = 0  # evaluations passed
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._update_seconds, self._merges_at_log = 0.0, learner.merges_made

    @property
    def position(self) -> Position:
        """Current position."""
        seconds, since = self._seconds_before, self._running_since
        if since is not None:
            seconds += self._clock() - since
        merges = self.learner.merges_made - self._first_merge
        progress = self.budget.progress(seconds, merges)
        return Position(progress, seconds, merges, self.learner.updates)

    def _agreed(self) -> Position:
        """The current position, by the clock of the first process where seconds count."""
        position = self.position
        if self.budget.seconds is None:
            return position
        seconds = self.ranks.first(position.seconds)
        return replace(
            position,
            seconds=seconds,
            progress=self.budget.progress(seconds, position.merges),
        )

    @contextmanager
    def spending(self, activity: str) -> Iterator[None]:
        """Count the seconds of this block for one of the :data:`ACTIVITIES`."""
        started = self._clock()
        try:
            yield
        finally:
            self.spent[activity] += self._clock() - started

    def events(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Train until the budget is used, or until ``stop`` says so after an update.

        Either way a checkpoint is due at the end. Raises what the learner's update raises, such as
        ``FloatingPointError`` for numbers that are not finite, and ``ValueError`` for an update
        that returns no numbers or does not count; no checkpoint is due then.
        """
        without = 0  # updates in a row
        self._running_since = saved_at = self._clock()
        try:
            position = self._agreed()
            while position.progress < 1.0 and not self.stopped:
                started = self._clock()
                self.activity = f"update {position.updates + 1}"
                updates, merges = self.learner.updates, self.learner.merges_made
                with self.spending("updates"):
                    scalars = self._numbers(self.learner.update(self._agreed().progress))
                made = self.learner.merges_made - merges
                self.learner.merges_made = merges + int(self.ranks.sums(made)[0])
                self._update_seconds += self._clock() - started
                self._add(scalars)
                without = without + 1 if self.learner.merges_made == merges else 0
                self._check_counters(updates, without)
                position = self._agreed()
                yield Updated(position, scalars)
                log, evaluation = self._due(position)
                if log:
                    yield Logged(position, self._row(evaluation), evaluation)
                old = self._clock() - saved_at > CHECKPOINT_SECONDS
                stops, old = map(bool, self.ranks.sums(stop(), old and self.ranks.index == 0))
                self.stopped = stops
                if evaluation is not None or old or self.stopped:
                    yield CheckpointDue(self.position)
                    saved_at = self._clock()
        finally:
            self._seconds_before = self.position.seconds
            self._running_since = None

    def state(self) -> dict[str, Any]:
        """State of the loop alone; the learner has its own."""
        return {
            "seconds": self.position.seconds,
            "first_merge": self._first_merge,
            "logged": self._logged,
            "evaluated": self._evaluated,
            "sums": dict(self._sums),
            "counts": dict(self._counts),
            "update_seconds": self._update_seconds,
            "merges_at_log": self._merges_at_log,
            "spent": dict(self.spent),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` gave; the learner is restored beside it.

        Raises ``ValueError`` for counts that no loop reaches: under NaN seconds every budget would
        be used.
        """
        for name in ("seconds", "first_merge", "logged", "evaluated", "merges_at_log"):
            if not 0 <= state[name] < math.inf:
                raise ValueError(f"{name} is {state[name]}; expected a number of at least 0")
        self._seconds_before = state["seconds"]
        self._first_merge = state["first_merge"]
        self._logged, self._evaluated = state["logged"], state["evaluated"]
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])
        self._update_seconds = state["update_seconds"]
        self._merges_at_log = state["merges_at_log"]
        for activity, seconds in state.get("spent", {}).items():  # older checkpoints have none
            self.spent[activity] += seconds

    def _due(self, position: Position) -> tuple[bool, int | None]:
        """True <--> a log point was passed; beside it the number of the evaluation due, or None."""
        logged = math.floor(position.progress * LOG_POINTS + ROUNDING)
        evaluated = math.floor(position.progress * EVALUATIONS + ROUNDING)
        log, evaluate = logged > self._logged, evaluated > self._evaluated
        self._logged, self._evaluated = logged, evaluated
        return log or evaluate, evaluated if evaluate else None

    def _numbers(self, scalars: Any) -> dict[str, float]:
        try:
            return {tag: float(value) for tag, value in scalars.items()}
        except (AttributeError, TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"{type(self.learner).__name__}.update returned {scalars!r}; expected a dict of "
                "numbers by their tags, such as {'train/nmse': 0.5}"
            ) from None

    def _check_counters(self, updates: int, without: int) -> None:
        """Raise ``ValueError`` where the last update was not counted, or where merges never are."""
        name = f"{type(self.learner).__name__}.update"
        if self.learner.updates <= updates:
            raise ValueError(
                f"{name} left self.updates at {updates}; expected 1 more after every update "
                "(finish_update counts it)"
            )
        if self.budget.merges is not None and without >= NO_MERGES:
            raise ValueError(
                f"{name} left self.merges_made as it was {NO_MERGES} times in a row; expected more "
                "merges, since the budget is one of merges (finish_update counts them)"
            )

    def _add(self, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            if math.isfinite(value):  # a skipped update has none, and says so in a count of its own
                self._sums[name] = self._sums.get(name, 0.0) + value
                self._counts[name] = self._counts.get(name, 0) + 1

    def _row(self, evaluation: int | None) -> dict[str, float | None]:
        sums, counts = self._sums, self._counts
        for other in self.ranks.records({"sums": sums, "counts": counts})[1:]:
            sums, counts = (
                {name: own.get(name, 0) + more.get(name, 0) for name in {**own, **more}}
                for own, more in ((sums, other["sums"]), (counts, other["counts"]))
            )
        row: dict[str, float | None] = {name: total / counts[name] for name, total in sums.items()}
        merges = self.learner.merges_made
        if self._update_seconds > 0:
            made = merges - self._merges_at_log
            row["time/merges_per_second"] = made / self._update_seconds
        if evaluation is not None and self._validate is not None:
            self.activity = "validation"
            with self.spending("evaluation"):
                row |= self._validate()
        self._sums, self._counts = {}, {}
        self._update_seconds, self._merges_at_log = 0.0, merges
        return row
