"""Which demonstrator wins: turns, means and ends by hand."""

from __future__ import annotations

import math

import pytest

from agents.demonstrations.race import Race


def test_the_entrants_take_turns_and_then_the_best_goes_on():
    race = Race(("one", "two", "three"), end=0.5)
    errors = {"one": [1.0, 0.1], "two": [0.5, 0.2], "three": [0.2, 0.1]}
    order = []
    for lap in range(2):
        for _ in range(3):
            name = race.next(0.4)
            order.append(name)
            race.report(name, errors[name][lap])
    assert order == 2 * ["one", "two", "three"]
    # Geometric means: 0.316, 0.316 and 0.141.
    assert race.next(0.5) == race.leader == "three"
    # A hundredth once counts as much as a tenth twice, and the winner may lose its lead.
    for _ in range(2):
        race.report("two", 0.01)
    assert race.next(1.0) == "two"


def test_whoever_had_no_turn_cannot_win():
    race = Race(("one", "two"), end=0.1)
    assert race.next(0.2) == "one"
    race.report("two", 7.0)
    assert race.next(0.2) == "two"


def test_one_entrant_always_demonstrates():
    race = Race(("one", "one"), end=1.0)
    assert race.entrants == ("one",)
    race.report("one", math.nan)
    assert race.next(0.3) == race.next(1.0) == "one"


def test_errors_that_no_logarithm_has_are_survived():
    race = Race(("exact", "broken"), end=0.0)
    race.report("exact", 0.0)
    race.report("broken", math.inf)
    assert race.leader == "exact"


def test_a_restored_race_goes_on():
    race, again = Race(("one", "two"), 1.0), Race(("one", "two"), 1.0)
    race.report(race.next(0.0), 0.5)
    again.restore(race.state())
    race.report("two", 0.1)
    assert again.next(0.0) == "two"
    assert (race.leader, again.leader) == ("two", "one")


@pytest.mark.parametrize(
    ("entrants", "end", "says"),
    [((), 0.1, "no demonstrator"), (("one",), 1.5, "1.5"), (("one",), math.nan, "nan")],
)
def test_what_cannot_be_run_is_refused(entrants, end, says):
    with pytest.raises(ValueError, match=says):
        Race(entrants, end)
