"""The report where runs diverged: their errors are infinite, and nothing can be divided by them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from comparisons import DIGITS, TREES, line_of, rows

from agents.comparison.plots import matrix_figure
from agents.comparison.report import write_report
from agents.comparison.table import Comparison

POOLED = "## All problems together"
IMPROVEMENT = "Probability of improvement"


@pytest.fixture(autouse=True)
def no_division_that_is_none():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def test_a_reference_that_diverged_is_none(tmp_path):
    """``nearest`` diverged on Trees, so ``structure`` is what others are divided by: 0.1 / 0.2."""
    table = [
        *rows(TREES, "nearest", 0, [0.8, None]),
        *rows(TREES, "structure", 0, [0.8, 0.2]),
        *rows(TREES, "reinforce", 0, [0.8, 0.1]),
    ]
    assert Comparison(table).reference == "structure"
    report = write_report(tmp_path, table).read_text()
    assert line_of(report, POOLED, "reinforce")[2] == "0.5"
    assert line_of(report, POOLED, "nearest")[2] == "inf"
    # Columns: reinforce, nearest, structure.
    assert line_of(report, IMPROVEMENT, "nearest")[1] == "0.00"


def test_where_most_diverged_the_finite_errors_are_the_reference(tmp_path):
    """Of three algorithms two diverged; the third's 0.1 and 0.4 have the median 0.25."""
    table = [
        *rows(TREES, "replay", 0, [0.8, None]),
        *rows(TREES, "replay", 1, [0.8, None]),
        *rows(TREES, "ppo", 0, [0.8, None]),
        *rows(TREES, "ppo", 1, [None, None]),
        *rows(TREES, "reinforce", 0, [0.8, 0.1]),
        *rows(TREES, "reinforce", 1, [0.8, 0.4]),
    ]
    comparison = Comparison(table)
    assert comparison.reference is None
    assert comparison.reference_error(TREES) == 0.25
    assert 10 ** comparison.ratios("reinforce", [TREES])[:, 0] == pytest.approx([0.4, 1.6])
    assert comparison.ratios("ppo", [TREES])[:, 0].tolist() == [np.inf, np.inf]
    report = write_report(tmp_path, table).read_text()
    assert "all runs that did not diverge" in report
    # Two that always diverge are equally good: ties count a half. Columns: reinforce, replay, ppo.
    improvement = line_of(report, IMPROVEMENT, "ppo")
    assert improvement[1:3] == ["0.00 (0.00 to 0.00)", "0.50 (0.50 to 0.50)"]


def test_a_problem_without_a_finite_error_is_left_out_and_said(tmp_path):
    table = [
        *rows(DIGITS, "nearest", 0, [0.5, None]),
        *rows(DIGITS, "reinforce", 0, [0.5, None]),
        *rows(DIGITS, "flat", 0, [0.5, None]),
        *rows(TREES, "nearest", 0, [0.5, 0.2]),
        *rows(TREES, "reinforce", 0, [0.5, 0.1]),
    ]
    assert Comparison(table).reference == "nearest"
    report = write_report(tmp_path, table).read_text()
    assert line_of(report, POOLED, "reinforce")[1:3] == ["1 of 1", "0.5"]
    assert "No run has a finite error on Digits" in report
    # By the raw errors: sure on Trees, a tie on Digits.
    assert line_of(report, IMPROVEMENT, "reinforce")[2] == "0.75"


def test_where_all_diverged_there_is_still_a_report(tmp_path):
    table = [*rows(TREES, "nearest", 0, [None, None]), *rows(TREES, "replay", 0, [0.5, None])]
    report = write_report(tmp_path, table).read_text()
    assert "No run has a finite error to divide by." in report
    assert line_of(report, IMPROVEMENT, "replay")[2] == "0.50"


def test_a_matrix_without_a_finite_number_is_empty():
    figure = matrix_figure(np.full((1, 1), np.inf), ["replay"], ("", ""), logarithmic=True)
    assert not list(figure.axes[0].texts)
