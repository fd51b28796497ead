"""Statistics that a person can work out, and bootstrap intervals that repeat."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, trim_mean

from agents.comparison.statistics import (
    by_task,
    estimate,
    first_reached,
    iqm,
    median,
    paired_ratio,
    performance_profile,
    probability_of_improvement,
    ratio_to_reference,
    step_curve,
)

NOTHING = np.nan


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def test_iqm_is_the_mean_of_the_middle_half():
    """Of 1..6, 100, -50 sorted, two go at each end: (2 + 3 + 4 + 5) / 4."""
    scores = np.array([[1.0, 5], [2, 6], [3, 100], [4, -50]])
    assert iqm(by_task(scores)).tolist() == [3.5]
    assert trim_mean(scores, 0.25, axis=None) == 3.5
    assert median(by_task(scores)).tolist() == [3.5]


def test_missing_runs_do_not_count():
    scores = np.array([[1.0, 7.0], [2.0, NOTHING], [3.0, NOTHING]])
    assert [task.tolist() for task in by_task(scores)] == [[[1, 2, 3]], [[7]]]
    assert iqm(by_task(scores)).tolist() == [2.5]  # of 1, 2, 3, 7 the middle two
    with pytest.raises(ValueError, match="no run on task 1"):
        by_task(np.array([[1.0, NOTHING]]))


def test_a_diverged_run_is_infinitely_bad_and_nothing_else():
    scores = column(1, 2, 3, np.inf)
    assert iqm(by_task(scores)).tolist() == [2.5]
    interval = estimate(iqm, scores)
    assert interval.value == 2.5
    assert interval.low >= 1
    assert interval.high == np.inf


@pytest.mark.parametrize(
    ("first", "second", "probability"),
    [
        ((1, 2), (3, 4), 1.0),
        ((3, 4), (1, 2), 0.0),
        ((1, 3), (2, 4), 0.75),  # 1 < 2, 1 < 4, 3 < 4 of four pairs
        ((1, 2), (2, 3), 0.875),  # three smaller and a tie
        ((5,), (5, 5), 0.5),
    ],
)
def test_probability_of_improvement_counts_pairs(first, second, probability):
    draws = by_task(column(*first)), by_task(column(*second))
    assert probability_of_improvement(*draws).tolist() == [probability]


def test_probability_of_improvement_is_averaged_over_tasks():
    """Sure on a task with one pair, a half on a task with four: tasks weigh the same."""
    first = np.array([[1.0, 1.0], [NOTHING, 4.0]])
    second = np.array([[2.0, 2.0], [NOTHING, 3.0]])
    draws = by_task(first), by_task(second)
    assert probability_of_improvement(*draws).tolist() == [0.75]


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
)
def test_probability_of_improvement_is_mann_whitneys_u(first, second):
    found = probability_of_improvement(by_task(column(*first)), by_task(column(*second)))[0]
    # scipy counts the pairs in which the first is larger.
    u = mannwhitneyu(second, first).statistic
    assert found == pytest.approx(u / (len(first) * len(second)))


def test_paired_ratios_have_the_interval_of_students_t():
    """Ratios of 1/2 and 1/8 are -1 and -3 in powers of two: mean -2, standard error 1, and t of one
    degree of freedom is 12.7062. Of 1, 2, 4: mean 1, standard error 1 / sqrt(3), and 4.30265."""
    found = paired_ratio(np.array([1.0, 1.0]), np.array([2.0, 8.0]))
    assert found.value == pytest.approx(0.25)
    assert np.log2([found.low, found.high]) == pytest.approx([-14.7062, 10.7062], abs=1e-4)
    found = paired_ratio(np.array([3.0, 2.0, 20.0]), np.array([3.0, 1.0, 5.0]))
    assert found.value == pytest.approx(2)
    reach = 4.30265 / np.sqrt(3)
    assert np.log2([found.low, found.high]) == pytest.approx([1 - reach, 1 + reach], abs=1e-4)


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        ([3], [6], 0.5),  # one pair has no spread
        ([np.inf, 1], [1, 1], np.inf),
        ([1, 1], [np.inf, 1], 0.0),
        ([0, 1], [1, 1], 0.0),
        ([np.inf, 1], [1, np.inf], NOTHING),  # each diverged once
        ([np.inf], [np.inf], NOTHING),
        ([], [], NOTHING),
    ],
)
def test_paired_ratios_without_an_interval(first, second, value):
    found = paired_ratio(np.array(first, dtype=float), np.array(second, dtype=float))
    assert found.value == pytest.approx(value, nan_ok=True)
    assert np.isnan([found.low, found.high]).all()


def test_a_pair_of_which_both_diverged_says_nothing():
    with_it = paired_ratio(np.array([1.0, np.inf, 0.0, 1]), np.array([2.0, np.inf, 0.0, 8]))
    assert with_it == paired_ratio(np.array([1.0, 1]), np.array([2.0, 8]))


def test_profiles_count_runs_up_to_a_threshold():
    """Task one: 0, 1/2, 1, 1; task two: 1, 1, 1, 1 of its one run."""
    scores = np.array([[1.0, -5.0], [2.0, NOTHING]])
    profile = performance_profile(by_task(scores), np.array([0.0, 1.0, 2.0, 9.0]))
    assert profile.tolist() == [[0.5, 0.75, 1.0, 1.0]]


def test_intervals_repeat_with_the_seed_and_hold_the_estimate():
    scores = np.random.default_rng(5).normal(size=(5, 3))
    first, again = estimate(iqm, scores), estimate(iqm, scores)
    assert first == again
    assert first.low < first.value < first.high
    assert estimate(iqm, scores, seed=1).low != first.low
    narrow = estimate(iqm, scores, confidence=0.5)
    assert first.low < narrow.low <= narrow.high < first.high


def test_equal_runs_leave_no_doubt():
    interval = estimate(iqm, np.full((4, 2), 3.0))
    assert (interval.low, interval.value, interval.high) == (3.0, 3.0, 3.0)


def test_single_runs_have_no_interval():
    found = estimate(median, np.array([[1.0, 3.0]]))
    assert found.value == 2.0
    assert np.isnan([found.low, found.high]).all()
    assert not np.isnan(estimate(median, np.array([[1.0, 3.0], [1.0, np.nan]])).low)


def test_resampling_stays_within_a_task():
    """All runs at 0 on one task, at 100 on the other: every resample has both."""
    interval = estimate(median, np.array([[0.0, 100.0], [0.0, 100.0]]))
    assert (interval.low, interval.high) == (50.0, 50.0)


def test_a_bootstrap_of_two_runs_has_the_three_means_it_can_have():
    """Two runs, 0 and 1: the resampled IQM is 0, 1/2 or 1 with odds 1 : 2 : 1."""
    assert estimate(iqm, column(0, 1), confidence=0.9).low == 0.0
    middle = estimate(iqm, column(0, 1), confidence=0.4)  # between the 30 % and 70 % points
    assert (middle.low, middle.high) == (0.5, 0.5)


def test_errors_become_logarithms_of_ratios():
    scores = np.array([[0.1, 5.0], [0.001, 0.0]])
    ratios = ratio_to_reference(scores, np.array([0.01, 0.5]))
    assert ratios[:, 0] == pytest.approx([1.0, -1.0])  # ten times, a tenth: they cancel
    assert ratios[:, 1].tolist() == [1.0, -np.inf]


def test_curves_hold_their_last_value():
    curve = step_curve(np.array([1.0, 3.0]), np.array([9.0, 4.0]), np.array([0.0, 1, 2, 3, 10]))
    assert np.isnan(curve[0])
    assert curve[1:].tolist() == [9.0, 9.0, 4.0, 4.0]


def test_when_a_target_is_first_reached():
    grid, values = np.array([10.0, 20, 30, 40]), np.array([np.nan, 5.0, 2.0, 3.0])
    assert first_reached(grid, values, 2.5) == 30.0
    assert first_reached(grid, values, 5.0) == 20.0
    assert first_reached(grid, values, 1.0) is None
