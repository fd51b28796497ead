"""Several trees of each sample from a policy: drawn without replacement, and its beam."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
import torch
from torch import Tensor

from agents.networks.context import make_policy
from agents.rollouts.distinct_trees import DistinctTrees, distinct_trees
from agents.rollouts.rollout import follow, rollout
from htm_env.autoencoder import HTMAutoencoder
from htm_env.candidates import Nearest
from htm_env.forest import check_merges
from htm_env.trees.merge_tree import MergeTree
from htm_env.types import TokenBatch


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


MODEL = HTMAutoencoder(2, 6, 16, generator=generator())
torch.manual_seed(0)
POLICY = make_policy("pointer", 6, 16)


def token_batch(sizes: list[int], slots: int | None = None) -> TokenBatch:
    slots = max(sizes) if slots is None else slots
    present = torch.arange(slots) < torch.tensor(sizes)[:, None]
    tokens = torch.zeros(len(sizes), slots, 2)
    for row, size in enumerate(sizes):  # the same tokens whatever the slots
        tokens[row, :size] = 2 * torch.randn(size, 2, generator=generator(row))
    merges = torch.full((len(sizes), slots - 1, 2), -1)
    return TokenBatch(tokens, present, torch.zeros(len(sizes), 0, slots, dtype=torch.bool), merges)


def trees(batch: TokenBatch, count: int, seeds: Tensor | None, **how: object) -> DistinctTrees:
    return distinct_trees(MODEL, POLICY, batch, count, seeds, **how)


def newicks(merges: Tensor, size: int) -> list[str]:
    return [MergeTree(one.numpy(), size).newick() for one in merges]


def test_all_trees_of_three_tokens_are_found_with_their_probabilities():
    batch = token_batch([3])
    found = trees(batch, 20, None)
    names = newicks(found.merges[0], 3)
    there = found.log_probs[0].isfinite()
    assert len(set(names)) == there.sum() == 12  # 3! orders of two shapes
    assert float(found.log_probs[0, there].exp().sum()) == pytest.approx(1.0)
    assert (found.log_probs[0, there].diff() <= 0).all()
    every = {f"(({a},{b}),{c});" for a, b, c in permutations(range(3))}
    assert set(names) == every | {f"({c},({a},{b}));" for a, b, c in permutations(range(3))}
    assert names[12:] == [names[0]] * 8
    greedy, terms = rollout(MODEL, POLICY, batch, generator(), greedy=True)
    assert newicks(greedy.merges, 3)[0] == names[0]
    assert float(terms.log_prob.sum()) == pytest.approx(float(found.log_probs[0, 0]), abs=1e-5)


def test_the_first_tree_is_drawn_by_its_probability_and_the_second_from_the_others():
    draws = 2500
    batch = token_batch([3]).rows(torch.zeros(draws, dtype=torch.long))
    found = trees(batch, 2, torch.arange(draws))
    beam = trees(token_batch([3]), 12, None)
    chances = dict(zip(newicks(beam.merges[0], 3), beam.log_probs[0].exp().tolist(), strict=True))
    first, second = (Counter(newicks(found.merges[:, place], 3)) for place in (0, 1))
    for name, chance in chances.items():
        spread = 4.5 * (chance * (1 - chance) / draws) ** 0.5
        assert abs(first[name] / draws - chance) < spread
        # Of the pairs (other, name): other first, and name by what is left without it.
        later = sum(p * chance / (1 - p) for other, p in chances.items() if other != name)
        assert abs(second[name] / draws - later) < 4.5 * (later / draws) ** 0.5
    assert (found.merges[:, 0] != found.merges[:, 1]).flatten(1).any(1).all()


@pytest.mark.parametrize("nearest", [None, Nearest(2)])
def test_trees_are_whole_and_differ_and_depend_on_their_own_row_alone(nearest):
    sizes, seeds = [1, 2, 5, 7], torch.tensor([5, 6, 7, 8])
    found = trees(token_batch(sizes), 9, seeds, nearest=nearest)
    for place in range(9):
        check_merges(found.merges[:, place], torch.tensor(sizes))
        assert ((found.merges[:, place, :, 0] >= 0).sum(1) == torch.tensor(sizes) - 1).all()
    for row in (2, 3):
        assert len(set(newicks(found.merges[row], sizes[row]))) == 9
    assert found.log_probs[0].isfinite().tolist() == [True] + [False] * 8
    alone = trees(token_batch(sizes).rows(slice(2, 3)), 9, seeds[2:3], nearest=nearest)
    assert torch.equal(alone.merges[0], found.merges[2])
    wider = trees(token_batch(sizes, slots=9), 9, seeds, nearest=nearest)
    assert torch.equal(wider.merges[:, :, :6], found.merges)


def test_log_probabilities_are_those_of_the_merges():
    batch = token_batch([5])
    found = trees(batch, 6, torch.tensor([3]))
    repeated = batch.rows(torch.zeros(6, dtype=torch.long))
    episodes = follow(MODEL, repeated, found.merges[0])
    terms = POLICY.terms(MODEL, repeated, episodes).measured(ordered=True)
    torch.testing.assert_close(
        terms.log_prob.sum(1).detach().double(), found.log_probs[0], rtol=1e-4, atol=1e-4
    )


def test_no_tree_is_refused():
    with pytest.raises(ValueError, match="count is 0"):
        trees(token_batch([3]), 0, None)
