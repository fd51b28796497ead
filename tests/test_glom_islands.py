"""Islands of hand-made columns, read as trees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.encoders.glom.islands import find_islands, island_merges, relative_distances
from htm_env.forest import check_merges, leaf_sets


def clades(columns: torch.Tensor, tolerance: float = 0.05) -> set[frozenset[int]]:
    """The inner nodes of the tree of one sample with a full population."""
    count = columns.shape[0]
    merges = island_merges(columns[None], torch.ones(1, count, dtype=torch.bool), tolerance)
    check_merges(merges, torch.tensor([count]))
    sets = leaf_sets(merges, torch.tensor([count]))[0, count:]
    return {frozenset(row.nonzero().flatten().tolist()) for row in sets}


def levels(*rows: list[float]) -> torch.Tensor:
    """(P, L, 1) columns from the numbers of each level, the lowest first."""
    return torch.tensor(rows).T[..., None]


def test_parts_then_wholes():
    """Level 0 has pairs, level 1 two wholes of two pairs: {01}{23} and {45}{67}."""
    columns = levels([0, 0, 10, 10, 20, 20, 5, 5.0], [0, 0, 0, 0, 1, 1, 1, 1.0])
    pairs = [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
    wholes = [{0, 1, 2, 3}, {4, 5, 6, 7}, set(range(8))]
    assert clades(columns) == {frozenset(clade) for clade in pairs + wholes}


def test_a_lower_level_comes_first_however_near_the_higher_one_is():
    """At the top 1 and 2 are exactly equal, but 0 and 1 are nearly so further down."""
    columns = levels([0.0, 0.1, 5.0, 9.0], [0.0, 0.5, 0.5, 9.0])
    assert frozenset({0, 1}) in clades(columns)
    assert frozenset({1, 2}) in clades(columns, tolerance=0.0)  # 0.1 is no longer nearly equal


def test_what_no_level_joins_the_top_does():
    """Nothing is nearly equal: distances at the top alone decide, 0 and 2, then 1 and 3."""
    columns = levels([0.0, 1.0, 2.0, 3.0], [0.0, 7.0, 1.0, 9.0])
    assert clades(columns, 0.0) == {frozenset({0, 2}), frozenset({1, 3}), frozenset(range(4))}


def test_islands_are_compared_as_their_columns_are_on_average():
    """From 3.2 it is 2.2 to 1, but 2.7 to {0, 1} on average of 0 and 1, farther than to 5.8."""
    columns = levels([0.0, 1.0, 3.2, 5.5])
    assert frozenset({2, 3}) in clades(columns, 0.0)


def test_an_island_of_two_weighs_twice_as_much_as_one_column():
    """Square distances from 6: 36, 25 and 11.56 to 0, 1 and 2.6, on average 24.2, farther than 22.6
    to 10.75; were {0, 1} to weigh as much as 2.6 alone, it would be 21.0."""
    columns = levels([0.0, 1.0, 2.6, 6.0, 10.75])
    pairs = [{0, 1}, {0, 1, 2}, {3, 4}, set(range(5))]
    assert clades(columns, 0.0) == {frozenset(clade) for clade in pairs}


def test_equal_columns_are_one_island():
    columns = torch.ones(4, 2, 3)
    assert len(clades(columns)) == 3


def test_distances_are_shares_of_the_samples_mean():
    """Squares of 1, 2 and 3 have the mean 14/3; a level of equal columns has 0."""
    columns = levels([0.0, 1.0, 3.0], [2.0, 2.0, 2.0])[None]
    expected = torch.tensor([[0, 1, 9], [1, 0, 4], [9, 4, 0]]) / (14 / 3)
    for slots in (3, 5):  # the last two are empty
        padded = torch.nn.functional.pad(columns, (0, 0, 0, 0, 0, slots - 3))
        found = relative_distances(padded, torch.arange(slots)[None] < 3)
        assert found[0, 0, :3, :3].flatten().tolist() == pytest.approx(expected.flatten().tolist())
        assert not found[0, 1].any()


def test_islands_are_joined_by_steps():
    """At level 0 the first four are each near to the next, not to the one after it."""
    columns = levels([0.0, 1.0, 2.0, 3.0, 50.0, 51.0], [0.0, 50.0, 0.0, 50.0, 50.0, 90.0])[None]
    present = torch.ones(1, 6, dtype=torch.bool)
    islands = find_islands(columns, present, 0.001)
    assert islands.labels[0].tolist() == [[0, 0, 0, 0, 1, 1], [0, 1, 0, 1, 1, 2]]
    assert islands.sizes[0].tolist() == [[4, 2, 0, 0, 0, 0], [2, 3, 1, 0, 0, 0]]
    assert islands.counts.tolist() == [[2, 3]]
    assert torch.equal(islands.merges, island_merges(columns, present, 0.001))


def test_islands_of_what_is_not_there_have_no_number():
    columns = torch.zeros(2, 4, 1, 1)
    present = torch.tensor([[True, True, False, False], [False] * 4])
    islands = find_islands(columns, present, 0.1)
    assert islands.labels[:, 0].tolist() == [[0, 0, -1, -1], [-1] * 4]
    assert islands.counts[:, 0].tolist() == [1, 0]


@given(seed=st.integers(0, 1000))
def test_slots_without_a_column_may_be_anywhere(seed):
    """The same columns in the first slots and spread over more: the same islands and trees."""
    drawn = torch.Generator().manual_seed(seed)
    columns = torch.randn(2, 4, 2, 3, generator=drawn)
    full = torch.ones(2, 4, dtype=torch.bool)
    slots = torch.stack([torch.randperm(9, generator=drawn)[:4].sort().values for _ in range(2)])
    rows = torch.arange(2)[:, None]
    spread = torch.full((2, 9, 2, 3), torch.nan)
    spread[rows, slots] = columns
    present = torch.zeros(2, 9, dtype=torch.bool)
    present[rows, slots] = True
    packed, found = find_islands(columns, full, 0.2), find_islands(spread, present, 0.2)
    assert torch.equal(found.merges[:, :3], packed.merges) and (found.merges[:, 3:] == -1).all()
    assert torch.equal(found.labels.transpose(1, 2)[rows, slots], packed.labels.transpose(1, 2))
    assert (found.labels.transpose(1, 2)[~present] == -1).all()
    assert torch.equal(found.sizes[..., :4], packed.sizes)


@pytest.mark.usefixtures("unchecked")
def test_islands_of_what_does_not_fit_are_refused():
    columns, present = torch.zeros(2, 4, 3, 5), torch.ones(2, 4, dtype=torch.bool)
    for tolerance in (-1, torch.nan):
        with pytest.raises(ValueError, match=r"tolerance is .*; expected at least 0"):
            find_islands(columns, present, tolerance)
    for wrong in ((columns[None], present), (columns, present[:, :3]), (columns, present.float())):
        with pytest.raises(ValueError, match=r"expected \(B, P, L, d\) and \(B, P\) of truth"):
            find_islands(*wrong, 0.1)
    columns[1, 3] = torch.nan
    with pytest.raises(ValueError, match="columns hold numbers that are not finite"):
        find_islands(columns, present, 0.1)
    present[1, 3] = False  # what is not there may be anything
    assert find_islands(columns, present, 0.1).counts.tolist() == [[1, 1, 1]] * 2


@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_trees_know_no_slots_no_scale_and_no_junk(seed, scale):
    drawn = torch.Generator().manual_seed(seed)
    columns = torch.randn(3, 7, 2, 4, generator=drawn)
    present = torch.arange(7) < torch.tensor([[7], [4], [1]])
    merges = island_merges(columns, present, 0.2)
    check_merges(merges, present.sum(1))
    junk = columns.masked_fill(~present[..., None, None], torch.nan)
    assert torch.equal(island_merges(junk, present, 0.2), merges)
    order = torch.randperm(7, generator=drawn)
    assert clades(scale * columns[0, order] + 5 * scale, 0.2) == {
        frozenset((order.argsort()[list(clade)]).tolist()) for clade in clades(columns[0], 0.2)
    }
