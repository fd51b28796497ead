"""Probabilities of ordered trees against the enumeration of merge sequences."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Drawn, forests
from scipy.stats import chisquare
from tabular import SEQUENCES, TREES, expectation, policy

from agents.fixed import all_merge_sequences
from htm_env.trees.merge_tree import MergeTree
from replay import (
    forest_states,
    number_of_sequences,
    number_of_states,
    pairwise_log_prob,
    tree_log_prob,
    tree_log_prob_by_states,
)
from replay.tree_probability import (
    all_sequences,
    log_number_of_sequences,
    uniform_sequences,
)

MU, PI = policy(1), policy(2)
FOUR = torch.full((144,), 4)
COMB = [[0, 1], [2, 3], [4, 5], [8, 9], [11, 10], [12, 6], [13, 7]]  # ((01)(23))(45) then 6, 7
WHERE = {str(sequence.tolist()): row for row, sequence in enumerate(SEQUENCES)}
"""The row of every sequence of four tokens."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one(merges: list[list[int]], n: int) -> tuple[torch.Tensor, torch.Tensor]:
    padded = merges + [[-1, -1]] * (n - 1 - len(merges))
    return torch.tensor([padded]).view(1, n - 1, 2), torch.tensor([n])


def sequences_by_brute_force(merges: torch.Tensor, n: int) -> set[str]:
    """Every order of the merges in which children come first, with its nodes numbered anew."""
    pairs = [pair for pair in merges.tolist() if pair[0] >= 0]
    found = set()
    for order in permutations(range(len(pairs))):
        names = {leaf: leaf for leaf in range(n)}
        made = []
        for merge in order:
            if not all(node in names for node in pairs[merge]):
                break
            made.append([names[node] for node in pairs[merge]])
            names[n + merge] = n + len(made) - 1
        else:
            found.add(str(made))
    return found


# ---------------------------------------------------------------- counting and listing


@given(forests(max_slots=7))
def test_sequences_are_those_of_brute_force(drawn: Drawn):
    listed, owner = all_sequences(drawn.merges, drawn.num_leaves)
    counts = number_of_sequences(drawn.merges, drawn.num_leaves)
    assert owner.tolist() == sorted(owner.tolist())
    for row, forest in enumerate(drawn.plain):
        expected = sequences_by_brute_force(drawn.merges[row], forest.n)
        made = len(forest.merges)
        found = listed[owner == row]
        assert (found[:, made:] == -1).all()
        assert sorted(str(one[:made].tolist()) for one in found) == sorted(expected)
        assert counts[row] == len(expected)


def test_counts_by_hand():
    # Five merges of 1, 1, 1, 3 (two pairs), 5 merges, then chains: 7! / (3 * 5 * 6 * 7) = 8
    merges, n = one(COMB, 8)
    assert number_of_sequences(merges, n).tolist() == [8]
    chain, n = one([[0, 1], [4, 2], [5, 3]], 4)
    assert number_of_sequences(chain, n).tolist() == [1]
    pairs, n = one([[0, 1], [2, 3], [4, 5]], 6)
    assert number_of_sequences(pairs, n).tolist() == [6]
    nothing, n = one([], 6)
    assert number_of_sequences(nothing, n).tolist() == [1]
    # 127 merges of a balanced tree: too many for an integer, not for a logarithm
    level, merges = list(range(128)), []
    while len(level) > 1:
        merges += [level[i : i + 2] for i in range(0, len(level), 2)]
        level = list(range(128 + len(merges) - len(level) // 2, 128 + len(merges)))
    expected = math.lgamma(128) - sum(
        2**depth * math.log(2 ** (7 - depth) - 1) for depth in range(7)
    )
    assert float(log_number_of_sequences(*one(merges, 128))) == pytest.approx(expected)


def test_the_144_sequences_of_four_tokens_make_120_trees():
    counts = number_of_sequences(SEQUENCES, FOUR)
    assert Counter(counts.tolist()) == {1.0: 96, 2.0: 48}  # 96 combs; 24 of two pairs, twice
    assert float((1 / counts).sum()) == pytest.approx(120)
    assert len(set(TREES)) == 120


def test_merges_that_are_no_forest_are_named():
    merges = SEQUENCES[:3].clone()
    merges[1, 1] = merges[1, 0]
    for function in (number_of_sequences, all_sequences, number_of_states, forest_states):
        with pytest.raises(ValueError, match=r"sample 1 are not a forest .* merge 1 is"):
            function(merges, FOUR[:3])


# ---------------------------------------------------------------- drawing


@pytest.mark.parametrize(
    ("merges", "n"),
    [
        (COMB, 8),
        ([[0, 1], [2, 3], [4, 5]], 6),
        ([[0, 1], [2, 3], [4, 6], [7, 8]], 6),
        ([[0, 1], [6, 2], [3, 4], [7, 8], [9, 5]], 6),
    ],
    ids=["three pairs joined", "three pairs", "partial", "unequal"],
)
def test_sequences_are_drawn_uniformly(merges, n):
    merges, num_leaves = one(merges, n)
    listed, _ = all_sequences(merges, num_leaves)
    count = 400 * len(listed)
    drawn = uniform_sequences(merges.expand(count, -1, -1), num_leaves.expand(count), generator(3))
    found = Counter(map(str, drawn.tolist()))
    assert set(found) == set(map(str, listed.tolist()))
    assert chisquare(list(found.values())).pvalue > 0.01


@given(forests(max_slots=12), st.integers(0, 99))
def test_drawn_sequences_make_the_same_ordered_trees(drawn: Drawn, seed):
    found = uniform_sequences(drawn.merges, drawn.num_leaves, generator(seed))
    for row, forest in enumerate(drawn.plain):
        before = MergeTree(drawn.merges[row].numpy(), forest.n)
        after = MergeTree(found[row].numpy(), forest.n)
        assert str(after) == str(before) or set(str(after).split(" | ")) == set(
            str(before).split(" | ")
        )
    again = uniform_sequences(drawn.merges, drawn.num_leaves, generator(seed))
    assert torch.equal(found, again)


# ---------------------------------------------------------------- weights of trees


def table_of(log_prob: torch.Tensor):
    """``sequence_log_prob`` of a policy on four tokens that is a table."""

    def sequence_log_prob(merges: torch.Tensor, episode: torch.Tensor) -> torch.Tensor:
        assert len(merges) == len(episode)
        rows = torch.tensor([WHERE[str(sequence)] for sequence in merges.tolist()])
        return log_prob.sum(1)[rows]

    return sequence_log_prob


def trees(log_prob: torch.Tensor) -> torch.Tensor:
    """``(144,)`` the log-probability of the tree of each sequence."""
    return tree_log_prob(SEQUENCES, FOUR, table_of(log_prob), generator())


def test_the_probabilities_of_all_trees_sum_to_one():
    found = dict(zip(TREES, trees(PI).exp().tolist(), strict=True))
    assert sum(found.values()) == pytest.approx(1)
    by_tree: dict = defaultdict(float)
    for tree, chance in zip(TREES, PI.sum(1).exp().tolist(), strict=True):
        by_tree[tree] += chance
    assert found == pytest.approx(by_tree)


def test_the_ratio_of_trees_has_the_same_mean_and_no_more_variance():
    by_sequence = (PI - MU).sum(1).exp()
    by_tree = (trees(PI) - trees(MU)).exp()
    score = {tree: float(torch.randn((), generator=generator(i))) for i, tree in enumerate(TREES)}
    earned = torch.tensor([score[tree] for tree in TREES], dtype=torch.float64)
    truth = expectation(PI, earned)
    for weights in (by_sequence, by_tree):
        assert float(expectation(MU, weights)) == pytest.approx(1)
        assert float(expectation(MU, weights * earned)) == pytest.approx(float(truth))
    variances = [
        float(expectation(MU, (weights * earned - truth).square()))
        for weights in (by_sequence, by_tree)
    ]
    # Law of total variance: what is left over is the variance of sequences within trees.
    within = float(expectation(MU, ((by_sequence - by_tree) * earned).square()))
    assert variances[0] == pytest.approx(variances[1] + within)
    assert within > 0.01
    # and the tree's ratio is the conditional mean of the sequences' ratios
    for tree in set(TREES):
        rows = [row for row, other in enumerate(TREES) if other == tree]
        chance = MU.sum(1).exp()[rows]
        mean = (chance * by_sequence[rows]).sum() / chance.sum()
        assert float(mean) == pytest.approx(float(by_tree[rows[0]]))


def test_the_same_policy_has_weights_of_one():
    assert torch.equal((trees(MU) - trees(MU)).exp(), torch.ones(144, dtype=torch.float64))


def test_many_drawn_sequences_come_near_the_exact_value():
    row = next(
        row
        for row, tree in enumerate(TREES)
        if number_of_sequences(SEQUENCES[row : row + 1], FOUR[:1])[0] == 2
    )
    merges, n = SEQUENCES[row : row + 1], FOUR[:1]
    both, _ = all_sequences(merges, n)
    chances = table_of(PI)(both, torch.zeros(2)).exp()
    estimates = torch.stack(
        [
            tree_log_prob(merges, n, table_of(PI), generator(seed), exact_up_to=3, sequences=1)[0]
            for seed in range(400)
        ]
    ).exp()
    # One sequence, times the two there are: twice the chance of either, half of the time each.
    values = sorted({round(float(value), 9) for value in estimates})
    assert values == sorted(round(2 * float(chance), 9) for chance in chances)
    spread = float((chances[0] - chances[1]).abs()) / math.sqrt(400)
    assert abs(float(estimates.mean() - chances.sum())) < 4 * spread


def test_few_sequences_are_listed_and_not_drawn():
    """A chain of nine has one sequence, two trees of eight have eight: no draw, no error."""
    chain = [[0, 1], *([8 + step, step + 2] for step in range(6))]
    merges = torch.tensor([chain, COMB])

    def uniform(sequences: torch.Tensor, episode: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(8, 1, -1).double()
        return -(steps * (steps - 1)).log().sum().expand(len(episode))

    found = tree_log_prob(merges, torch.tensor([8, 8]), uniform, generator(), sequences=8)
    each = 1 / (math.factorial(8) * math.factorial(7))
    assert found.exp().tolist() == pytest.approx([each, 8 * each])
    # and for a policy to which all sequences are alike, draws are exact too
    drawn = tree_log_prob(merges, torch.tensor([8, 8]), uniform, generator(), sequences=3)
    assert drawn.exp().tolist() == pytest.approx([each, 8 * each])


def test_what_the_callable_gives_is_checked_and_differentiated():
    with pytest.raises(ValueError, match=r"gave \(2, 2\) for 192 sequences"):  # 96 + 2 * 48
        tree_log_prob(SEQUENCES, FOUR, lambda merges, episode: torch.zeros(2, 2), generator())
    with pytest.raises(ValueError, match="sequences is 0"):
        tree_log_prob(SEQUENCES, FOUR, table_of(PI), generator(), sequences=0)
    # d log(p + q) / d log p = p / (p + q)
    pair = next(r for r in range(144) if number_of_sequences(SEQUENCES[r : r + 1], FOUR[:1]) == 2)
    log_prob = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    found = tree_log_prob(
        SEQUENCES[pair : pair + 1], FOUR[:1], lambda merges, episode: log_prob, generator()
    )
    found.sum().backward()
    share = math.exp(-1) / (math.exp(-1) + math.exp(-2))
    assert log_prob.grad.tolist() == pytest.approx([share, 1 - share])


# ---------------------------------------------------------------- over the forests on the way


def random_scores(batch: int, nodes: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    drawn = torch.randn(batch, nodes, nodes, generator=generator(seed), dtype=torch.float64)
    return drawn * spread


def steps_log_prob(scores: torch.Tensor, merges: list, n: int, names: list) -> float:
    """The log-probability of one sequence under a softmax over the scores of pairs, in loops.

    ``names`` are the numbers in ``scores`` of the nodes that the merges make.
    """
    number = {leaf: leaf for leaf in range(n)}
    active, total = set(range(n)), 0.0
    for step, (first, second) in enumerate(merges):
        pairs = [(a, b) for a in active for b in active if a != b]
        weights = {(a, b): float(scores[number[a], number[b]]) for a, b in pairs}
        top = max(weights.values())
        total += weights[first, second] - top
        total -= math.log(sum(math.exp(weight - top) for weight in weights.values()))
        active -= {first, second}
        active.add(n + step)
        number[n + step] = names[step]
    return total


@settings(max_examples=25)
@given(forests(max_slots=6, max_batch=3, smallest=2), st.integers(0, 99), st.sampled_from([1, 400]))
def test_the_sum_over_forests_is_that_over_sequences(drawn: Drawn, seed, spread):
    merges, num_leaves = drawn.merges, drawn.num_leaves
    scores = random_scores(len(merges), 2 * merges.shape[1] + 1, seed, spread)
    states = forest_states(merges, num_leaves)
    counts = torch.bincount(states.episode, minlength=len(merges))
    assert counts.tolist() == number_of_states(merges, num_leaves).tolist()
    found = tree_log_prob_by_states(states, pairwise_log_prob(states, merges, scores))
    for row, forest in enumerate(drawn.plain):
        made = [pair for pair in merges[row].tolist() if pair[0] >= 0]
        total = []
        for order in permutations(range(len(made))):
            names, sequence = {leaf: leaf for leaf in range(forest.n)}, []
            if any(
                node >= forest.n and order.index(node - forest.n) > order.index(merge)
                for merge, pair in enumerate(made)
                for node in pair
            ):
                continue
            for merge in order:
                sequence.append(tuple(names[node] for node in made[merge]))
                names[forest.n + merge] = forest.n + len(sequence) - 1
            numbers = [forest.n + merge for merge in order]
            total.append(steps_log_prob(scores[row], sequence, forest.n, numbers))
        expected = float(torch.tensor(total, dtype=torch.float64).logsumexp(0))
        assert float(found[row]) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_forests_of_the_trees_that_the_docstring_names():
    level, merges = list(range(15)), []
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level) - 1, 2)]
        new = list(range(15 + len(merges), 15 + len(merges) + len(pairs)))
        merges += pairs
        level = new + level[2 * len(pairs) :]
    merges, n = one(merges, 15)
    assert number_of_states(merges, n).tolist() == [417]
    assert number_of_sequences(merges, n).tolist() == [2_745_600]
    states = forest_states(merges, n)
    assert len(states.episode) == 417
    # n - k active nodes after k merges, and 1 at last
    assert (states.active.sum(1) >= 1).all()
    assert int(states.active[states.last[0]].sum()) == 1
    chain, n = one([[0, 1], *([9 + step, step + 2] for step in range(7))], 9)
    assert number_of_states(chain, n).tolist() == [9]


def test_the_probabilities_of_all_trees_sum_to_one_over_forests_too():
    """All 144 sequences of four tokens, one table of scores for whatever nodes they make."""
    scores = {}

    def score(first: str, second: str) -> float:
        if (first, second) not in scores:
            scores[first, second] = float(torch.randn((), generator=generator(len(scores))))
        return scores[first, second]

    table = torch.zeros(144, 7, 7, dtype=torch.float64)
    for row, sequence in enumerate(SEQUENCES.tolist()):
        names = [str(leaf) for leaf in range(4)]
        for first, second in sequence:
            names.append(f"({names[first]} {names[second]})")
        for i in range(7):
            for j in range(7):
                table[row, i, j] = score(names[i], names[j])
    states = forest_states(SEQUENCES, FOUR)
    log_prob = tree_log_prob_by_states(states, pairwise_log_prob(states, SEQUENCES, table))
    by_tree = dict(zip(TREES, log_prob.exp().tolist(), strict=True))
    assert sum(by_tree.values()) == pytest.approx(1)


def test_it_is_differentiable():
    merges, n = one([[0, 1], [2, 3], [4, 5]], 4)
    scores = random_scores(1, 7, 0).requires_grad_()

    def log_prob(scores: torch.Tensor) -> torch.Tensor:
        states = forest_states(merges, n)
        return tree_log_prob_by_states(states, pairwise_log_prob(states, merges, scores))

    assert torch.autograd.gradcheck(log_prob, (scores,))


def test_too_many_merges_are_refused():
    n = 42
    chain = [[0, 1], *([n + step, step + 2] for step in range(n - 2))]
    with pytest.raises(ValueError, match="trees of 41 merges; expected at most 40"):
        forest_states(*one(chain, n))


def test_the_tree_of_a_random_sequence_is_counted_once():
    """Sequences of five tokens: as many trees as 1/count says, by another enumeration."""
    merges = all_merge_sequences(5)
    counts = number_of_sequences(merges, torch.full((len(merges),), 5))
    assert float((1 / counts).sum()) == pytest.approx(1680)  # 5! times the Catalan number 14
