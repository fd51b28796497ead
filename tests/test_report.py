"""The report of made-up results, whose numbers a person can work out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from comparisons import DIGITS, TREES, line_of, rows

from agents.comparison.diagnoses import CrossPlayRow
from agents.comparison.markdown import cell, code, plain, span, table
from agents.comparison.plots import COLOURS, MARKS, styles
from agents.comparison.problems import task_name
from agents.comparison.report import cross_play_matrix, write_report
from agents.comparison.statistics import Estimate
from agents.comparison.table import Comparison

ROWS = [
    *rows(TREES, "nearest", 0, [0.8, 0.4, 0.4]),
    *rows(TREES, "nearest", 1, [0.8, 0.4, 0.6]),
    *rows(TREES, "reinforce", 0, [0.8, 0.4, 0.2, 0.1]),
    *rows(TREES, "reinforce", 1, [0.8, 0.6, 0.4, 0.2]),
    *rows(TREES, "structure", 0, [0.5, 0.25]),
    *rows(TREES, "flat", 0, [0.9, None]),
    *rows(DIGITS, "nearest", 0, [0.5, 0.02]),
    *rows(DIGITS, "reinforce", 0, [0.5, 0.01]),
]


@pytest.fixture
def comparison() -> Comparison:
    return Comparison(ROWS)


def test_learned_rows_come_first(comparison):
    assert comparison.algos == ["reinforce", "nearest", "structure", "flat"]
    assert comparison.algos_on(DIGITS) == ["reinforce", "nearest"]
    assert comparison.tasks == sorted([TREES, DIGITS])


def test_errors_are_pooled_as_ratios_to_the_reference(comparison):
    """``nearest`` was run everywhere: its medians are 0.5 and 0.02."""
    assert comparison.reference == "nearest"
    ratios = 10 ** comparison.ratios("reinforce", comparison.tasks)
    assert comparison.tasks == [DIGITS, TREES]
    assert ratios[:, 0] == pytest.approx([0.5, np.nan], nan_ok=True)
    assert ratios[:, 1] == pytest.approx([0.2, 0.4])


def test_without_a_reference_all_runs_are_one(comparison):
    some = [row for row in ROWS if row.algo in ("reinforce", "flat") and row.task == TREES]
    other = Comparison(some)
    assert other.reference is None
    assert other.reference_error(TREES) == pytest.approx(0.15)  # of 0.1 and 0.2; flat diverged


def test_a_run_that_is_not_finite_is_infinitely_bad(comparison):
    assert comparison.errors(TREES, "flat").tolist() == [np.inf]


def test_runs_of_different_budgets_are_not_pooled():
    short, long = (
        rows(TREES, "replay", 0, [0.5, 0.4]),
        rows(TREES, "replay", 1, [0.5, 0.1], "300 seconds"),
    )
    with pytest.raises(ValueError, match=r"budgets of 30 seconds and 300 seconds; run"):
        Comparison([*short, *long])
    labelled = rows(TREES, "replay:long", 1, [0.5, 0.1], "300 seconds")
    comparison = Comparison([*short, *labelled])
    assert comparison.algos == ["replay", "replay:long"]


def test_a_label_is_a_row_that_others_are_held_against(tmp_path):
    table = [
        *rows(TREES, "replay", 0, [0.5, 0.1]),
        *rows(TREES, "replay", 1, [0.5, 0.1]),
        *rows(TREES, "replay:control", 0, [0.5, 0.2]),
        *rows(TREES, "replay:control", 1, [0.5, 0.4]),
    ]
    text = write_report(tmp_path, table).read_text()
    assert "/ `replay:control`" in text
    # 0.1 over medians of 0.2, 0.3 or 0.4, as the resampled runs have it
    assert "| `replay` | 0.333 (0.25 to 0.5) |" in text


def test_a_curve_goes_as_far_as_all_of_its_runs():
    longer = [*ROWS, *rows(TREES, "reinforce", 2, [0.9, 0.3])]  # 100 merges
    curve = Comparison(longer).curve(TREES, "reinforce", "merges")
    assert (curve.grid[0], curve.grid[-1]) == (100, 100)
    assert curve.median.tolist() == [0.8] * len(curve.grid)
    curve = Comparison(ROWS).curve(TREES, "reinforce", "seconds")
    assert (curve.grid[0], curve.grid[-1]) == (10, 30)
    assert curve.median[-1] == pytest.approx(0.3)  # of 0.2 and 0.4
    assert curve.median[0] == 0.8


def test_unfinished_runs_are_said_and_not_counted():
    course = rows(TREES, "reinforce", 9, [0.8, 0.4, 0.2])[:-1]
    comparison = Comparison([*ROWS, *course])
    assert [(algo, seed) for _, algo, _, seed in comparison.unfinished] == [("reinforce", 9)]
    assert len(comparison.ends(TREES, "reinforce")) == 2


def test_the_report_says_what_the_rows_say(tmp_path):
    path = write_report(tmp_path, [*ROWS, *rows(TREES, "reinforce", 9, [0.8, 0.4])[:-1]])
    report = path.read_text()
    assert "Some runs made fewer than 100 updates" in report
    reinforce = line_of(report, "## Trees, 7 tokens, D=6", "reinforce")
    assert reinforce[1:3] == ["2", "0.15"]
    assert reinforce[3].startswith("0.15 (0.1 to 0.2)")
    assert reinforce[5:] == ["50%", "3", "300", "3", "30", "-", "-"]
    assert line_of(report, "## Trees, 7 tokens, D=6", "flat")[5:7] == ["-", "-"]
    assert line_of(report, "## Digits", "nearest")[5] == "-"  # no hierarchy to find
    # 0.15 / 0.25, and 0.15 / 0.5; two runs against one and two.
    ratios = line_of(report, "| / `structure`", "reinforce")
    assert ratios[1].startswith("0.6 (0.4 to 0.8)")
    assert ratios[2].startswith("0.3 (")
    # Geometric: the middle two of the ratios 0.5, 0.2, 0.4 are cut to ... none of three.
    pooled = line_of(report, "## All problems together", "reinforce")
    assert pooled[1] == "2 of 2"
    assert pooled[2].startswith(f"{(0.5 * 0.2 * 0.4) ** (1 / 3):.3g} (")
    assert line_of(report, "## All problems together", "structure")[1] == "1 of 2"
    improvement = line_of(report, "Probability of improvement", "reinforce")
    assert improvement[2].startswith("1.00 (")
    assert "reinforce seed 9 on Trees, 7 tokens" in report
    for name in ("errors", "merges", "seconds", "pooled", "profiles", "improvement"):
        assert f"(figures/{name}.png)" in report
        content = (tmp_path / "figures" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")


PAIRED = "The same seeds, pair by pair"


def test_the_same_seeds_are_compared_pair_by_pair(tmp_path):
    """Seed 0: 0.1 / 0.4, seed 1: 0.2 / 0.8, so 1/4 without a doubt; seed 2 has no partner."""
    made = [
        *rows(TREES, "nearest", 0, [0.8, 0.4]),
        *rows(TREES, "nearest", 1, [0.8, 0.8]),
        *rows(TREES, "reinforce", 0, [0.8, 0.1]),
        *rows(TREES, "reinforce", 1, [0.8, 0.2]),
        *rows(TREES, "reinforce", 2, [0.8, 0.7]),
        *rows(TREES, "structure", 0, [0.5, 0.25]),
    ]
    report = write_report(tmp_path, made).read_text()
    assert "| / `nearest` | / `reinforce` |" in report[report.index(PAIRED) :]
    assert line_of(report, PAIRED, "reinforce")[1:] == ["0.25 (0.25 to 0.25)", "-"]
    assert line_of(report, PAIRED, "nearest")[1:] == ["-", "4 (4 to 4)"]
    section = report[report.index(PAIRED) : report.index("## All problems")]
    assert "`structure`" not in section


def test_without_shared_seeds_there_are_no_pairs(tmp_path):
    made = [*rows(TREES, "nearest", 0, [0.8, 0.4]), *rows(TREES, "reinforce", 0, [0.8, 0.1])]
    assert PAIRED not in write_report(tmp_path, made).read_text()


def test_merges_until_the_first_learners_end(tmp_path):
    """On Trees ``reinforce`` ends with 0.3 after 300 merges; ``structure`` stays at 0.5."""
    report = write_report(tmp_path, ROWS).read_text()
    assert line_of(report, "Merges until", "reinforce")[2] == "300 (1.00)"
    assert line_of(report, "Merges until", "structure")[2] == "never"


def test_retrained_and_crossed_runs_get_their_sections(tmp_path):
    retrained = rows(TREES, "reinforce", 0, [0.3])
    crossed = [
        CrossPlayRow(*TREES[:4], algo, seed, other, number, error, "a", "b")
        for algo, seed, other, number, error in [
            ("reinforce", 0, "reinforce", 0, 0.1),
            ("reinforce", 0, "reinforce", 1, 0.8),
            ("reinforce", 1, "reinforce", 0, 0.6),
            ("reinforce", 1, "reinforce", 1, 0.2),
            ("reinforce", 0, "nearest", 0, 0.5),
            ("reinforce", 1, "nearest", 0, 0.4),
            ("nearest", 0, "nearest", 0, 0.3),
            ("nearest", 0, "reinforce", 0, None),
            ("nearest", 0, "reinforce", 1, 0.9),
        ]
    ]
    algos, matrix = cross_play_matrix(crossed, TREES)
    assert algos == ["reinforce", "nearest"]
    assert matrix[0].tolist() == pytest.approx([0.15, 0.45])  # own ones; both through the other
    assert matrix[1].tolist() == [np.inf, 0.3]
    report = write_report(tmp_path, ROWS, retrained, crossed).read_text()
    # Seed 0 alone was retrained: 0.1 of its own, 0.3 then.
    assert line_of(report, "## Retrained", "reinforce")[1:] == ["1", "0.1", "0.3", "3"]
    line = line_of(report, "## Cross-play", "reinforce")
    assert line[1:] == ["0.15", "0.45", "0.7"]  # the other seeds: 0.8 and 0.6
    assert (tmp_path / "figures" / "cross_play-trees7.png").exists()


def test_nothing_finished_is_no_report(tmp_path):
    with pytest.raises(ValueError, match="none of the 1 runs is finished"):
        write_report(tmp_path, rows(TREES, "chain", 0, [0.5, 0.4])[:-1])


def test_frozen_tasks_are_tasks_of_their_own():
    frozen = TREES._replace(mode="frozen")
    assert task_name(TREES).short == "trees7"
    assert task_name(frozen) == ("trees7-frozen", "Trees, 7 tokens, D=6, frozen autoencoder")


def test_no_two_rows_look_the_same():
    names = [f"algorithm {number}" for number in range(len(COLOURS) * len(MARKS))]
    looks = {json.dumps([look["color"], look["marker"]]) for look in styles(names).values()}
    assert len(looks) == len(names)


def test_numbers_in_tables():
    assert table([{"a": "x", "b": "1"}]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
    assert table([{"a|b": "`x|y`"}]).splitlines()[2] == "| `x\\|y` |"
    assert (code("a"), code("a`b``c")) == ("`a`", "``` a`b``c ```")
    assert plain('A {"heights": [3]}, D=8') == 'A {"heights": [3]}, D=8'
    assert plain("<b>*[x](y)`") == "\\<b>\\*[x\\](y)\\`"
    assert (cell(0.012345), cell(float("nan")), cell(0.5, share=True)) == ("0.0123", "-", "50%")
    estimate = Estimate(*(np.array(number) for number in (0.5, 0.25, float("inf"))))
    assert span(estimate) == "0.5 (0.25 to inf)"
    assert span(estimate._replace(low=np.array(np.nan))) == "0.5"
