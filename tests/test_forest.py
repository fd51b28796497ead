"""The batched forest against dictionaries, over random populations and merge orders."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import Drawn, PlainForest, batched, forests
from torch.utils._python_dispatch import TorchDispatchMode

from htm_env import forest as forest_module
from htm_env.forest import (
    Forest,
    action_mask,
    action_to_pair,
    active_nodes,
    check_merges,
    children_table,
    depths,
    descend,
    drop_diagonal,
    leaf_counts,
    leaf_sets,
    leftmost_leaves,
    legal_pairs,
    merges_to_actions,
    pad_merges,
    pair_to_action,
    tree_height,
)

# Three tokens in four slots: 2 and 0 make node 3, then 3 and 1 make node 4.
BY_HAND = torch.tensor([[[2, 0], [3, 1], [-1, -1]]])
THREE = torch.tensor([3])


def replay(drawn: Drawn) -> Forest:
    """The drawn merges made one slot pair at a time, in lockstep."""
    forest = Forest.start(drawn.present)
    for step in range(max(map(len, drawn.slot_pairs))):
        moving = torch.tensor([step < len(pairs) for pairs in drawn.slot_pairs])
        pairs = [pairs[step] if step < len(pairs) else (0, 0) for pairs in drawn.slot_pairs]
        first, second = torch.tensor(pairs).unbind(1)
        forest = forest.merge(first, second, where=moving)
    return forest


def of_every_node(drawn: Drawn, value, missing: int = 0) -> torch.Tensor:
    """``(B, N)``: a number of each plain node, and ``missing`` where there is no node."""
    table = torch.full((len(drawn.plain), 2 * drawn.present.shape[1] - 1), missing)
    for row, plain in enumerate(drawn.plain):
        for node in plain.nodes():
            table[row, node] = value(plain, node)
    return table


def assert_equal(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0)


# ---------------------------------------------------------------- by hand


def test_three_tokens_by_hand():
    assert depths(BY_HAND, THREE)[0].tolist() == [2, 1, 2, 1, 0, 0, 0]
    assert leaf_counts(BY_HAND, THREE)[0].tolist() == [1, 1, 1, 2, 3, 0, 0]
    assert tree_height(BY_HAND, THREE).tolist() == [2]
    assert active_nodes(BY_HAND, THREE)[0].nonzero().flatten().tolist() == [4]
    assert children_table(BY_HAND, THREE)[0, 3:5].tolist() == [[2, 0], [3, 1]]
    assert leaf_sets(BY_HAND, THREE)[0, 3].tolist() == [True, False, True, False]
    # Slots (2, 0) of four: 2 * 3 + 0; the parent stays in slot 2, so next (2, 1): 2 * 3 + 1.
    assert merges_to_actions(BY_HAND, THREE).tolist() == [[6, 7, -1]]


def test_the_parent_goes_to_the_first_slot_and_the_second_empties():
    start = Forest.start(torch.ones(1, 3, dtype=torch.bool))
    merged = start.merge(torch.tensor([2]), torch.tensor([0]))
    assert merged.slots.tolist() == [[-1, 1, 3]]
    assert merged.merges.tolist() == [[[2, 0], [-1, -1]]]
    assert merged.num_active.tolist() == [2]
    assert start.slots.tolist() == [[0, 1, 2]]  # a transition does not change its input
    assert start.merges.tolist() == [[[-1, -1], [-1, -1]]]
    assert start.num_merges.tolist() == [0]


def test_actions_of_three_slots_by_hand():
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    assert [action_to_pair(action, 3) for action in range(6)] == pairs
    assert [pair_to_action(*pair, 3) for pair in pairs] == list(range(6))


# ---------------------------------------------------------------- actions


@given(st.integers(2, 20))
def test_actions_and_pairs_are_one_to_one(slots):
    actions = torch.arange(slots * (slots - 1))
    first, second = action_to_pair(actions, slots)
    assert bool((first != second).all())
    assert int(torch.stack([first, second]).min()) == 0
    assert int(torch.stack([first, second]).max()) == slots - 1
    assert_equal(pair_to_action(first, second, slots), actions)
    assert len({*zip(first.tolist(), second.tolist(), strict=True)}) == len(actions)
    arrays = action_to_pair(actions.numpy(), slots)
    assert (pair_to_action(*arrays, slots) == actions.numpy()).all()


@given(st.integers(2, 8), st.integers(1, 3))
def test_dropping_the_diagonal_puts_every_pair_at_its_action(slots, batch):
    pairs = torch.arange(batch * slots * slots).view(batch, slots, slots)
    first, second = action_to_pair(torch.arange(slots * (slots - 1)), slots)
    assert_equal(drop_diagonal(pairs), pairs[:, first, second])


@given(forests())
def test_the_mask_allows_exactly_the_ordered_pairs_of_active_slots(drawn):
    forest = replay(drawn)
    mask = action_mask(forest.active)
    slots = drawn.present.shape[1]
    for row, plain in enumerate(drawn.plain):
        legal = {pair_to_action(i, j, slots) for i in plain.slots for j in plain.slots if i != j}
        assert set(mask[row].nonzero().flatten().tolist()) == legal
        active = len(plain.slots)
        assert int(mask[row].sum()) == active * (active - 1)
        assert int(legal_pairs(forest.active)[row].sum()) == active * (active - 1)


# ---------------------------------------------------------------- forests


@given(forests())
def test_merging_in_lockstep_equals_each_sample_alone(drawn):
    forest = replay(drawn)
    assert_equal(forest.merges, drawn.merges)
    assert_equal(forest.num_leaves, drawn.num_leaves)
    for row, plain in enumerate(drawn.plain):
        slots = {slot: node for slot, node in enumerate(forest.slots[row].tolist()) if node >= 0}
        assert slots == plain.slots
        assert int(forest.num_active[row]) == len(plain.slots)
        assert int(forest.num_merges[row]) == len(plain.merges)


@given(forests())
def test_merges_survive_the_way_through_actions(drawn):
    actions = merges_to_actions(drawn.merges, drawn.num_leaves)
    forest = Forest.start(drawn.present)
    for step in range(actions.shape[1]):
        now = actions[:, step]
        legal = action_mask(forest.active)
        made = now >= 0
        assert bool(legal[made, now[made]].all())
        first, second = action_to_pair(now.clamp(min=0), drawn.present.shape[1])
        forest = forest.merge(first, second, where=made)
    assert_equal(forest.merges, drawn.merges)


@given(forests())
def test_what_is_known_of_every_node(drawn):
    merges, num_leaves = drawn.merges, drawn.num_leaves
    assert_equal(depths(merges, num_leaves), of_every_node(drawn, PlainForest.depth))
    assert_equal(
        leaf_counts(merges, num_leaves),
        of_every_node(drawn, lambda plain, node: len(plain.leaves(node))),
    )
    assert_equal(
        active_nodes(merges, num_leaves),
        of_every_node(drawn, lambda plain, node: node in plain.slots.values()).bool(),
    )
    sets = leaf_sets(merges, num_leaves)
    table = children_table(merges, num_leaves)
    first_leaves = leftmost_leaves(merges, num_leaves)
    assert_equal(
        first_leaves.where(leaf_counts(merges, num_leaves) > 0, 0),
        of_every_node(drawn, PlainForest.first_leaf),
    )
    for row, plain in enumerate(drawn.plain):
        for node in range(sets.shape[1]):
            exists = node in plain.nodes()
            leaves = plain.leaves(node) if exists else set()
            assert set(sets[row, node].nonzero().flatten().tolist()) == leaves
            pair = plain.children(node) if exists else None
            assert tuple(table[row, node].tolist()) == (pair or (-1, -1))
        for slot, node in plain.slots.items():
            assert int(first_leaves[row, node]) == slot
    highest = [max(map(plain.height, plain.nodes())) for plain in drawn.plain]
    assert tree_height(merges, num_leaves).tolist() == highest


def chain(n: int) -> PlainForest:
    """Every merge joins the next token and what has been merged so far, in this order."""
    forest = PlainForest(n)
    for first in range(1, n):
        forest.merge(first, first - 1)
    return forest


def test_a_chain_beside_a_shorter_one_and_one_that_is_not_finished():
    unfinished = chain(100)
    del unfinished.merges[60:]
    drawn = batched([chain(100), chain(33), unfinished], slots=100)
    merges, num_leaves = drawn.merges, drawn.num_leaves
    assert tree_height(merges, num_leaves).tolist() == [99, 32, 60]
    assert_equal(depths(merges, num_leaves), of_every_node(drawn, PlainForest.depth))
    assert_equal(
        leaf_sets(merges, num_leaves).sum(2),
        of_every_node(drawn, lambda plain, node: len(plain.leaves(node))),
    )
    assert leftmost_leaves(merges, num_leaves)[0, 100:].tolist() == list(range(1, 100))


class Operations(TorchDispatchMode):
    """How many there were."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "known", [depths, leaf_counts, leaf_sets, leftmost_leaves, merges_to_actions, tree_height]
)
def test_sixteen_times_the_merges_take_a_few_operations_more(known):
    counts = []
    for n in (16, 256):
        drawn = batched([chain(n)], slots=n)
        with Operations() as operations:
            known(drawn.merges, drawn.num_leaves)
        counts.append(operations.count)
    assert counts[1] < 2 * counts[0]


@given(forests())
def test_a_walk_down_from_every_node_meets_each_leaf_under_it_once(drawn):
    num_nodes = 2 * drawn.present.shape[1] - 1
    start = [
        row * num_nodes + node for row, plain in enumerate(drawn.plain) for node in plain.nodes()
    ]
    levels = descend(children_table(drawn.merges, drawn.num_leaves), torch.tensor(start))
    found: dict[int, list[int]] = {node: [] for node in start}
    for level in levels:
        internal, leaves = set(level.internal.tolist()), set(level.leaves.tolist())
        assert internal | leaves == set(range(len(level.nodes)))
        assert not internal & leaves
        for position in leaves:
            found[start[int(level.origin[position])]].append(int(level.nodes[position]))
    for row, plain in enumerate(drawn.plain):
        for node in plain.nodes():
            expected = sorted(row * num_nodes + leaf for leaf in plain.leaves(node))
            assert sorted(found[row * num_nodes + node]) == expected
    highest = max(plain.height(node) for plain in drawn.plain for node in plain.nodes())
    assert len(levels) == 1 + highest


# ---------------------------------------------------------------- bad merges


@given(forests())
def test_every_forest_passes_the_check(drawn):
    check_merges(drawn.merges, drawn.num_leaves)


@pytest.mark.parametrize(
    ("merges", "what"),
    [
        ([[0, 0], [-1, -1], [-1, -1]], "a node with itself"),
        ([[0, 3], [-1, -1], [-1, -1]], "a node that is only made by this merge"),
        ([[0, 1], [4, 2], [-1, -1]], "a node that is never made"),
        ([[0, 99], [-1, -1], [-1, -1]], "a node far outside"),
        ([[0, 1], [0, 2], [-1, -1]], "a node that was used before"),
        ([[0, 1], [3, 2], [4, 0]], "more merges than tokens allow"),
        ([[0, -1], [-1, -1], [-1, -1]], "half a merge"),
        ([[-1, 0], [-1, -1], [-1, -1]], "the other half"),
        ([[-1, -1], [0, 1], [-1, -1]], "padding before a merge"),
        ([[-2, -2], [-1, -1], [-1, -1]], "a negative node that is not the padding"),
    ],
)
def test_merges_that_are_no_forest_are_refused_by_row(merges, what):
    good = [[0, 1], [3, 2], [-1, -1]]
    with pytest.raises(ValueError, match=r"sample 1 .* 3 tokens"):
        check_merges(torch.tensor([good, merges]), torch.tensor([3, 3]))


def test_the_first_merge_that_is_none_is_named():
    merges = torch.tensor([[[0, 1], [3, 2]], [[0, 1], [1, 2]]])
    with pytest.raises(ValueError, match=r"tree 1 are not a forest .* merge 1 is \[1, 2\]"):
        check_merges(merges, torch.tensor([3, 3]), "tree {}".format)
    with pytest.raises(ValueError, match=r"sample 1 are not a forest .* merge 0 is \[0, 0\]"):
        check_merges(torch.tensor([[[0, 1], [3, 2]], [[0, 0], [1, 2]]]), torch.tensor([3, 3]))


def test_padding_merges():
    merges = torch.tensor([[[0, 1]]])
    assert pad_merges(merges, 4).tolist() == [[[0, 1], [-1, -1], [-1, -1]]]
    assert pad_merges(merges, 2).tolist() == merges.tolist()
    with pytest.raises(ValueError, match="3 merges do not fit 3 token slots; expected at most 2"):
        pad_merges(torch.zeros(1, 3, 2, dtype=torch.long), 3)


def test_a_forest_without_any_merge():
    drawn = batched([PlainForest(2), PlainForest(1)], slots=3)
    assert not tree_height(drawn.merges, drawn.num_leaves).any()
    assert active_nodes(drawn.merges, drawn.num_leaves).sum(1).tolist() == [2, 1]
    check_merges(drawn.merges, drawn.num_leaves)


def test_shapes_are_checked_in_tests():
    """The import hook of conftest.py is on: a wrong rank is refused by name."""
    with pytest.raises(Exception, match="merges"):
        forest_module.depths(torch.zeros(3, 2, dtype=torch.long), THREE)
