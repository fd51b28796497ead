"""Every baseline by hand."""

from __future__ import annotations

import pytest
import torch
from episodes import generator

from agents.learners.baselines import (
    BASELINES,
    ExponentialAverage,
    GreedyRollout,
    LearnedValue,
    LeaveOneOut,
    MovingNormaliser,
    NoBaseline,
    Returns,
    make_baseline,
)


def returns(values, steps=None, trees: int = 1, state_values=None, greedy=None) -> Returns:
    """``values`` as lists; what a baseline must not ask for raises."""
    tensor = torch.tensor(values)

    def given(lists):
        def call():
            assert lists is not None
            return torch.tensor(lists)

        return call

    return Returns(
        tensor,
        torch.ones_like(tensor, dtype=torch.bool) if steps is None else torch.tensor(steps),
        trees,
        given(state_values),
        given(greedy),
    )


def test_no_baseline_gives_the_returns():
    assert NoBaseline().advantages(returns([[1.0, -2.0]])).tolist() == [[1.0, -2.0]]


def test_moving_normaliser_by_hand():
    baseline = MovingNormaliser(length=4)
    # 1, 3: mean 2, standard deviation sqrt(2); what stands in padding does not count.
    found = baseline.advantages(returns([[1.0, 3.0, 99.0]], [[True, True, False]]))
    assert found[0].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5, 0.0])
    # 1, 3, 5, 7: mean 4, variance (9 + 1 + 1 + 9) / 3.
    found = baseline.advantages(returns([[5.0, 7.0]]))
    assert found[0].tolist() == pytest.approx([1 / (20 / 3) ** 0.5, 3 / (20 / 3) ** 0.5])
    # The window holds four: 1 and 3 are gone, so 5, 7, 9, 11.
    found = baseline.advantages(returns([[9.0, 11.0]]))
    assert found[0].tolist() == pytest.approx([1 / (20 / 3) ** 0.5, 3 / (20 / 3) ** 0.5])
    assert baseline.state()["latest"].tolist() == [5.0, 7.0, 9.0, 11.0]


def test_moving_normaliser_starts_with_one_return():
    assert MovingNormaliser().advantages(returns([[3.0]])).tolist() == [[0.0]]
    assert MovingNormaliser().length == 10_000  # the published window


def test_exponential_average_by_hand():
    baseline = ExponentialAverage(rate=0.5)
    # The first average is the first batch's mean after each merge: 2 and 10.
    steps = [[True, True], [True, False]]
    found = baseline.advantages(returns([[1.0, 10.0], [3.0, 0.0]], steps))
    assert found.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    # Means 6 and 20: compared with 2 and 10, which then move half of the way to 4 and 15.
    found = baseline.advantages(returns([[6.0, 20.0]]))
    assert found.tolist() == [[4.0, 10.0]]
    assert baseline.state()["average"].tolist() == [4.0, 15.0]
    # A merge that no episode makes leaves its average alone: 4 moves to 6.
    found = baseline.advantages(returns([[8.0, 0.0]], [[True, False]]))
    assert found.tolist() == [[4.0, 0.0]]
    assert baseline.state()["average"].tolist() == [6.0, 15.0]


def test_exponential_average_of_a_merge_first_made_later():
    """As under a curriculum: its first mean is taken whole, not as a step away from 0."""
    baseline = ExponentialAverage(rate=0.5)
    first = baseline.advantages(returns([[1.0, 0.0]], [[True, False]]))
    assert first.tolist() == [[0.0, 0.0]]
    assert baseline.advantages(returns([[1.0, 8.0]])).tolist() == [[0.0, 0.0]]
    assert baseline.advantages(returns([[1.0, 10.0]])).tolist() == [[0.0, 2.0]]


@pytest.mark.parametrize("make", [MovingNormaliser, ExponentialAverage])
def test_one_diverged_episode_is_forgotten(make):
    """Its own update is not finite and so skipped; the ones after it must be."""
    baseline = make()
    baseline.advantages(returns([[1.0, 3.0]]))
    spoilt = baseline.advantages(returns([[float("nan"), 5.0]]))
    assert not spoilt[0, 0].isfinite()
    assert baseline.advantages(returns([[2.0, 2.0]])).isfinite().all()


def test_learned_value_and_greedy_rollout_by_hand():
    steps = [[True, True, False]]
    given = {"values": [[5.0, 4.0, 0.0]], "steps": steps}
    value = LearnedValue().advantages(returns(**given, state_values=[[2.0, 7.0, 3.0]]))
    assert value.tolist() == [[3.0, -3.0, 0.0]]
    greedy = GreedyRollout().advantages(returns(**given, greedy=[[6.0, 1.0, 3.0]]))
    assert greedy.tolist() == [[-1.0, 3.0, 0.0]]


def test_leave_one_out_by_hand():
    # Two samples of three trees: 1, 2, 6 against the others' 4, 3.5, 1.5.
    values = [[1.0], [2.0], [6.0], [0.0], [0.0], [3.0]]
    found = LeaveOneOut().advantages(returns(values, trees=3))
    assert found[:, 0].tolist() == [-3.0, -1.5, 4.5, -1.5, -1.5, 3.0]


@pytest.mark.parametrize("trees", [2, 3, 5])
def test_leave_one_out_sums_to_zero_over_the_trees_of_a_sample(trees):
    values = torch.randn(4 * trees, 6, generator=generator(trees))
    found = LeaveOneOut().advantages(returns(values.tolist(), trees=trees))
    sums = found.view(4, trees, 6).sum(1)
    torch.testing.assert_close(sums, torch.zeros(4, 6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["leave_one_out", "value", "greedy", "none"])
def test_what_is_subtracted_does_not_depend_on_the_own_return(name):
    """Which is what keeps the gradient unbiased: one more return is one more advantage."""
    shape = {"state_values": [[0.5, 0.5]] * 4, "greedy": [[0.1, 0.2]] * 4, "trees": 2}
    values = torch.randn(4, 2, generator=generator())
    before = make_baseline(name, 2).advantages(returns(values.tolist(), **shape))
    values[1, 0] += 3.0
    after = make_baseline(name, 2).advantages(returns(values.tolist(), **shape))
    assert float(after[1, 0] - before[1, 0]) == pytest.approx(3.0, rel=1e-5)


def test_only_the_learned_value_trains_the_value_head():
    assert [name for name, kind in BASELINES.items() if kind.learns_values] == ["value"]


@pytest.mark.parametrize("name", BASELINES)
def test_a_restored_baseline_continues_as_if_nothing_had_happened(name):
    shape = {"state_values": [[0.5, 0.5]] * 2, "greedy": [[0.1, 0.2]] * 2, "trees": 2}
    batches = torch.randn(3, 2, 2, generator=generator()).tolist()
    one, other = make_baseline(name, 2), make_baseline(name, 2)
    other.restore(one.state())  # before the first batch, too
    one.advantages(returns(batches[0], **shape))
    other.restore(one.state())
    for values in batches[1:]:
        here = one.advantages(returns(values, **shape))
        assert torch.equal(here, other.advantages(returns(values, **shape)))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"'mean'; choose from \['exponential', 'greedy'"):
        make_baseline("mean", 4)
    with pytest.raises(ValueError, match="1 trees a sample; expected at least 2"):
        make_baseline("leave_one_out", 1)
    with pytest.raises(ValueError, match="none has 0 trees a sample; expected at least 1"):
        make_baseline("none", 0)
