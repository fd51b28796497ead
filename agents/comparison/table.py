"""The rows of a comparison by task and algorithm: ends, validation curves and ratios."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from agents.comparison.problems import data_title, task_name
from agents.comparison.results import ResultRow, Task
from agents.comparison.statistics import Estimate, ratio_to_reference, step_curve
from agents.fixed import FIXED_POLICIES
from agents.registry import ALGORITHMS, unlabelled

REFERENCES = ("nearest", "structure", "random")
"""Reference algorithms where problems are pooled: errors are divided by the first available's."""
GRID_POINTS = 200


class Curve(NamedTuple):
    """The validation error of an algorithm's runs along its training."""

    grid: Float[np.ndarray, "G"]
    """Merges or seconds."""
    runs: Float[np.ndarray, "runs G"]
    """The last ``nmse`` up to each place; NaN before the first."""

    @property
    def median(self) -> Float[np.ndarray, "G"]:
        return np.median(self.runs, axis=0)


class Measure(NamedTuple):
    """The score of a problem, made of errors, of which smaller ones are better."""

    name: str
    sign: int
    """Times an error, it is the score."""
    digits: int
    """Significant digits in a table."""

    def of(self, found: Estimate) -> Estimate:
        """An estimate of errors as one of scores."""
        value, *ends = (self.sign * number for number in found)
        return Estimate(value, *ends[:: self.sign])


ERROR, RETURN = Measure("nmse", 1, 3), Measure("return", -1, 5)


class Comparison:
    """Finished runs by task and algorithm.

    Args:
        rows: of one machine or several. Runs without an end are left out (see ``unfinished``).

    Raises ``ValueError`` where runs of one algorithm on one task had different budgets, encoders or
    options, as far as these are known: they are pooled, so each kind needs a label of its own.
    """

    def __init__(self, rows: Sequence[ResultRow]) -> None:
        self._ends: dict[tuple[Task, str], list[ResultRow]] = {}
        self._points: dict[tuple, list[ResultRow]] = {}
        for row in rows:
            if row.split == "test":
                self._ends.setdefault((row.task, row.algo), []).append(row)
            else:
                self._points.setdefault(row.run, []).append(row)
        for (task, algo), ends in self._ends.items():
            for column in ("budget", "encoder", "options"):
                kinds = sorted({getattr(row, column) for row in ends} - {""})
                if len(kinds) > 1:
                    raise ValueError(
                        f"{algo} on {task_name(task).title} has runs with {column.rstrip('s')}s of "
                        f"{' and '.join(kinds)}; run one kind under a label, such as "
                        f"{unlabelled(algo)}:other"
                    )
            ends.sort(key=lambda row: row.seed)
        self.tasks = sorted({task for task, _ in self._ends})
        """The tasks that have a finished run."""
        self.algos = sorted({algo for _, algo in self._ends}, key=_place)
        """Learned policies first, then fixed ones, each in the order of the command line."""
        finished = {row.run for ends in self._ends.values() for row in ends}
        self.unfinished = [run for run in self._points if run not in finished]
        """Runs that have a course and no end."""

    def ends(self, task: Task, algo: str) -> list[ResultRow]:
        """The test rows of an algorithm's runs on a task, by seed; none where it was not run."""
        return self._ends.get((task, algo), [])

    def measure(self, task: Task) -> Measure:
        """What the runs of a task are ranked by: the return where nothing is decoded."""
        ends = (row for algo in self.algos for row in self.ends(task, algo))
        return RETURN if any(row.return_ is not None for row in ends) else ERROR

    def errors(self, task: Task, algo: str) -> Float[np.ndarray, "runs"]:
        """Their ``nmse``, or minus their return; infinity where it was not finite."""
        return np.array([row.error for row in self.ends(task, algo)], dtype=float)

    def pairs(self, task: Task, algo: str, other: str) -> Float[np.ndarray, "2 seeds"]:
        """The errors of two algorithms on the seeds that both have."""
        names = (algo, other)
        first, second = ([row.seed for row in self.ends(task, name)] for name in names)
        shared = [np.isin(first, second), np.isin(second, first)]  # both are sorted by seed
        return np.stack(
            [self.errors(task, name)[mask] for name, mask in zip(names, shared, strict=True)]
        )

    def algos_on(self, task: Task) -> list[str]:
        """The algorithms that have a finished run on a task."""
        return [algo for algo in self.algos if self.ends(task, algo)]

    def tasks_of(self, algo: str) -> list[Task]:
        """The tasks on which an algorithm has a finished run."""
        return [task for task in self.tasks if self.ends(task, algo)]

    @property
    def widths(self) -> dict[str, list[Task]]:
        """Tasks that differ in the width of an embedding alone, narrow first, under a title."""
        groups: dict[str, list[Task]] = {}
        for task in self.tasks:
            if self.measure(task) is ERROR:
                groups.setdefault(data_title(task), []).append(task)
        several = {title: tasks for title, tasks in groups.items() if len(tasks) > 1}
        return {
            title: sorted(tasks, key=lambda task: task.embedding_dim)
            for title, tasks in several.items()
        }

    # ------------------------------------------------------------ all tasks together

    @property
    def reference(self) -> str | None:
        """The algorithm whose median error divides a task's; None: that of all finite ones.

        Its own median is finite and positive on every task where any error is.
        """
        for name in REFERENCES:
            if set(self.pooled) <= set(self.tasks_of(name)):
                medians = [float(np.median(self.errors(task, name))) for task in self.pooled]
                if _divisors(np.array(medians)).all():
                    return name
        return None

    @property
    def pooled(self) -> list[Task]:
        """The tasks with an error to divide by: a run that did not diverge, nor was perfect.

        None whose measure is a return, which has no zero that a ratio could be taken by.
        """
        return [
            task
            for task in self.tasks
            if self.measure(task) is ERROR and _divisors(self._all_errors(task)).any()
        ]

    def reference_error(self, task: Task) -> float:
        """The error that the others of the task are divided by; the task is one of ``pooled``."""
        if self.reference is not None:
            return float(np.median(self.errors(task, self.reference)))
        errors = self._all_errors(task)
        return float(np.median(errors[_divisors(errors)]))

    def scores(self, algo: str, tasks: Sequence[Task]) -> Float[np.ndarray, "runs tasks"]:
        """The errors as a matrix, NaN where there is no such run."""
        columns = [self.errors(task, algo) for task in tasks]
        scores = np.full((max(map(len, columns), default=0), len(tasks)), np.nan)
        for task, column in enumerate(columns):
            scores[: len(column), task] = column
        return scores

    def ratios(self, algo: str, tasks: Sequence[Task]) -> Float[np.ndarray, "runs tasks"]:
        """log10 of the scores over the reference's, infinity where a run diverged."""
        reference = np.array([self.reference_error(task) for task in tasks])
        return ratio_to_reference(self.scores(algo, tasks), reference)

    def _all_errors(self, task: Task) -> Float[np.ndarray, "runs"]:
        return np.concatenate([self.errors(task, algo) for algo in self.algos_on(task)])

    # ------------------------------------------------------------ along the training

    def curve(self, task: Task, algo: str, along: str) -> Curve | None:
        """Validation errors along ``merges`` or ``seconds``, as far as all of its runs went.

        None where no run was validated.
        """
        courses = []
        for end in self.ends(task, algo):
            points = self._points.get(end.run, [])
            if points:
                places = np.array([float(getattr(row, along)) for row in points])
                courses.append((places, np.array([row.error for row in points])))
        if not courses:
            return None
        start = min(places[0] for places, _ in courses)
        stop = min(places[-1] for places, _ in courses)
        grid = np.linspace(start, max(start, stop), GRID_POINTS)
        return Curve(grid, np.stack([step_curve(*course, grid) for course in courses]))


def is_fixed(algo: str) -> bool:
    """True <--> its merges are given, not learned."""
    return unlabelled(algo) in (*FIXED_POLICIES, "flat")


def _divisors(errors: Float[np.ndarray, "runs"]) -> Bool[np.ndarray, "runs"]:
    """True <--> the others can be divided by it."""
    return np.isfinite(errors) & (errors > 0)


def _place(algo: str) -> tuple[bool, int, str]:
    names, base = list(ALGORITHMS), unlabelled(algo)
    return is_fixed(algo), names.index(base) if base in names else len(names), algo
