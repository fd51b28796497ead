"""Annealing over trees of known costs, against all trees of few tokens."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents.evaluation.evaluate import root_errors
from agents.evaluation.search import improved
from agents.fixed import fixed_policy
from agents.search import Numbers, numbers_of
from agents.search.annealing import Annealing
from htm_env.forest import check_merges
from htm_env.known import KnownMerger
from htm_env.rewards import CountedReward, MergeReward
from htm_env.types import TokenBatch

Tree = int | tuple["Tree", "Tree"]


class Sum:
    commutative = associative = True

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second


class OrderedSum(Sum):
    """A set of leaves says what is made of it, but not in which order."""

    commutative = False


class Mean(Sum):
    """The order within a pair means nothing, the tree below it does."""

    associative = False

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.sin(first + second)


class Chained:
    """Order and tree mean something."""

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.sin(2 * first - second)


RULES = [Sum(), OrderedSum(), Mean(), Chained()]


class Waves(MergeReward):
    """A reward that no rule of thumb maximises; the root's counts double."""

    commutative = True

    def of_merges(self, first: Tensor, second: Tensor, merged: Tensor, last: Tensor) -> Tensor:
        values = torch.sin(3 * (first * second).sum(1)) + torch.cos(2 * merged[:, 0])
        return values * torch.where(last, 2.0, 1.0)


class Turned(Waves):
    """The same, and the order within a pair matters."""

    def of_merges(self, first: Tensor, second: Tensor, merged: Tensor, last: Tensor) -> Tensor:
        return super().of_merges(first, second, merged, last) + torch.sin(first - second)[:, 0]


def reward_for(rule: object) -> MergeReward:
    return Waves() if getattr(rule, "commutative", False) else Turned()


def model_of(rule: object, reward: MergeReward | None = None) -> KnownMerger:
    return KnownMerger(3, rule, (reward or reward_for(rule)).merge_costs)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def token_batch(sizes: list[int], seed: int = 0, slots: int | None = None) -> TokenBatch:
    slots = max(2, *sizes) if slots is None else slots
    present = torch.arange(slots) < torch.tensor(sizes)[:, None]
    tokens = torch.randn(len(sizes), max(sizes), 3, generator=drawn(seed))
    tokens = torch.cat([tokens, tokens.new_zeros(len(sizes), slots - max(sizes), 3)], dim=1)
    merges = torch.full((len(sizes), slots - 1, 2), -1)
    clades = torch.zeros(len(sizes), 0, slots, dtype=torch.bool)
    return TokenBatch(tokens * present[..., None], present, clades, merges)


def searched(
    model: KnownMerger, batch: TokenBatch, evaluations: int, numbers: Numbers | None = None
) -> tuple[Tensor, Tensor]:
    """Random trees, and what the search makes of them."""
    start = fixed_policy("random", model).plan(batch, drawn())
    numbers = numbers or numbers_of(drawn(1), len(start))
    return start, Annealing(model, evaluations)(batch, start[:, None], numbers).merges


def costs_of(model: KnownMerger, batch: TokenBatch, merges: Tensor) -> Tensor:
    return root_errors(model, batch._replace(tokens=batch.tokens.double()), merges, torch.ones(3))


def trees_over(leaves: tuple[int, ...], *, both: bool) -> Iterator[Tree]:
    if len(leaves) == 1:
        yield leaves[0]
    for size in range(1, len(leaves)):
        for some in combinations(leaves, size):
            if both or leaves[0] in some:
                rest = tuple(leaf for leaf in leaves if leaf not in some)
                for one in trees_over(some, both=both):
                    for other in trees_over(rest, both=both):
                        yield one, other


def merges_of(tree: Tree, num_leaves: int) -> list[list[int]]:
    made: list[list[int]] = []

    def node_of(part: Tree) -> int:
        if isinstance(part, int):
            return part
        made.append([node_of(part[0]), node_of(part[1])])
        return num_leaves + len(made) - 1

    node_of(tree)
    return made


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_enough_evaluations_find_the_best_of_all_trees(rule):
    model = model_of(rule)
    leaves = 5 if model.associative else 4
    every = list(trees_over(tuple(range(leaves)), both=not model.commutative))
    trees = torch.tensor([merges_of(tree, leaves) for tree in every])
    unordered = {4: 15, 5: 105}[leaves]
    assert len(trees) == unordered * (1 if model.commutative else 2 ** (leaves - 1))
    batch = token_batch([leaves] * 3)
    _, found = searched(model, batch, 1500 if model.associative else 1000)
    check_merges(found, batch.num_tokens)
    for row, cost in enumerate(costs_of(model, batch, found).tolist()):
        copies = batch.rows(torch.full((len(trees),), row))
        assert cost == pytest.approx(float(costs_of(model, copies, trees).min()), abs=1e-9)


@settings(max_examples=10)
@given(
    rule=st.sampled_from(RULES),
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    evaluations=st.integers(0, 50),
    seed=st.integers(0, 100),
)
def test_the_budget_holds_and_no_tree_ends_worse(rule, sizes, evaluations, seed):
    for row in range(len(sizes)):  # alone, so that its evaluations are counted apart
        batch = token_batch(sizes, seed).rows(slice(row, row + 1))
        counted = CountedReward(reward_for(rule))
        start, found = searched(model_of(rule, counted), batch, evaluations)
        assert counted.count <= evaluations
        check_merges(found, batch.num_tokens)
        model = model_of(rule)
        before, after = (costs_of(model, batch, merges) for merges in (start, found))
        assert after.item() <= before.item() + 1e-9
        if not torch.equal(start, found):
            assert after.item() < before.item()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_more_evaluations_never_end_worse(rule):
    model, batch = model_of(rule), token_batch([12] * 8)
    budgets = [10, 11, 14, 25, 50, 100]
    costs = torch.stack([costs_of(model, batch, searched(model, batch, n)[1]) for n in budgets])
    assert (costs.diff(dim=0) <= 1e-9).all()
    assert costs[-1].mean() < costs[0].mean() - 1
    assert torch.equal(costs[0], costs[1])  # eleven merges are the given tree's


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_sample_depends_on_its_own_row_alone_and_not_on_empty_slots(rule):
    model, sizes = model_of(rule), [3, 9, 1]
    batch, wider = token_batch(sizes), token_batch(sizes, slots=12)
    numbers = torch.rand(len(sizes), 4000, generator=drawn(3), dtype=torch.float64)

    def of(*rows: int) -> Numbers:
        parts = iter(numbers[list(rows)].split(128, dim=1))
        return lambda count: next(parts)

    start, together = searched(model, batch, 60, of(*range(len(sizes))))
    assert not torch.equal(start, together)
    _, again = searched(model, batch, 60, of(*range(len(sizes))))
    assert torch.equal(together, again)
    _, padded = searched(model, wider, 60, of(*range(len(sizes))))
    assert torch.equal(padded[:, :8], together)
    assert (padded[:, 8:] == -1).all()
    for row in range(len(sizes)):
        one, begun = batch.rows(slice(row, row + 1)), start[row : row + 1]
        assert torch.equal(
            Annealing(model, 60)(one, begun[:, None], of(row)).merges[0], together[row]
        )


def test_merges_of_trees_that_were_never_visited_are_put_together():
    """With few evaluations of many tokens, the trellis goes beyond the best tree visited: without
    it (a merger that does not say that it is associative) the same merges cost more."""

    class Unsaid(Sum):
        associative = False

    batch = token_batch([16] * 20)
    joined, visited = (
        costs_of(model_of(Sum()), batch, searched(model_of(rule), batch, 100)[1]).mean()
        for rule in (Sum(), Unsaid())
    )
    assert joined < visited


def test_any_planner_is_improved_where_the_merger_is_known():
    class Chain:
        autoencoder, std = model_of(Sum()), torch.ones(3)

        def plan(self, batch: TokenBatch, generator: torch.Generator, *, greedy: bool) -> Tensor:
            chain = torch.tensor([[0, 1], [5, 2], [6, 3], [7, 4]])
            return chain.expand(len(batch.tokens), -1, -1)

    batch, chain = token_batch([5] * 4), Chain()
    model = chain.autoencoder
    plain = chain.plan(batch, drawn(), greedy=True)
    found = improved(chain, 100).plan(batch, drawn(), greedy=True)
    assert (costs_of(model, batch, found) < costs_of(model, batch, plain)).all()
    assert torch.equal(improved(chain, 100).plan(batch, drawn(), greedy=False), plain)
    assert improved(chain, 0) is chain
