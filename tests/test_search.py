"""Local search over whole trees under an autoencoder."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents.evaluation.evaluate import root_errors
from agents.fixed import fixed_policy
from agents.search import Found, LocalMoves, numbers_of
from agents.search.errors import TreeErrors
from agents.search.places import MOVES, exchanged, merges_in, places_of, regrafted, turned
from htm_env.autoencoder import HTMAutoencoder
from htm_env.forest import check_merges
from htm_env.trees.merge_tree import MergeTree
from htm_env.types import TokenBatch

SIZES = [1, 2, 3, 5, 8, 5]
MODEL = HTMAutoencoder(2, 6, 16, generator=torch.Generator().manual_seed(0))
"""Untrained: its errors differ from tree to tree, which is all that is needed."""


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def token_batch(sizes: list[int], seed: int = 0, slots: int | None = None) -> TokenBatch:
    slots = max(sizes) if slots is None else slots
    present = torch.arange(slots) < torch.tensor(sizes)[:, None]
    tokens = torch.randn(len(sizes), max(sizes), 2, generator=drawn(seed))
    tokens = torch.cat([tokens, tokens.new_zeros(len(sizes), slots - max(sizes), 2)], dim=1)
    merges = torch.full((len(sizes), slots - 1, 2), -1)
    clades = torch.zeros(len(sizes), 0, slots, dtype=torch.bool)
    return TokenBatch(tokens * present[..., None], present, clades, merges)


def random_trees(batch: TokenBatch, count: int = 1, seed: int = 0) -> Tensor:
    planner, generator = fixed_policy("random", MODEL), drawn(seed)
    return torch.stack([planner.plan(batch, generator) for _ in range(count)], dim=1)


def errors_of(batch: TokenBatch, merges: Tensor) -> Tensor:
    return root_errors(MODEL, batch, merges, MODEL.token_std)


def newicks(merges: Tensor, sizes: list[int]) -> list[str]:
    return [MergeTree(one.numpy(), size).newick() for one, size in zip(merges, sizes, strict=True)]


def search(
    batch: TokenBatch, starts: Tensor, evaluations: int, uniforms: Tensor | None = None
) -> Found:
    numbers = numbers_of(drawn(1), len(starts))
    if uniforms is not None:
        parts = iter(uniforms.split(128, dim=1))

        def numbers(count: int) -> Tensor:
            return next(parts)

    return LocalMoves(MODEL, MODEL.token_std, evaluations)(batch, starts, numbers)


# ---------------------------------------------------------------- trees and moves


@given(seed=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_places_hold_the_tree(seed):
    batch = token_batch(SIZES, seed)
    (merges,) = random_trees(batch, 1, seed).unbind(1)
    again = merges_in(places_of(merges, batch.num_tokens), batch.num_tokens)
    check_merges(again, batch.num_tokens)
    assert newicks(again, SIZES) == newicks(merges, SIZES)


def neighbours(move, merges: list[list[int]], size: int) -> set[str]:
    """The trees that one kind of move makes of a tree."""
    repeated = torch.tensor([merges]).repeat(400, 1, 1)
    num_leaves = torch.full((400,), size)
    trees = places_of(repeated, num_leaves)
    made = move(trees, num_leaves, torch.rand(400, 2, generator=drawn(), dtype=torch.float64))
    assert made.legal.any()
    after = made.rows(made.legal).applied(trees[made.legal])
    found = merges_in(after, num_leaves[made.legal]).unique(dim=0)
    check_merges(found, num_leaves[: len(found)])
    return set(newicks(found, [size] * len(found)))


def test_moves_make_their_neighbours_and_no_others():
    pairs = [[0, 1], [2, 3], [4, 5]]  # ((0,1),(2,3))
    assert neighbours(turned, pairs, 4) == {"((1,0),(2,3));", "((0,1),(3,2));", "((2,3),(0,1));"}
    leaves = {"((2,1),(0,3));", "((3,1),(2,0));", "((0,2),(1,3));", "((0,3),(2,1));"}
    with_pairs = {"(((2,3),1),0);", "((0,(2,3)),1);", "(2,((0,1),3));", "(3,(2,(0,1)));"}
    assert neighbours(exchanged, pairs, 4) == leaves | with_pairs
    chain = [[0, 1], [3, 2]]  # ((0,1),2)
    assert neighbours(turned, chain, 3) == {"((1,0),2);", "(2,(0,1));"}
    assert neighbours(exchanged, chain, 3) == {"((2,1),0);", "((0,2),1);"}
    # 0 comes before 2 or (1,2), 1 comes after 2 or (0,2), and 2 after 0 or 1.
    assert neighbours(regrafted, chain, 3) == {
        "(1,(0,2));",
        "(0,(1,2));",
        "(0,(2,1));",
        "((0,2),1);",
    }


@given(seed=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_a_changed_tree_has_the_error_of_the_whole_tree(seed):
    batch = token_batch(SIZES, seed)
    errors = TreeErrors(MODEL, batch, MODEL.token_std)
    trees = places_of(random_trees(batch, 1, seed)[:, 0], batch.num_tokens)
    found, nodes = errors.of(trees)
    rows, generator = torch.arange(len(trees)), drawn(seed)
    for step in range(9):
        draws = torch.rand(len(trees), 2, generator=generator, dtype=torch.float64)
        move = MOVES[step % len(MOVES)](trees, batch.num_tokens, draws)
        some = rows[move.legal]
        if not len(some):
            continue
        trees[some] = move.rows(some).applied(trees[some])
        embeddings = nodes[some]
        changed = move.rows(some).changed(nodes.shape[1])
        found[some] = errors.after(trees[some], embeddings, changed, some)
        nodes[some] = embeddings
    expected = errors_of(batch, merges_in(trees, batch.num_tokens))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- search


def test_no_tree_ends_worse_than_its_starts_and_more_evaluations_end_no_worse():
    batch = token_batch(SIZES)
    starts = random_trees(batch, 3)
    before = torch.stack([errors_of(batch, start) for start in starts.unbind(1)], dim=1)
    last = torch.full_like(before[:, 0], torch.inf)
    for budget in (1, 2, 3, 10, 40, 160):
        found = search(batch, starts, budget)
        check_merges(found.merges, batch.num_tokens)
        torch.testing.assert_close(found.errors, errors_of(batch, found.merges))
        torch.testing.assert_close(found.start_errors, before[:, :budget])
        assert (found.errors <= found.start_errors.amin(1)).all()
        assert (found.errors <= last).all()
        last = found.errors
    assert torch.equal(found.merges[0], starts[0, 0])
    assert (last[2:] < before[2:].amin(1)).all()


def test_a_sample_is_searched_by_its_own_numbers_whatever_is_beside_it():
    batch, starts = token_batch(SIZES), random_trees(token_batch(SIZES), 2)
    uniforms = torch.rand(len(SIZES), 4000, generator=drawn(1), dtype=torch.float64)
    together = search(batch, starts, 60, uniforms)
    for row in (2, 4):
        alone = search(batch.rows(slice(row, row + 1)), starts[row:][:1], 60, uniforms[row:][:1])
        assert torch.equal(alone.merges[0], together.merges[row])
    wider = torch.full((len(SIZES), 2, 4, 2), -1)
    padded = search(token_batch(SIZES, slots=12), torch.cat([starts, wider], dim=2), 60, uniforms)
    assert torch.equal(padded.merges[:, :7], together.merges)


@pytest.mark.parametrize("evaluations", [1, 2, 7, 30])
def test_the_budget_is_the_number_of_trees_that_are_decoded(evaluations):
    decoded = []
    handle = MODEL.unlifter.register_forward_hook(lambda *call: decoded.append(len(call[1][0])))
    search(token_batch([6, 6]), random_trees(token_batch([6, 6]), 2), evaluations)
    handle.remove()
    assert sum(decoded) == evaluations * 2 * 6


def test_a_search_without_evaluations_is_refused():
    with pytest.raises(ValueError, match="evaluations is 0"):
        LocalMoves(MODEL, MODEL.token_std, 0)
