"""Candidate lists against plain Python ones, merge by merge."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from episodes import generator
from hypothesis import given, settings
from hypothesis import strategies as st

from htm_env.candidates import (
    FARTHEST,
    Candidates,
    candidate_action,
    candidate_mask,
    candidate_pair,
    merged_candidates,
    nearest_candidates,
)
from htm_env.forest import legal_pairs

LARGE = 256
"""Slots from which on a KD-tree or blocks of a table find the nearest."""


def apart(one: list[float], other: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


class PlainLists:
    """The rule in words, for one sample: a dictionary of partners for each slot."""

    def __init__(self, places: list[list[float]], k: int) -> None:
        self.places, self.k = dict(enumerate(places)), k
        self.renew()

    def nearest(self, slot: int) -> dict[int, float]:
        others = {o: apart(p, self.places[slot]) for o, p in self.places.items() if o != slot}
        return dict(sorted(others.items(), key=lambda item: item[1])[: self.k])

    def renew(self) -> None:
        self.lists = {slot: self.nearest(slot) for slot in self.places}
        self.renewal = len(self.places) // 2

    def merge(self, first: int, second: int, place: list[float]) -> None:
        del self.places[second], self.lists[second]
        self.places[first] = place
        self.lists[first] = self.nearest(first)
        for slot, partners in self.lists.items():
            if slot == first:
                continue
            partners.pop(first, None), partners.pop(second, None)
            distance = apart(self.places[slot], place)
            if len(partners) == self.k:
                farthest = max(partners, key=partners.__getitem__)
                if partners[farthest] <= distance:
                    continue
                del partners[farthest]
            partners[first] = distance
        if len(self.places) <= self.renewal:
            self.renew()


def lists_of(candidates: Candidates, row: int) -> dict[int, dict[int, float]]:
    return {
        slot: {int(p): float(d) for p, d in zip(partners, distances, strict=True) if p >= 0}
        for slot, (partners, distances) in enumerate(
            zip(candidates.partners[row], candidates.distances[row], strict=True)
        )
        if (partners >= 0).any()
    }


def assert_same(candidates: Candidates, plain: list[PlainLists]) -> None:
    for row, lists in enumerate(plain):
        expected = {slot: partners for slot, partners in lists.lists.items() if partners}
        found = lists_of(candidates, row)
        assert {s: set(p) for s, p in found.items()} == {s: set(p) for s, p in expected.items()}
        for slot, partners in expected.items():
            for partner, distance in partners.items():
                assert math.isclose(found[slot][partner], distance, rel_tol=1e-4, abs_tol=1e-6)


@pytest.mark.parametrize("slots", [3, LARGE])
def test_what_is_nearer_does_not_depend_on_how_far_all_are_from_the_origin(slots):
    steps = 100.0 * torch.arange(slots)
    steps[:3] = torch.tensor([0.0, 0.5, 1.125])
    places = (4096.0 + steps)[None, :, None].expand(1, slots, 5)
    found = nearest_candidates(places, torch.ones(1, slots, dtype=torch.bool), 1).partners
    assert found[0, :3, 0].tolist() == [1, 0, 1]


@given(seed=st.integers(0, 10_000), k=st.integers(1, 6), dimensions=st.integers(1, 5))
def test_lists_follow_the_rule_through_whole_episodes(seed, k, dimensions):
    drawn = generator(seed)
    counts, slots = [9, 6, 2], 10
    places = torch.randn(len(counts), slots, dimensions, generator=drawn)
    active = torch.arange(slots) < torch.tensor(counts)[:, None]
    plain = [PlainLists(places[row, :n].tolist(), k) for row, n in enumerate(counts)]
    candidates = nearest_candidates(places, active, k)
    assert_same(candidates, plain)
    while (running := (active.sum(1) > 1).nonzero()[:, 0]).numel():
        some = candidates.rows(running)
        actions = torch.multinomial(
            candidate_mask(some.partners).float(), 1, generator=drawn
        ).squeeze(1)
        first, second = candidate_pair(actions, some.partners)
        assert (second >= 0).all()
        places[running, first] = torch.randn(len(running), dimensions, generator=drawn)
        active[running, second] = False
        after = merged_candidates(some, places[running], active[running], first, second)
        kept = (after.partners == some.partners) & (some.partners >= 0)
        kept &= some.partners != first[:, None, None]
        kept[torch.arange(len(running)), first] = False
        again = active[running].sum(1) <= some.renewal
        kept &= ~again[:, None, None]
        assert torch.equal(after.fresh, (after.partners >= 0) & ~kept)
        candidates = candidates.with_rows(running, after)
        for row, i, j in zip(running.tolist(), first.tolist(), second.tolist(), strict=True):
            plain[row].merge(i, j, places[row, i].tolist())
        assert_same(candidates, plain)
        named = candidates.partners >= 0
        assert torch.equal(named.any(2), active & (active.sum(1, keepdim=True) > 1))
        rows = torch.arange(len(counts))[:, None, None]
        assert (active[rows, candidates.partners.clamp(min=0)] | ~named).all()


@given(seed=st.integers(0, 1000))
def test_long_lists_name_all_pairs(seed):
    drawn = generator(seed)
    places = torch.randn(2, 7, 3, generator=drawn)
    active = torch.arange(7) < torch.tensor([[7], [5]])
    candidates = nearest_candidates(places, active, 6)
    for _ in range(4):
        pairs = torch.zeros(2, 7, 8, dtype=torch.bool)
        pairs.scatter_(2, candidates.partners.where(candidates.partners >= 0, 7), True)
        assert torch.equal(pairs[..., :7], legal_pairs(active))
        pair = torch.stack(
            [
                row.nonzero()[torch.randperm(int(row.sum()), generator=drawn)[:2], 0]
                for row in active
            ]
        )
        first, second = pair.unbind(1)
        active[torch.arange(2), second] = False
        places[torch.arange(2), first] += 1.0
        candidates = merged_candidates(candidates, places, active, first, second)


def test_nothing_that_was_given_is_changed():
    places, active = torch.randn(1, 5, 2, generator=generator(0)), torch.ones(1, 5).bool()
    before = nearest_candidates(places, active, 2)
    kept = [tensor.clone() for tensor in (before.partners, before.distances, before.fresh)]
    active[0, 1] = False
    merged_candidates(before, places, active, torch.tensor([0]), torch.tensor([1]))
    now = (before.partners, before.distances, before.fresh)
    assert all(map(torch.equal, kept, now))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e25])
def test_places_that_are_no_numbers_still_have_partners(value):
    places, active = torch.randn(1, 6, 3, generator=generator(1)), torch.ones(1, 6).bool()
    places[0, 2] = value
    candidates = nearest_candidates(places, active, 2)
    for second in (5, 4, 3, 1):
        assert torch.equal((candidates.partners >= 0).any(2), active)
        named = candidates.partners >= 0
        assert (candidates.distances[named] <= FARTHEST).all()
        to_it = named & ((candidates.partners == 2) | (torch.arange(6) == 2)[:, None])
        assert (candidates.distances[to_it] == FARTHEST).all()
        if active.sum() > 3:  # the parent has two that are nearer
            assert not (candidates.partners[0, 0] == 2).any()
        active[0, second] = False
        candidates = merged_candidates(
            candidates, places, active, torch.tensor([0]), torch.tensor([second])
        )


@settings(max_examples=20)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(LARGE, LARGE + 100),
    k=st.integers(1, 9),
    dimensions=st.sampled_from([2, 6]),  # by the tree, and by blocks
)
def test_large_populations_find_the_nearest_others(seed, count, k, dimensions):
    """Also where tokens are at the same place, so that their order in a list is open."""
    points = torch.randint(0, 6, (count, dimensions), generator=generator(seed)).float()
    found = nearest_candidates(points[None], torch.ones(1, count, dtype=torch.bool), k)
    partners, distances = found.partners[0], found.distances[0]
    assert partners.shape == (count, k) and not (partners == torch.arange(count)[:, None]).any()
    assert all(len(set(row)) == k for row in partners.tolist())
    exact = (points[:, None] - points).square().sum(2)
    assert torch.equal(distances, exact.gather(1, partners))
    exact.fill_diagonal_(torch.inf)
    assert torch.equal(distances.sort(1).values, exact.sort(1).values[:, :k])


@pytest.mark.parametrize("dimensions", [2, 6])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_populations_in_many_slots_have_the_lists_of_small_ones(dimensions, value):
    """Also with empty slots between the tokens, and where fewer than ``k`` others are there."""
    places = torch.randn(4, 30, dimensions, generator=generator(2))
    active = torch.rand(4, 30, generator=generator(3)) < 0.8
    active[1:, 4:] = torch.tensor([[False], [False], [True]])
    active[1, :4], active[2, :4] = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0]]).bool()
    if value is not None:
        places[0, active[0].nonzero()[3]] = value
    small = nearest_candidates(places, active, 5)
    pad = torch.nn.functional.pad
    large = nearest_candidates(pad(places, (0, 0, 0, LARGE)), pad(active, (0, LARGE)), 5)
    for row in range(4):
        mine, theirs = lists_of(large, row), lists_of(small, row)
        if value is None or row:  # those that are all as far as can be are told apart by nothing
            assert {s: set(p) for s, p in mine.items()} == {s: set(p) for s, p in theirs.items()}
        assert mine.keys() == theirs.keys()
    torch.testing.assert_close(large.distances[:, :30], small.distances)
    assert (small.partners[1] >= 0).sum(1)[:4].tolist() == [2, 0, 2, 2]
    assert not (small.partners[2] >= 0).any()


@pytest.mark.parametrize("dimensions", [2, 6])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_place_that_is_no_number_is_far_from_all_others(dimensions, value):
    """Of a large population; the lists of all others are those without that token."""
    places, active = (
        torch.randn(1, LARGE + 1, dimensions, generator=generator(4)),
        torch.ones(1, LARGE + 1).bool(),
    )
    places[0, -1] = value
    found = nearest_candidates(places, active, 3)
    without = nearest_candidates(places[:, :-1], active[:, :-1], 3)
    assert torch.equal(found.partners[:, :-1].sort(2).values, without.partners.sort(2).values)
    assert (found.distances[0, -1] == FARTHEST).all()


def test_actions_and_pairs():
    listed = np.array([[1, 2], [0, -1], [1, 0]])
    assert [candidate_pair(a, listed) for a in range(6)] == [
        (0, 1),
        (0, 2),
        (1, 0),
        (1, -1),
        (2, 1),
        (2, 0),
    ]
    assert candidate_action(2, 0, listed) == 5 and candidate_action(0, 1, listed) == 0
    with pytest.raises(ValueError, match=r"slot 2 is no candidate of slot 1, which has \[0\]"):
        candidate_action(1, 2, listed)
    with pytest.raises(ValueError, match="slot -1 is no candidate"):
        candidate_action(1, -1, listed)
    both = np.stack([listed, listed[::-1]])
    first, second = candidate_pair(np.array([5, 5]), both)
    assert first.tolist() == [2, 2] and second.tolist() == [0, 2]
    for arrays in ((first, second, both), tuple(map(torch.from_numpy, (first, second, both)))):
        again = candidate_action(*arrays)
        assert type(again) is type(arrays[2]) and again.tolist() == [5, 5]
    first, second = candidate_pair(torch.tensor([5, 5]), torch.as_tensor(both))
    assert first.tolist() == [2, 2] and second.tolist() == [0, 2]
    assert candidate_mask(torch.as_tensor(both))[0].tolist() == [1, 1, 1, 0, 1, 1]


def test_no_candidates_are_refused():
    with pytest.raises(ValueError, match="k is 0; expected at least 1"):
        nearest_candidates(torch.zeros(1, 2, 1), torch.ones(1, 2).bool(), 0)
