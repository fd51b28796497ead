"""Which demonstrator is selected: turns, means and ends by hand."""

from __future__ import annotations

import math

import pytest

from agents.fixed import fixed_rule
from agents.learners.imitation import CONTESTANTS, KNOWN, Selection, demonstrators_of
from agents.learners.reinforce import Reinforce


def run(selection: Selection, **errors: list[float]) -> None:
    for lap in zip(*errors.values(), strict=True):
        for name, error in zip(errors, lap, strict=True):
            selection.report(name, error, 0.0)


def test_every_known_demonstrator_exists_and_others_are_compared():
    for env_id, names in KNOWN.items():
        assert demonstrators_of(env_id) == names
        assert [fixed_rule(name).name for name in names] == list(names)
    assert demonstrators_of("HTM-v0") == CONTESTANTS


def test_an_id_is_known_by_its_full_name_too():
    for env_id in ("HTM-Trees-v0", "htm_env:HTM-Trees-v0"):
        assert list(Reinforce(env_id).demonstrators) == ["nearest_sorted"]


def test_demonstrators_take_turns_until_the_end():
    selection, order = Selection(("one", "two", "three"), end=0.5), []
    for _ in range(6):
        order.append(selection.next(0.49))
        selection.report(order[-1], {"one": 0.3, "two": 0.2, "three": 0.1}[order[-1]], 0.49)
    assert order == 2 * ["one", "two", "three"]
    assert selection.next(0.5) == selection.next(1.0) == "three"
    selection.report("two", 1e-9, 0.5)  # too late
    assert selection.best == "three"


def test_the_last_third_counts_by_its_geometric_mean():
    selection = Selection(("one", "two", "three"), end=1.0)
    # Means of the last two: 0.2, 0.1 and 0.14; of all, or of their sums, others would win.
    run(
        selection,
        one=[1.0, 1.0, 1e-5, 1e-5, 0.2, 0.2],
        two=[1.0, 1.0, 1.0, 1.0, 1.0, 0.01],
        three=[1e-9, 1e-9, 1e-9, 1e-9, 0.14, 0.14],
    )
    assert selection.best == "two"


@pytest.mark.parametrize(("better_by", "winner"), [(0.09, "first"), (0.11, "second")])
def test_the_first_is_selected_unless_another_is_a_tenth_better(better_by, winner):
    selection = Selection(("first", "second"), end=1.0)
    run(selection, first=[0.1, 0.1], second=[0.1, 0.1 * math.exp(-better_by)])
    assert selection.best == winner


def test_without_a_turn_none_is_selected_but_the_first():
    selection = Selection(("one", "two"), end=0.1)
    assert selection.next(0.2) == "one"
    selection.report("two", 7.0, 0.0)
    assert selection.next(0.2) == "two"


def test_one_demonstrator_is_selected_at_once():
    selection = Selection(("one", "one"), end=1.0)
    assert selection.names == ("one",) and selection.end == 0.0
    selection.report("one", math.nan, 0.0)
    assert selection.next(0.3) == selection.next(1.0) == "one"


@pytest.mark.parametrize("error", [0.0, 1e-9, 2.0])
def test_whatever_is_finite_beats_what_is_not(error):
    selection = Selection(("broken", "finite"), end=0.1)
    run(selection, broken=[math.inf], finite=[error])
    assert selection.best == "finite"


def test_equally_many_turns_count_of_all():
    """The autoencoder was better by the fourth turn, which only the first demonstrator had."""
    selection = Selection(("one", "two"), end=1.0)
    run(selection, one=[1.0, 0.5, 0.2], two=[1.0, 0.5, 0.1])
    selection.report("one", 0.01, 0.0)
    assert selection.best == "two"


def test_a_restored_selection_goes_on():
    selection, again = Selection(("one", "two"), 1.0), Selection(("one", "two"), 1.0)
    selection.report(selection.next(0.0), 0.5, 0.0)
    again.restore(selection.state())
    selection.report("two", 0.1, 0.0)
    assert again.next(0.0) == "two"
    assert (selection.best, again.best) == ("two", "one")


def test_there_may_be_no_demonstrator():
    selection = Selection((), 0.1)
    selection.restore(selection.state())
    for progress in (0.0, 0.5):
        with pytest.raises(ValueError, match="no demonstrator"):
            selection.next(progress)


@pytest.mark.parametrize(
    ("names", "end", "says"),
    [((), 1.5, "1.5"), (("one",), math.nan, "nan")],
)
def test_an_end_outside_the_budget_is_refused(names, end, says):
    with pytest.raises(ValueError, match=says):
        Selection(names, end)
