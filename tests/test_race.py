"""Which demonstrator wins: turns, means and ends by hand."""

from __future__ import annotations

import math

import pytest

from agents.demonstrations.race import ENTRANTS, KNOWN, Race, demonstrators_of
from agents.fixed import fixed_policy
from agents.learners.reinforce import Reinforce


def run(race: Race, **errors: list[float]) -> None:
    for lap in zip(*errors.values(), strict=True):
        for name, error in zip(errors, lap, strict=True):
            race.report(name, error, 0.0)


def test_every_known_demonstrator_exists_and_others_race():
    for env_id, names in KNOWN.items():
        assert demonstrators_of(env_id) == names
        assert [fixed_policy(name).name for name in names] == list(names)
    assert demonstrators_of("HTM-v0") == ENTRANTS


def test_an_id_is_known_by_its_full_name_too():
    for env_id in ("HTM-Trees-v0", "htm_env:HTM-Trees-v0"):
        assert list(Reinforce(env_id).demonstrators) == ["nearest_sorted"]


def test_the_entrants_take_turns_until_the_end():
    race, order = Race(("one", "two", "three"), end=0.5), []
    for _ in range(6):
        order.append(race.next(0.49))
        race.report(order[-1], {"one": 0.3, "two": 0.2, "three": 0.1}[order[-1]], 0.49)
    assert order == 2 * ["one", "two", "three"]
    assert race.next(0.5) == race.next(1.0) == "three"
    race.report("two", 1e-9, 0.5)  # too late
    assert race.leader == "three"


def test_the_last_third_counts_by_its_geometric_mean():
    race = Race(("one", "two", "three"), end=1.0)
    # Means of the last two: 0.2, 0.1 and 0.14; of all, or of their sums, others would win.
    run(
        race,
        one=[1.0, 1.0, 1e-5, 1e-5, 0.2, 0.2],
        two=[1.0, 1.0, 1.0, 1.0, 1.0, 0.01],
        three=[1e-9, 1e-9, 1e-9, 1e-9, 0.14, 0.14],
    )
    assert race.leader == "two"


@pytest.mark.parametrize(("better_by", "winner"), [(0.09, "first"), (0.11, "second")])
def test_the_first_wins_unless_another_is_a_tenth_better(better_by, winner):
    race = Race(("first", "second"), end=1.0)
    run(race, first=[0.1, 0.1], second=[0.1, 0.1 * math.exp(-better_by)])
    assert race.leader == winner


def test_whoever_had_no_turn_cannot_win():
    race = Race(("one", "two"), end=0.1)
    assert race.next(0.2) == "one"
    race.report("two", 7.0, 0.0)
    assert race.next(0.2) == "two"


def test_one_entrant_always_demonstrates_and_has_won_at_once():
    race = Race(("one", "one"), end=1.0)
    assert race.entrants == ("one",) and race.end == 0.0
    race.report("one", math.nan, 0.0)
    assert race.next(0.3) == race.next(1.0) == "one"


@pytest.mark.parametrize("error", [0.0, 1e-9, 2.0])
def test_whatever_is_finite_beats_what_is_not(error):
    race = Race(("broken", "finite"), end=0.1)
    run(race, broken=[math.inf], finite=[error])
    assert race.leader == "finite"


def test_equally_many_turns_count_of_everybody():
    """The autoencoder was better by the fourth turn, which only the first entrant had."""
    race = Race(("one", "two"), end=1.0)
    run(race, one=[1.0, 0.5, 0.2], two=[1.0, 0.5, 0.1])
    race.report("one", 0.01, 0.0)
    assert race.leader == "two"


def test_a_restored_race_goes_on():
    race, again = Race(("one", "two"), 1.0), Race(("one", "two"), 1.0)
    race.report(race.next(0.0), 0.5, 0.0)
    again.restore(race.state())
    race.report("two", 0.1, 0.0)
    assert again.next(0.0) == "two"
    assert (race.leader, again.leader) == ("two", "one")


def test_nobody_may_enter_and_then_nobody_demonstrates():
    race = Race((), 0.1)
    race.restore(race.state())
    for progress in (0.0, 0.5):
        with pytest.raises(ValueError, match="no demonstrator"):
            race.next(progress)


@pytest.mark.parametrize(
    ("entrants", "end", "says"),
    [((), 1.5, "1.5"), (("one",), math.nan, "nan")],
)
def test_what_cannot_be_run_is_refused(entrants, end, says):
    with pytest.raises(ValueError, match=says):
        Race(entrants, end)
