"""The throughput benchmarks run in tiny settings, and their rows say what was asked for."""

from __future__ import annotations

import pytest

from benchmarks import against_reference

TREES7 = {"env": "HTM-Trees-v0", "geometry": {"heights": (3,)}, "trees": 4, "target": 5}


def at_once(measure, *arguments):
    """In place of a process of its own, which takes seconds to start."""
    return measure(*arguments)


@pytest.mark.slow
def test_ours_is_compared_with_the_plain_reference(monkeypatch):
    monkeypatch.setattr(against_reference, "own_process", at_once)
    rows = against_reference.rows_of(TREES7, seconds=0.0)
    assert [row["algo"] for row in rows] == ["plain reference", *against_reference.CONFIGS]
    assert [row["target"] for row in rows] == ["", 5, "", ""]
    for row in rows:
        assert (row["tokens"], row["trees a step"]) == (7, 4)
        assert row["times the reference"] * rows[0]["merges/s"] == pytest.approx(row["merges/s"])


@pytest.mark.parametrize("algo", against_reference.CONFIGS)
def test_an_update_of_ours_makes_as_many_merges_as_a_step_of_the_reference(algo):
    learner = against_reference.learner(TREES7, algo)
    learner.update(0.5)
    assert learner.merges_made == 4 * 6
