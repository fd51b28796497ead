"""Searches by a known reward: greedy, beams and the exact one, against plain loops over trees."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents.fixed import fixed_policy, fixed_rule
from agents.fixed.exact import LARGEST, exact_tree
from htm_env.forest import check_merges
from htm_env.known import KnownMerger
from htm_env.rewards import CountedReward, MergeReward
from htm_env.types import TokenBatch

Tree = int | tuple["Tree", "Tree"]


class Sum:
    commutative = associative = True

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second


class Chained:
    """A merger for which order within pairs and the tree below matter."""

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.sin(2 * first - second)


class Waves(MergeReward):
    """A reward that no rule of thumb maximises; the root's counts double."""

    def of_merges(self, first: Tensor, second: Tensor, merged: Tensor, last: Tensor) -> Tensor:
        values = torch.sin(3 * (first * second).sum(1)) + torch.cos(2 * merged[:, 0])
        return values * torch.where(last, 2.0, 1.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def token_batch(sizes: list[int], seed: int = 0, slots: int | None = None) -> TokenBatch:
    slots = max(2, *sizes) if slots is None else slots
    present = torch.arange(slots) < torch.tensor(sizes)[:, None]
    tokens = torch.randn(len(sizes), slots, 3, generator=generator(seed)) * present[..., None]
    merges = torch.full((len(sizes), slots - 1, 2), -1)
    return TokenBatch(tokens, present, torch.zeros(len(sizes), 0, slots, dtype=torch.bool), merges)


KNOWN = KnownMerger(3, Sum(), Waves().merge_costs)
ORDERED = KnownMerger(3, Chained(), Waves().merge_costs)


# ---------------------------------------------------------------- the plain loops


def evaluated(model: KnownMerger, tokens: Tensor, tree: Tree, last: bool) -> tuple[Tensor, float]:
    """The embedding of a tree's root, and the summed reward of its merges."""
    if isinstance(tree, int):
        return tokens[tree], 0.0
    (first, one), (second, other) = (evaluated(model, tokens, part, False) for part in tree)
    merged = model.rule(first[None], second[None])
    made = Waves().of_merges(first[None], second[None], merged, torch.tensor([last]))
    return merged[0], one + other + float(made)


def return_of(model: KnownMerger, tokens: Tensor, tree: Tree) -> float:
    return evaluated(model, tokens.double(), tree, last=True)[1]


def nested(merges: Tensor, n: int) -> Tree:
    nodes: list[Tree] = list(range(n))
    for first, second in merges[: n - 1].tolist():
        nodes.append((nodes[first], nodes[second]))
    return nodes[-1]


def all_trees(leaves: list[int]) -> Iterator[Tree]:
    """Every unordered binary tree over these leaves: (2 n - 3)!! of them."""
    if len(leaves) == 1:
        yield leaves[0]
        return
    first, *rest = leaves
    for size in range(len(rest)):
        for with_first in combinations(rest, size):
            others = [leaf for leaf in rest if leaf not in with_first]
            for left in all_trees([first, *with_first]):
                for right in all_trees(others):
                    yield left, right


def canonical(tree: Tree, model: KnownMerger) -> Tree:
    """One of the trees that are equal: under a commutative merger order within pairs is nothing."""
    if isinstance(tree, int):
        return tree
    first, second = (canonical(part, model) for part in tree)
    return (
        (first, second) if not model.commutative or str(first) <= str(second) else (second, first)
    )


def beam_by_loops(model: KnownMerger, tokens: Tensor, width: int) -> float:
    """The return of the best tree of a beam search whose forests are sets of trees."""
    beam: list[frozenset[Tree]] = [frozenset(range(len(tokens)))]
    for _ in range(len(tokens) - 1):
        last = len(beam[0]) == 2
        outcomes = {
            forest - {first, second} | {canonical((first, second), model)}
            for forest in beam
            for first, second in permutations(forest, 2)
        }

        def summed(forest: frozenset[Tree], last: bool = last) -> float:
            return sum(evaluated(model, tokens.double(), tree, last)[1] for tree in forest)

        beam = sorted(outcomes, key=summed, reverse=True)[:width]
    return return_of(model, tokens, *beam[0])


def returns(name: str, model: KnownMerger, batch: TokenBatch) -> list[float]:
    merges = fixed_policy(name, model).plan(batch, generator())
    check_merges(merges, batch.num_tokens)
    assert ((merges[..., 0] >= 0).sum(1) == batch.num_tokens - 1).all()
    return [
        return_of(model, batch.tokens[row], nested(merges[row], n))
        for row, n in enumerate(batch.num_tokens.tolist())
    ]


# ---------------------------------------------------------------- greedy, beams


@pytest.mark.parametrize("model", [KNOWN, ORDERED], ids=["commutative", "ordered"])
@pytest.mark.parametrize("name", ["greedy", "beam", "beam_2", "beam_11"])
def test_beams_equal_the_plain_loop(name, model):
    batch = token_batch([5, 4, 6, 2, 3, 1], seed=7)
    width = fixed_rule(name).shape.width
    expected = [
        beam_by_loops(model, batch.tokens[row, :n], width)
        for row, n in enumerate(batch.num_tokens.tolist())
    ]
    assert returns(name, model, batch) == pytest.approx(expected, abs=1e-9)


def test_the_trees_of_an_ordered_merger_are_better_for_its_order():
    batch = token_batch([6] * 20)
    turned = [
        return_of(ORDERED, batch.tokens[row], nested(merges.flip(-1), 6))
        for row, merges in enumerate(fixed_policy("beam", ORDERED).plan(batch, generator()))
    ]
    assert sum(returns("beam", ORDERED, batch)) > sum(turned) + 20


@pytest.mark.parametrize(("model", "pairs"), [(KNOWN, 1), (ORDERED, 2)])
def test_greedy_evaluates_every_pair_once(model, pairs):
    """``n (n - 1) / 2`` unordered pairs at first, then those of each parent with the others:
    ``(n - 1)^2`` in all."""
    reward = CountedReward(Waves())
    counted = KnownMerger(3, model.rule, reward.merge_costs)
    fixed_policy("greedy", counted).plan(token_batch([2, 5, 9]), generator())
    assert reward.count == pairs * (1 + 16 + 64)


def test_a_beam_wider_than_there_are_forests_evaluates_none_twice():
    """Four tokens: 6 pairs, then 6 forests of three trees with 2 new pairs each, then 15 forests of
    two trees with 1 each (12 with a tree of three, and 3 of two pairs)."""
    reward = CountedReward(Waves())
    counted = KnownMerger(3, Sum(), reward.merge_costs)
    fixed_policy("beam_1000", counted).plan(token_batch([4]), generator())
    assert reward.count == 6 + 6 * 2 + 15


def test_rewards_that_are_no_numbers_still_give_legal_trees():
    nothing = KnownMerger(3, Sum(), lambda first, *_: first[:, 0] * torch.nan)
    batch = token_batch([6, 3])
    for name in ("greedy", "beam_20", "exact"):
        check_merges(fixed_policy(name, nothing).plan(batch, generator()), batch.num_tokens)


# ---------------------------------------------------------------- exact


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_exact_equals_the_best_of_all_trees(n):
    batch = token_batch([n] * (8 if n < 6 else 3), seed=n)
    best = [
        max(return_of(KNOWN, row, tree) for tree in all_trees(list(range(n))))
        for row in batch.tokens
    ]
    assert returns("exact", KNOWN, batch) == pytest.approx(best, abs=1e-9)


def test_there_are_as_many_trees_as_there_should_be():
    counts = [len(set(map(str, all_trees(list(range(n)))))) for n in range(1, 7)]
    assert counts == [1, 1, 3, 15, 105, 945]


@settings(max_examples=10)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 2**16))
def test_exact_is_never_below_a_beam_whatever_shares_the_batch(sizes, seed):
    batch = token_batch(sizes, seed, slots=12)
    exact = returns("exact", KNOWN, batch)
    for row in range(len(sizes)):
        (alone,) = returns(
            "exact", KNOWN, token_batch(sizes, seed, slots=12).rows(torch.tensor([row]))
        )
        assert alone == pytest.approx(exact[row], abs=1e-12)
    beam = returns("beam_20", KNOWN, batch)
    assert all(best >= other - 1e-9 for best, other in zip(exact, beam, strict=True))


def test_exact_is_never_below_a_beam_of_100_at_its_largest():
    batch = token_batch([10, 11, 11, 11], seed=3)
    exact, beam = returns("exact", KNOWN, batch), returns("beam_100", KNOWN, batch)
    assert all(best >= other - 1e-9 for best, other in zip(exact, beam, strict=True))
    assert sum(exact) > sum(returns("greedy", KNOWN, batch)) + 1


def test_exact_evaluates_every_split_of_every_set_once():
    """``(3^n + 1) / 2 - 2^n``: 1 for two tokens, 6 for three, 25 for four."""
    for n, count in [(2, 1), (3, 6), (4, 25), (8, 3025)]:
        reward = CountedReward(Waves())
        fixed_policy("exact", KnownMerger(3, Sum(), reward.merge_costs)).plan(
            token_batch([n]), generator()
        )
        assert reward.count == count == (3**n + 1) // 2 - 2**n


def test_exact_refuses_too_many_tokens_and_what_is_no_function_of_sets():
    batch = token_batch([4, LARGEST + 1])
    with pytest.raises(
        ValueError, match="sample 1 has 12 tokens; the exact search takes at most 11"
    ):
        fixed_policy("exact", KNOWN).plan(batch, generator())
    assert exact_tree(batch, KNOWN, generator(), largest=12).shape == (2, 11, 2)
    for model in (ORDERED, KnownMerger(3, Chained())):
        with pytest.raises(
            ValueError, match="exact cannot plan with KnownMerger; expected a known"
        ):
            fixed_policy("exact", model).plan(batch, generator())
