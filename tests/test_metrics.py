import math

import dendropy
import pytest
import torch
from dendropy.calculate import treecompare
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.key_scenes import first_merge_accuracy
from htm_env.measures.metrics import (
    clade_scores,
    mean_or_none,
    nmse_per_sample,
)


def clade_rows(sets, slots):
    rows = torch.zeros(len(sets), slots, dtype=torch.bool)
    for row, leaves in zip(rows, sets, strict=True):
        row[list(leaves)] = True
    return rows


def all_scores(tree, data, num_tokens, slots=8):
    present = torch.arange(slots)[None] < num_tokens
    return clade_scores(clade_rows(tree, slots)[None], clade_rows(data, slots)[None], present)


def scores(tree, data, num_tokens, slots=8):
    result = all_scores(tree, data, num_tokens, slots)
    return result.recall.item(), result.f1.item()


# ---------------------------------------------------------------- error


def test_nmse_divides_each_coordinate_by_its_deviation():
    tokens = torch.zeros(1, 2, 2)
    reconstruction = torch.tensor([[[1.0, 0.0], [0.0, 10.0]]])
    # squared errors 1 / 2^2 and 100 / 5^2 over four coordinates: (0.25 + 4) / 4
    error = nmse_per_sample(
        reconstruction, tokens, torch.ones(1, 2, dtype=torch.bool), torch.tensor([2.0, 5.0])
    )
    assert error.shape == (1,)
    assert error.item() == pytest.approx(1.0625)


def test_nmse_weighs_samples_not_tokens():
    present = torch.tensor([[True, False, False], [True, True, True]])
    reconstruction = torch.tensor([[3.0, 0, 0], [1.0, 1.0, 1.0]])[..., None]
    per_sample = nmse_per_sample(reconstruction, torch.zeros(2, 3, 1), present, torch.ones(1))
    assert per_sample.tolist() == [9.0, 1.0]


def test_nmse_of_the_mean_is_one():
    tokens = torch.tensor([-1.0, 1.0, 4.0, 6.0]).reshape(2, 2, 1)
    mean, std = tokens.mean(), tokens.std(correction=0).reshape(1)
    error = nmse_per_sample(
        mean.expand(2, 2, 1), tokens, torch.ones(2, 2, dtype=torch.bool), std
    ).mean()
    assert error.item() == pytest.approx(1.0)


def test_empty_slots_change_neither_error_nor_gradient():
    present = torch.tensor([[True, False]])
    reconstruction = torch.tensor([[[2.0], [math.nan]]], requires_grad=True)
    error = nmse_per_sample(
        reconstruction, torch.tensor([[[0.0], [math.inf]]]), present, torch.ones(1)
    )
    error.backward()
    assert error.item() == 4.0
    assert reconstruction.grad.tolist() == [[[4.0], [0.0]]]


# ---------------------------------------------------------------- clades


def test_the_same_tree_scores_one():
    assert scores([{0, 1}, {2, 3}, {0, 1, 2, 3}], [{2, 3}, {0, 1}], 4) == (1.0, 1.0)


def test_a_tree_that_finds_half_and_contradicts_the_rest():
    # of {0,1} and {2,3} one is found; of the tree's {0,1}, {2,4}, {2,3,4}, {0,1,2,4} ... only
    # {2,4} overlaps a clade of the data partially: {2,3,4} holds {2,3}, so 2 of 3 are compatible
    recall, f1 = scores([{0, 1}, {2, 4}, {2, 3, 4}, {0, 1, 2, 3, 4}], [{0, 1}, {2, 3}], 5)
    assert recall == 0.5
    assert f1 == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))


def test_no_clade_found_scores_zero():
    assert scores([{0, 2}, {1, 3}, {0, 1, 2, 3}], [{0, 1}, {2, 3}], 4) == (0.0, 0.0)


def test_a_finer_tree_contradicts_nothing():
    # {0,1} inside the data's {0,1,2,3} is compatible, and so is {0,1,2}
    assert scores([{0, 1}, {0, 1, 2}, {0, 1, 2, 3}], [{0, 1, 2, 3}], 6) == (1.0, 1.0)


def test_a_set_that_stands_there_twice_counts_once():
    # as often as {0,1} is repeated, one of the data's two clades is found
    recall, f1 = scores([{0, 1}, {2, 4}, {0, 1}], [{0, 1}, {0, 1}, {2, 3}, {0, 1}], 5)
    assert recall == 0.5
    assert f1 == 0.5  # {0,1} is compatible, {2,4} is not: 1 of 2


def test_the_whole_sample_single_leaves_and_padding_never_count():
    padded_tree, padded_data = [{0, 1}, {0, 1, 2}, set()], [{1, 2}, {0, 1, 2}, {0}, set()]
    assert scores(padded_tree, padded_data, 3) == scores([{0, 1}], [{1, 2}], 3) == (0.0, 0.0)
    assert scores([{0, 1}], [{0, 1}, {0, 1, 2}, {2}, set()], 3) == (1.0, 1.0)


def test_a_forest_without_merges_has_found_nothing():
    assert scores([], [{0, 1}], 3) == (0.0, 0.0)
    assert scores([set(), set()], [{0, 1}], 3) == (0.0, 0.0)


@pytest.mark.parametrize("data", [[], [set()], [{0, 1, 2}], [{0}]])
def test_samples_without_clades_are_left_out(data):
    assert all(score.isnan() for score in all_scores([{0, 1}, {0, 1, 2}], data, 3))


def test_mean_or_none_leaves_nan_out():
    assert mean_or_none(torch.tensor([1.0, math.nan, 0.0])) == 0.5
    assert mean_or_none(torch.tensor([math.nan, math.nan])) is None
    assert mean_or_none(torch.zeros(0)) is None


# ---------------------------------------------------------------- exact scores


def test_exact_scores_count_only_the_datas_own_clades():
    # 3 clades in the tree, 2 in the data, {0,1} in both: 1/3, 2 * 1/5, and 2 + 1 of 5 differ
    result = all_scores([{0, 1}, {2, 4}, {2, 3, 4}, {0, 1, 2, 3, 4}], [{0, 1}, {2, 3}], 5)
    assert result.precision.item() == pytest.approx(1 / 3)
    assert result.exact_f1.item() == pytest.approx(2 / 5)
    assert result.robinson_foulds.item() == pytest.approx(3 / 5)


def test_a_binary_tree_over_crosses_cannot_be_exact():
    # three crosses: 3 clades in the data, 4 in every tree over 6 tokens
    pairs = [{0, 1}, {2, 3}, {4, 5}]
    result = all_scores([*pairs, {0, 1, 2, 3}, set(range(6))], pairs, 6)
    assert (result.recall.item(), result.f1.item()) == (1.0, 1.0)
    assert result.precision.item() == 3 / 4
    assert result.exact_f1.item() == pytest.approx(6 / 7)
    assert result.robinson_foulds.item() == pytest.approx(1 / 7)


def test_nothing_in_common_is_the_largest_distance():
    result = all_scores([{0, 2}, {1, 3}], [{0, 1}, {2, 3}], 4)
    assert (result.precision, result.exact_f1, result.robinson_foulds) == (0.0, 0.0, 1.0)
    unmerged = all_scores([], [{0, 1}], 3)
    assert (unmerged.precision, unmerged.exact_f1, unmerged.robinson_foulds) == (0.0, 0.0, 1.0)


# ---------------------------------------------------------------- against dendropy


def as_newick(clades, num_tokens):
    """The tree with these nested clades, whose other leaves stand under the smallest around them.

    Whole sample included; without branch lengths, since only the shape counts.
    """
    proper = {frozenset(one) for one in clades if 2 <= len(one) < num_tokens}
    sizes = sorted(proper | {frozenset(range(num_tokens))}, key=len)
    text = {frozenset([leaf]): f"t{leaf}" for leaf in range(num_tokens)}
    top = dict.fromkeys(text)  # the highest clades so far, in order
    for clade in sizes:
        inside = [one for one in top if one <= clade]
        text[clade] = f"({','.join(text[one] for one in inside)})"
        top = dict.fromkeys([*(one for one in top if one not in inside), clade])
    return text[sizes[-1]] + ";"


@st.composite
def two_hierarchies(draw):
    """A binary tree, and the data's hierarchy: another one, of which some clades are left out."""
    num_tokens = draw(st.integers(3, 10))
    random = draw(st.randoms(use_true_random=False))
    tree, data = (random_tree_clades(num_tokens, random) for _ in range(2))
    if draw(st.booleans()):  # as much in common as a policy that learned something
        data = [one for one in tree if random.random() < 0.6]
    return tree, [one for one in data if random.random() < 0.8], num_tokens


@given(two_hierarchies())
def test_exact_scores_equal_those_of_dendropy(sample):
    tree, data, num_tokens = sample
    taxa = dendropy.TaxonNamespace([f"t{leaf}" for leaf in range(num_tokens)])
    rooted = [
        dendropy.Tree.get(
            data=as_newick(clades, num_tokens),
            schema="newick",
            taxon_namespace=taxa,
            rooting="force-rooted",
        )
        for clades in (data, tree)
    ]
    result = all_scores(tree, data, num_tokens, slots=10)
    in_data = len({frozenset(one) for one in data if len(one) < num_tokens})
    if not in_data:
        assert all(score.isnan() for score in result)
        return
    not_data, missed = treecompare.false_positives_and_negatives(*rooted)
    in_tree = num_tokens - 2
    assert result.recall.item() == pytest.approx((in_data - missed) / in_data)
    assert result.precision.item() == pytest.approx((in_tree - not_data) / in_tree)
    distance = treecompare.symmetric_difference(*rooted)
    assert result.robinson_foulds.item() == pytest.approx(distance / (in_data + in_tree))
    assert result.exact_f1.item() == pytest.approx(1 - result.robinson_foulds.item())


# ---------------------------------------------------------------- against plain sets


def expected_scores(tree, data, num_tokens):
    tree, data = (
        {frozenset(one) for one in clades if 2 <= len(one) < num_tokens} for clades in (tree, data)
    )
    if not data:
        return None
    recall = len(tree & data) / len(data)
    compatible = [
        all(not one & other or one <= other or other <= one for other in data) for one in tree
    ]
    share = sum(compatible) / len(tree) if tree else 0.0
    return recall, 2 * recall * share / (recall + share) if recall else 0.0


def random_tree_clades(num_tokens, generator):
    active, clades = [{leaf} for leaf in range(num_tokens)], []
    while len(active) > 1:
        generator.shuffle(active)
        active.append(active.pop() | active.pop())
        clades.append(active[-1])
    return clades


@st.composite
def samples(draw):
    num_tokens = draw(st.integers(2, 9))
    leaf_sets = st.lists(st.sets(st.integers(0, num_tokens - 1)), max_size=8)
    trees = st.randoms(use_true_random=False).map(lambda r: random_tree_clades(num_tokens, r))
    return draw(trees | leaf_sets), draw(trees | leaf_sets), num_tokens


@given(st.lists(samples(), min_size=1, max_size=3))
def test_clade_scores_equal_those_of_plain_sets(batch):
    def padded(clades):
        return clades + [set()] * (9 - len(clades))

    result = clade_scores(
        torch.stack([clade_rows(padded(tree), 10) for tree, _, _ in batch]),
        torch.stack([clade_rows(padded(data), 10) for _, data, _ in batch]),
        torch.stack([torch.arange(10) < num_tokens for _, _, num_tokens in batch]),
    )
    for row, sample in enumerate(batch):
        expected = expected_scores(*sample)
        if expected is None:
            assert result.recall[row].isnan() and result.f1[row].isnan()
        else:
            assert result.recall[row].item() == pytest.approx(expected[0])
            assert result.f1[row].item() == pytest.approx(expected[1])


def test_a_hundred_and_twenty_eight_tokens():
    data = [
        set(range(start, start + size))
        for size in (2, 4, 8, 16, 32, 64)
        for start in range(0, 128, size)
    ]
    swapped = {0: 127, 127: 0}
    tree = [{swapped.get(leaf, leaf) for leaf in clade} for clade in data]
    recall, f1 = scores(tree, data, 128, slots=128)
    # every one of the 6 clades over leaf 0, and of the 6 over leaf 127, is lost and in the way
    assert recall == pytest.approx(114 / 126)
    assert f1 == pytest.approx(114 / 126)


# ---------------------------------------------------------------- first merges


def test_first_merges_by_hand():
    """Pairs {0, 1} and {2, 3}: three samples begin rightly, whatever the order within the pair."""
    clades = clade_rows([{0, 1}, {2, 3}, set()], 4)[None].repeat(6, 1, 1)
    first = torch.tensor([[0, 1], [3, 2], [1, 2], [2, 3], [0, 3], [-1, -1]])
    merges = torch.stack([first, torch.full((6, 2), -1), torch.full((6, 2), -1)], dim=1)
    assert first_merge_accuracy(merges, clades).item() == pytest.approx(3 / 6)
    assert first_merge_accuracy(merges[:4], clades[:4]).item() == pytest.approx(3 / 4)
    larger = clade_rows([{0, 1, 2}], 4)[None]
    assert first_merge_accuracy(merges[:1], larger).item() == 0.0
