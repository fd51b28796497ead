"""Which demonstrator is selected: rounds, means and ends by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from episodes import random_batch

from agents.fixed import fixed_rule
from agents.learners.imitation import (
    DRAWN,
    LAPS,
    LARGEST_COMPARED,
    OFF,
    ORDERS,
    Halving,
    distinct,
    expected_errors,
    inexact,
)
from agents.learners.reinforce import Reinforce, ReinforceConfig
from agents.optim.autoencoder_trainer import AutoencoderConfig

SMALL = ReinforceConfig(
    autoencoder=AutoencoderConfig(hidden_dim=8), policy_hidden_dim=8, batch_size=4
)


def run(selection: Halving, **errors: list[float]) -> None:
    for lap in zip(*errors.values(), strict=True):
        selection.report(dict(zip(errors, lap, strict=True)))


def test_the_orders_need_nothing_but_tokens_and_draw_no_order():
    rules = [fixed_rule(name) for name in ORDERS]
    assert not any(rule.needs_hierarchy or rule.need for rule in rules)
    assert all(name.endswith(("_sorted", "_hilbert")) for name in ORDERS)


@pytest.mark.parametrize("env_id", ["HTM-Kanji-v0", "HTM-Digits-v0"])
def test_the_same_orders_take_part_on_all_data(env_id):
    learner = Reinforce(env_id, SMALL)
    assert learner.selection.names == ORDERS
    learner.update(0.0)
    assert set(learner.contestants) == set(ORDERS)


def test_of_orders_with_the_same_trees_the_first_takes_part():
    # Of these points the nearest by centroids are also the nearest by any pair of theirs.
    learner = Reinforce("HTM-Trees-v0", SMALL)
    learner.update(0.0)
    assert set(learner.contestants) == {name for name in ORDERS if "closest" not in name}


def test_orders_are_told_apart_by_their_trees_and_pairs():
    learner = Reinforce("HTM-Trees-v0", SMALL)

    def told_apart(*points: tuple[float, float]) -> tuple[str, ...]:
        tokens = learner.autoencoder.token_mean + learner.std * torch.tensor(points)
        batch = random_batch([len(points)])._replace(tokens=tokens[None])
        return distinct(learner.demonstrators, batch)

    # Two tokens have one tree; which comes first is another thing along a Hilbert curve.
    assert told_apart((-1.0, 1.0), (1.0, -1.0)) == ("balanced_sorted",)
    assert told_apart((-1.0, 1.0), (-0.5, -1.0)) == ("balanced_sorted", "balanced_hilbert")
    many = random_batch([LARGEST_COMPARED + 1])
    assert distinct(learner.demonstrators, many) == ORDERS  # nothing is planned


def test_what_an_order_follows_is_a_little_off_but_equal_coordinates_stay_equal():
    tokens = torch.tensor([[[0.0, 1.0], [0.0, 3.0], [2.0, 3.0], [5.0, 1.0], [0.0, 0.0]]])
    batch = random_batch([4] * 500, slots=5)._replace(tokens=tokens.expand(500, -1, -1))
    std = torch.tensor([1.0, 10.0])
    followed = inexact(batch, std, torch.Generator().manual_seed(0)).tokens
    assert (followed[:, 0, 0] == followed[:, 1, 0]).all()
    assert (followed[:, 0, 1] == followed[:, 3, 1]).all()
    assert (followed[:, 1, 1] == followed[:, 2, 1]).all()
    assert (followed[:, 2, 0] != followed[:, 0, 0]).all() and (followed[:, 4] == 0).all()
    off = (followed - tokens)[:, :4]
    assert (off != 0).all()
    torch.testing.assert_close(off[:, 0].std(0), OFF * std, rtol=0.15, atol=0.0)


def test_an_order_learns_its_trees_of_what_it_follows_from_what_is_there():
    learner = Reinforce("HTM-Crosses-v0", replace(SMALL, demonstrations=("nearest_sorted", "even")))
    contestant = learner.contestants["nearest_sorted"]
    batch = learner.sample(8)
    other = batch._replace(tokens=batch.tokens.flip(1) * batch.present[..., None])
    merges, _ = contestant.learn(batch, other, torch.Generator().manual_seed(0), 0.0)
    expected = contestant.planner.plan(other, torch.Generator().manual_seed(0))
    assert torch.equal(merges, expected)
    assert not torch.equal(merges, contestant.planner.plan(batch, torch.Generator()))


def test_conventions_are_drawn_from_the_learners_seed():
    config = replace(SMALL, demonstrations=("conventions",))
    first, second = (Reinforce("HTM-Crosses-v0", config, seed=seed) for seed in (0, 1))
    assert first.selection.names == tuple(f"convention_{number}" for number in range(DRAWN))
    assert not set(first.selection.names) & set(second.selection.names)
    first.update(0.0)
    assert len(first.contestants) == DRAWN


def test_rewards_do_not_inherit_the_small_gradients_of_cloning():
    config = replace(SMALL, demonstrations=("even_sorted",), demonstration_share=((1.0, 1.0),))
    learner = Reinforce("HTM-Crosses-v0", config)
    learner.update(0.0)
    cloning = learner.cloning.optimizer
    assert cloning.scheduled.updates == 1 and learner.optimizer.scheduled.updates == 0
    twin = Reinforce("HTM-Crosses-v0", config, seed=3)
    twin.restore(learner.state())
    assert learner.update(0.1) == twin.update(0.1)
    assert twin.cloning.optimizer.scheduled.updates == 2


def test_half_is_left_out_at_the_end_of_each_round():
    # Nine, four and two take part: 9, 4 and 2 fifteenths of the time.
    selection = Halving(tuple("abcdefghi"), end=0.3)
    run(selection, **{name: [1.0 - 0.01 * place] for place, name in enumerate("abcdefghi")})
    selection.advance(0.179)
    assert len(selection.remaining) == 9
    selection.advance(0.181)
    assert selection.remaining == ["i", "h", "g", "f"]
    run(selection, i=[0.4], h=[0.3], g=[0.2], f=[0.1])
    selection.advance(0.261)
    assert selection.remaining == ["f", "g"]
    run(selection, f=[0.3], g=[0.1])
    selection.advance(0.3)
    assert selection.remaining == ["g"] and selection.best == "g" and not selection.open


def test_rounds_end_after_their_laps_however_much_of_the_budget_is_left():
    selection = Halving(tuple("abcdefghi"), end=0.5)
    run(selection, **{name: [1.0 + place] * (LAPS - 1) for place, name in enumerate("abcdefghi")})
    selection.advance(0.0)
    assert len(selection.remaining) == 9
    run(selection, **{name: [1.0 + place] for place, name in enumerate("abcdefghi")})
    selection.advance(0.0)
    assert selection.remaining == ["a", "b", "c", "d"]
    run(selection, **{name: [1.0] * (LAPS - 1) for name in "abcd"})
    selection.advance(0.0)
    assert len(selection.remaining) == 4
    run(selection, a=[1.0], b=[2.0], c=[3.0], d=[4.0])
    selection.advance(0.0)
    assert selection.remaining == ["a", "b"]


def test_of_few_laps_the_second_half_counts_by_its_geometric_mean():
    selection = Halving(("one", "two", "three"), end=1.0)
    # Means of the last two: 0.2, 0.1 and 0.14; of all, or of their sums, others would win.
    run(
        selection,
        one=[1e-5, 1e-5, 0.2, 0.2],
        two=[1.0, 1.0, 1.0, 0.01],
        three=[1e-9, 1e-9, 0.14, 0.14],
    )
    selection.advance(1.0)
    assert selection.best == "two"


def test_of_many_laps_it_counts_where_the_errors_lead():
    laps = range(1, 41)
    steep, flat = ([scale * lap**-power for lap in laps] for scale, power in ((50, 2), (0.5, 0.5)))
    logarithms = [[math.log(one), math.log(other)] for one, other in zip(steep, flat, strict=True)]
    expected = [math.log(50 * 80**-2), math.log(0.5 * 80**-0.5)]
    assert expected_errors(logarithms) == pytest.approx(expected)
    assert expected_errors(logarithms[:20]) == pytest.approx(
        [math.log(50 * 40**-2), math.log(0.5 * 40**-0.5)]
    )


def test_what_remains_keeps_its_laps_of_earlier_rounds():
    selection = Halving(("one", "two", "three", "four"), end=1.0)
    run(selection, one=[0.4], two=[0.1], three=[0.3], four=[0.2])
    selection.advance(0.7)
    assert selection.remaining == ["two", "four"]
    run(selection, two=[0.5, 0.3], four=[0.1, 0.35])  # the last two of three: 0.387 and 0.187
    selection.advance(1.0)
    assert selection.best == "four"


def test_without_a_lap_the_first_is_selected():
    selection = Halving(("one", "two"), end=0.1)
    selection.advance(0.2)
    assert selection.best == "one"


def test_one_demonstrator_is_selected_at_once():
    selection = Halving(("one", "one"), end=1.0)
    assert selection.names == ("one",) and not selection.open
    assert selection.best == "one"


@pytest.mark.parametrize("laps", [1, 40])
@pytest.mark.parametrize("error", [0.0, 1e-9, 2.0])
@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_whatever_is_finite_beats_what_is_not(error, broken, laps):
    selection = Halving(("broken", "finite"), end=0.1)
    errors = [1e-9] * laps
    errors[laps // 2] = broken
    run(selection, broken=errors, finite=[error] * laps)
    selection.advance(0.1)
    assert selection.best == "finite"


def test_a_restored_selection_goes_on():
    selection, again = Halving(("one", "two"), 1.0), Halving(("one", "two"), 1.0)
    run(selection, one=[0.5], two=[0.1])
    again.restore(selection.state())
    again.advance(1.0)
    assert again.best == "two"


def test_a_selection_that_ended_is_restored_whatever_took_part_in_it():
    selection, again = (Halving(tuple("abcdefghi"), end=0.1) for _ in range(2))
    selection.begin(tuple("abcdef"))
    run(selection, **{name: [1.0 + place] for place, name in enumerate("abcdef")})
    selection.advance(0.1)
    assert selection.best == "a" and selection.state()["laps"] == []
    again.restore(selection.state())
    assert again.best == "a" and not again.open and again.state() == selection.state()
    earlier = selection.state() | {"ended": 3}  # of nine names, of which none was named
    del earlier["names"]
    again.restore(earlier)
    assert again.best == "a"
    with pytest.raises(ValueError, match="names of the selection"):
        again.restore(selection.state() | {"names": ["a", "z"]})


def test_there_may_be_no_demonstrator():
    selection = Halving((), 0.1)
    selection.restore(selection.state())
    selection.advance(0.7)
    assert not selection.open
    with pytest.raises(ValueError, match="no demonstrator"):
        assert selection.best


@pytest.mark.parametrize(("names", "end", "says"), [((), 1.5, "1.5"), (("one",), math.nan, "nan")])
def test_an_end_outside_the_budget_is_refused(names, end, says):
    with pytest.raises(ValueError, match=says):
        Halving(names, end)


def test_the_winners_autoencoder_goes_on_learning():
    config = replace(SMALL, demonstrations=("nearest", "even_sorted"), demonstration_race=0.1)
    learner = Reinforce("HTM-Trees-v0", config, env_kwargs={"heights": (3,)})
    for _ in range(3):
        learner.update(0.0)
    kept = {name: made.trainer.autoencoder for name, made in learner.contestants.items()}
    hashes = {name: model.weights_hash() for name, model in kept.items()}
    assert learner.autoencoder.weights_hash() not in hashes.values()
    assert not learner.selects(0.1)
    assert learner.autoencoder.weights_hash() == hashes[learner.selection.best]
    assert learner.trainer.optimizers["merger"].updates == 3
    scalars = learner.update(0.1)
    assert "loss/cloning" in scalars
    assert f"demonstrations/nmse_{learner.selection.best}" in scalars


def test_a_run_resumes_within_its_selection():
    learner, twin = (Reinforce("HTM-Crosses-v0", SMALL, seed=1) for _ in range(2))
    learner.update(0.0)
    taking = len(learner.selection.remaining)
    learner.update(0.09)  # some are left out
    assert 1 < len(learner.selection.remaining) < taking
    twin.restore(learner.state())
    for progress in (0.09, 0.11, 0.13, 0.16):
        assert learner.update(progress) == twin.update(progress)
    assert learner.autoencoder.weights_hash() == twin.autoencoder.weights_hash()


def test_under_a_frozen_autoencoder_one_update_selects():
    learner = Reinforce("HTM-Crosses-v0", SMALL, mode="frozen", env_kwargs={"num_crosses": (2,)})
    before = learner.autoencoder.weights_hash()
    scalars = learner.update(0.0)
    errors = {tag: value for tag, value in scalars.items() if tag.startswith("demonstrations/")}
    assert len(errors) == len(ORDERS)
    best = min(errors, key=errors.__getitem__)
    assert best == f"demonstrations/nmse_{learner.selection.best}" and not learner.selection.open
    assert learner.autoencoder.weights_hash() == before
    torch.testing.assert_close(scalars["train/nmse"], errors[best])


@pytest.mark.parametrize(
    "change",
    [{"ended": -5}, {"ended": True}, {"ended": 9}, {"laps": [[0.0]]}, {"laps": [[0.0, True]]}],
)
def test_a_selection_that_no_rounds_lead_to_is_refused(change):
    selection = Halving(("one", "two"), end=0.1)
    selection.report({"one": 1.0, "two": 2.0})
    before = selection.state()
    with pytest.raises(ValueError, match="of the selection"):
        selection.restore(before | change)
    assert selection.state() == before
    selection.restore(before)
