"""Comparing algorithms from few runs, after Agarwal et al. 2021, "Deep RL at the edge of the
statistical precipice".

Scores are a matrix of runs x tasks, NaN where there is no such run; a run that diverged scores
infinity. Smaller is better everywhere. A statistic is a function of *draws*: for each task
the scores of its runs, with a leading axis of resamples (one for the runs themselves), so that the
same function gives the estimate and its bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import t, trim_mean

Draws = Sequence[np.ndarray]
"""One array ``(S, runs)`` a task: ``S`` resamples of that task's runs."""

RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 0


class Estimate(NamedTuple):
    """An estimate with its interval; arrays where the statistic has several values."""

    value: Float[np.ndarray, "*values"]
    low: Float[np.ndarray, "*values"]
    high: Float[np.ndarray, "*values"]


def estimate(
    statistic: Callable[..., np.ndarray],
    *scores: Float[np.ndarray, "_ tasks"],
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> Estimate:
    """A statistic of one or several algorithms' scores, with a stratified bootstrap interval.

    Runs are resampled within each task, independently for each algorithm; the interval is between
    percentiles of the resampled statistic. The same seed gives the same interval. Single runs have
    none (NaN).

    Raises ``ValueError`` where an algorithm has no run on a task.
    """
    generator = np.random.default_rng(seed)
    observed = [by_task(matrix) for matrix in scores]
    value = statistic(*observed)[0]
    if all(task.shape[1] == 1 for tasks in observed for task in tasks):
        nothing = np.full_like(value, np.nan, dtype=float)
        return Estimate(np.asarray(value), nothing, nothing)
    drawn = [
        [generator.choice(task[0], (resamples, task.shape[1])) for task in tasks]
        for tasks in observed
    ]
    tail = (1 - confidence) / 2
    # Without interpolation: between two infinities there is nothing.
    low, high = np.quantile(statistic(*drawn), [tail, 1 - tail], axis=0, method="inverted_cdf")
    return Estimate(np.asarray(value), low, high)


def by_task(scores: Float[np.ndarray, "_ tasks"]) -> list[Float[np.ndarray, "1 _"]]:
    """The scores that exist, task by task; ``ValueError`` where a task has none."""
    tasks = [column[~np.isnan(column)][None] for column in scores.T]
    for number, task in enumerate(tasks):
        if task.size == 0:
            raise ValueError(f"there is no run on task {number}; expected at least one")
    return tasks


def iqm(draws: Draws) -> Float[np.ndarray, "S"]:
    """Interquartile mean over all runs of all tasks: the mean of the middle half."""
    return trim_mean(np.concatenate(draws, axis=1), 0.25, axis=1)


def median(draws: Draws) -> Float[np.ndarray, "S"]:
    """Median over all runs of all tasks."""
    return np.median(np.concatenate(draws, axis=1), axis=1)


def probability_of_improvement(first: Draws, second: Draws) -> Float[np.ndarray, "S"]:
    """Probability that a run of the first algorithm has a smaller score than one of the second.

    Mann and Whitney's U over the number of pairs, ties counting a half, averaged over tasks.
    """
    shares = []
    for mine, theirs in zip(first, second, strict=True):
        left, right = mine[:, :, None], theirs[:, None, :]
        shares.append(((left < right) + 0.5 * (left == right)).mean(axis=(1, 2)))
    return np.mean(shares, axis=0)


def paired_ratio(
    first: Float[np.ndarray, "pairs"],
    second: Float[np.ndarray, "pairs"],
    confidence: float = CONFIDENCE,
) -> Estimate:
    """The geometric mean of the ratios of paired errors, with the interval of Student's t for the
    mean of their logarithms; no interval (NaN) of a single pair.

    A pair of which both are infinite, or both 0, is left out; without any other all is NaN. Where
    one of a pair is infinite or 0, so is the mean, or NaN where such pairs contradict each other,
    and there is no interval.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log(first) - np.log(second)
    logarithms = logarithms[~np.isnan(logarithms)]
    count = len(logarithms)
    if not np.isfinite(logarithms).all():
        signs = set(np.sign(logarithms[np.isinf(logarithms)]))
        value = np.nan if len(signs) == 2 else np.exp(np.inf * signs.pop())
        return Estimate(np.array(value), np.array(np.nan), np.array(np.nan))
    mean = logarithms.mean() if count else np.nan
    reach = np.nan
    if count > 1:
        reach = t.ppf((1 + confidence) / 2, count - 1) * logarithms.std(ddof=1) / np.sqrt(count)
    return Estimate(*(np.exp(np.array(place)) for place in (mean, mean - reach, mean + reach)))


def paired_difference(
    first: Float[np.ndarray, "pairs"],
    second: Float[np.ndarray, "pairs"],
    confidence: float = CONFIDENCE,
) -> Estimate:
    """The mean of the differences of paired scores, ``first`` less ``second``, with the interval of
    Student's t; no interval (NaN) of a single pair."""
    differences = first - second
    mean, count, reach = differences.mean(), len(differences), np.nan
    if count > 1:
        reach = t.ppf((1 + confidence) / 2, count - 1) * differences.std(ddof=1) / np.sqrt(count)
    return Estimate(*(np.array(place) for place in (mean, mean - reach, mean + reach)))


def performance_profile(
    draws: Draws, thresholds: Float[np.ndarray, "K"]
) -> Float[np.ndarray, "S K"]:
    """The share of runs with a score of at most each threshold, averaged over tasks."""
    shares = [(task[:, :, None] <= thresholds).mean(axis=1) for task in draws]
    return np.mean(shares, axis=0)


def ratio_to_reference(
    scores: Float[np.ndarray, "_ tasks"], reference: Float[np.ndarray, "tasks"]
) -> Float[np.ndarray, "_ tasks"]:
    """Errors as log10 of their ratio to a reference error of the same task.

    Errors of different tasks lie orders of magnitude apart; as ratios they can be pooled, and as
    logarithms twice the error weighs as much as half of it. ``10 **`` a mean of these is a
    geometric mean of ratios. An error of 0 is minus infinity.
    """
    with np.errstate(divide="ignore"):
        return np.log10(scores / reference)


def step_curve(
    positions: Float[np.ndarray, "N"],
    values: Float[np.ndarray, "N"],
    grid: Float[np.ndarray, "G"],
) -> Float[np.ndarray, "G"]:
    """The last value at or before each place of the grid; NaN before the first.

    ``positions`` rise.
    """
    index = np.searchsorted(positions, grid, side="right") - 1
    return np.where(index >= 0, values[index.clip(min=0)], np.nan)


def first_reached(
    grid: Float[np.ndarray, "G"], values: Float[np.ndarray, "G"], target: float
) -> float | None:
    """The first place of the grid at which the value is at most ``target``; None if never."""
    reached = np.flatnonzero(values <= target)
    return float(grid[reached[0]]) if len(reached) else None
