"""The loop: what is due when, and that it continues as if it had never stopped."""

from __future__ import annotations

import math
from functools import partial

import pytest
from dummy_learner import MERGES_PER_UPDATE, DummyConfig, DummyLearner
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.config.budget import Budget
from agents.config.schedules import too_few_updates
from agents.runs.checkpoint import load_state, save_state
from agents.runs.loop import CheckpointDue, Logged, Training, Updated


@pytest.mark.parametrize(
    "given_budget",
    [
        {},
        {"seconds": 1.0, "merges": 1},
        {"seconds": 0.0},
        {"merges": -3},
        {"seconds": float("nan")},
    ],
)
def test_a_budget_is_one_positive_number(given_budget):
    with pytest.raises(ValueError, match="budget"):
        Budget(**given_budget)


def test_progress_is_the_share_used():
    assert Budget(seconds=8.0).progress(2.0, 999) == 0.25
    assert Budget(merges=8).progress(999.0, 2) == 0.25
    assert Budget(merges=8).progress(0.0, 9) == 1.0
    assert Budget(merges=8).progress(0.0, 7) < 1.0


def test_events_fall_on_fixed_shares_of_a_merges_budget():
    learner = DummyLearner()
    loop = Training(learner, Budget(merges=400 * MERGES_PER_UPDATE), lambda: {"validation/a": 1.0})
    events = list(loop.events())
    logged = [event for event in events if isinstance(event, Logged)]
    assert learner.updates == 400
    assert learner.seen_progress == [k / 400 for k in range(400)]
    assert [event.position.updates for event in logged] == list(range(2, 401, 2))
    evaluated = [event for event in logged if event.evaluation is not None]
    assert [event.position.updates for event in evaluated] == list(range(20, 401, 20))
    assert [event.evaluation for event in evaluated] == list(range(1, 21))
    for event in logged:
        assert ("validation/a" in event.scalars) == (event.evaluation is not None)
    saved = [event.position.updates for event in events if isinstance(event, CheckpointDue)]
    assert saved == list(range(20, 401, 20))
    assert isinstance(events[-1], CheckpointDue)


def test_scalars_between_log_points_are_averaged():
    # 400 updates, a row every second one: update u returns u, so row k says (2k-1 + 2k) / 2.
    loop = Training(DummyLearner(), Budget(merges=400 * MERGES_PER_UPDATE))
    rows = [event.scalars for event in loop.events() if isinstance(event, Logged)]
    assert [row["train/return"] for row in rows] == [2 * k - 0.5 for k in range(1, 201)]


def test_values_that_are_not_finite_do_not_spoil_the_average():
    returns = iter([1.0, float("nan"), 3.0, float("inf")] * 100)

    class Spoilt(DummyLearner):
        def update(self, progress):
            return super().update(progress) | {"train/return": next(returns)}

    loop = Training(Spoilt(), Budget(merges=400 * MERGES_PER_UPDATE))
    rows = [event.scalars for event in loop.events() if isinstance(event, Logged)]
    assert [row["train/return"] for row in rows] == [1.0, 3.0] * 100


def test_a_budget_larger_than_its_updates_logs_every_update_once():
    loop = Training(DummyLearner(), Budget(merges=3 * MERGES_PER_UPDATE))
    updates = [event.position.updates for event in loop.events() if isinstance(event, Logged)]
    assert updates == [1, 2, 3]


def test_seconds_are_counted_across_runs_of_the_loop():
    now = [0.0]
    learner = DummyLearner()
    loop = Training(learner, Budget(seconds=100.0), clock=lambda: now[0])
    for event in loop.events(stop=lambda: now[0] >= 30.0):
        if isinstance(event, Updated):
            now[0] += 10.0  # whatever takes the time: logging, say
    assert loop.position.seconds == 30.0
    now[0] = 1000.0  # time passes between the two processes
    again = Training(learner, Budget(seconds=100.0), clock=lambda: now[0])
    again.restore(loop.state())
    assert again.position.seconds == 30.0
    for event in again.events():
        if isinstance(event, Updated):
            now[0] += 10.0
    # The tenth update ends when 90 s are used; one more starts then.
    assert again.position.seconds == 110.0
    assert learner.updates == 11


@pytest.mark.parametrize("change", [{"seconds": math.nan}, {"seconds": -1}, {"logged": math.inf}])
def test_counts_that_no_loop_reaches_are_refused(change):
    loop = Training(DummyLearner(), Budget(seconds=1.0))
    with pytest.raises(ValueError, match="expected a number of at least 0"):
        loop.restore(loop.state() | change)


def test_seconds_are_told_by_what_they_were_for():
    """Every update takes three, every validation five, every picture seven."""
    now = [0.0]

    class Slow(DummyLearner):
        def update(self, progress):
            now[0] += 3.0
            return super().update(progress)

    def validate():
        now[0] += 5.0
        return {}

    budget, learner = Budget(merges=40 * MERGES_PER_UPDATE), Slow()
    loop = Training(learner, budget, validate, clock=lambda: now[0])
    for event in loop.events(stop=lambda: learner.updates == 10):
        if isinstance(event, Logged) and event.evaluation == 1:
            with loop.spending("pictures"):
                now[0] += 7.0
    expected = {"updates": 30.0, "evaluation": 25.0, "pictures": 7.0}
    assert loop.spent == {"start_up": 0.0, "checkpoints": 0.0, **expected}
    assert loop.position.seconds == 62.0
    again = Training(learner, budget, validate, clock=lambda: now[0])
    again.spent["start_up"] += 2.0
    again.restore(loop.state())
    assert len([event for event in again.events() if isinstance(event, Updated)]) == 30
    expected = {"updates": 120.0, "evaluation": 100.0, "pictures": 7.0, "start_up": 2.0}
    assert again.spent == {"checkpoints": 0.0, **expected}


@pytest.mark.parametrize(("updates", "says"), [(0, "only 0 updates"), (99, "only 99"), (100, None)])
def test_few_updates_are_told(updates, says):
    found = too_few_updates(updates)
    assert (found is None) == (says is None)
    assert says is None or (found.startswith(says) and "at least 100" in found)


def test_a_later_budget_counts_from_where_the_learner_is():
    learner = DummyLearner()
    learner.train(merges=5 * MERGES_PER_UPDATE)
    learner.train(merges=3 * MERGES_PER_UPDATE)
    assert learner.updates == 8
    assert learner.seen_progress[5:] == [0.0, 1 / 3, 2 / 3]


@settings(max_examples=8)
@given(stop_after=st.sets(st.integers(1, 250), max_size=4))
def test_stopped_anywhere_and_resumed_it_gives_the_same_rows(tmp_path_factory, stop_after):
    def validate_with(learner):
        return lambda: {"validation/value": learner.value}

    budget = Budget(merges=250 * MERGES_PER_UPDATE)
    whole = DummyLearner(seed=5)
    expected = _rows(Training(whole, budget, validate_with(whole)).events())

    path = tmp_path_factory.getbasetemp() / "training.safetensors"
    rows, state = [], None
    for stop in [*sorted(stop_after), None]:
        learner = DummyLearner(seed=5)  # a new process knows nothing
        loop = Training(learner, budget, validate_with(learner))
        if state is not None:
            learner.restore(state["learner"])
            loop.restore(state["loop"])
        rows += _rows(loop.events(partial(_has_made, learner, stop)))
        save_state(path, {"learner": learner.state(), "loop": loop.state()})
        state = load_state(path)
    assert rows == expected
    assert learner.value == whole.value


def _has_made(learner: DummyLearner, updates: int | None) -> bool:
    return updates is not None and learner.updates >= updates


def _rows(events) -> list:
    rows = []
    for event in events:
        if isinstance(event, Logged):
            scalars = {k: v for k, v in event.scalars.items() if not k.startswith("time/")}
            rows.append((event.position.merges, event.evaluation, scalars))
    return rows


def test_an_old_checkpoint_makes_a_new_one_due():
    now = [0.0]
    saved = []
    loop = Training(DummyLearner(), Budget(seconds=1e6), clock=lambda: now[0])
    for event in loop.events(lambda: now[0] > 200.0):
        if isinstance(event, Updated):
            now[0] += 25.0
        elif isinstance(event, CheckpointDue):
            saved.append(event.position.seconds)
    assert saved == [75.0, 150.0, 225.0]  # more than 60 s after the last, and when stopped


def test_a_failing_update_stops_the_loop_without_a_checkpoint():
    loop = Training(DummyLearner(config=DummyConfig(fail_at=7)), Budget(merges=100))
    events: list = []
    with pytest.raises(FloatingPointError):
        events.extend(loop.events())  # keeps those before the failure
    assert events[-1].position.updates == 7
