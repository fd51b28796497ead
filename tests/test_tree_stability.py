"""Changed samples, and how much of a tree is still there afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from htm_env.datasets import make_dataset
from htm_env.forest import check_merges, leaf_sets
from htm_env.measures.intervals import bootstrap_interval, mean_with_error
from htm_env.measures.stability import (
    Changed,
    jittered,
    restricted_merges,
    stability,
    without_one,
)
from htm_env.types import TokenBatch

CHAIN = torch.tensor([[[0, 1], [4, 2], [5, 3]]])  # clades 01 and 012
PAIRS = torch.tensor([[[0, 1], [2, 3], [4, 5]]])  # clades 01 and 23


def batch(tokens: torch.Tensor, present: torch.Tensor | None = None) -> TokenBatch:
    size, slots, _ = tokens.shape
    present = torch.ones(size, slots, dtype=torch.bool) if present is None else present
    clades = torch.zeros(size, 0, slots, dtype=torch.bool)
    return TokenBatch(tokens, present, clades, torch.full((size, slots - 1, 2), -1))


def unchanged(samples: TokenBatch) -> Changed:
    slots = torch.arange(samples.present.shape[1]).expand(samples.present.shape)
    return Changed(samples, slots.masked_fill(~samples.present, -1))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_clades_in_common():
    four = batch(torch.zeros(1, 4, 1))
    assert stability(four, CHAIN, unchanged(four), CHAIN).tolist() == [1.0]
    assert stability(four, CHAIN, unchanged(four), PAIRS).tolist() == [0.5]  # 01 of two each
    crossed = torch.tensor([[[0, 2], [1, 3], [4, 5]]])
    assert stability(four, CHAIN, unchanged(four), crossed).tolist() == [0.0]


def test_the_order_of_slots_and_the_token_that_is_gone_are_followed():
    """Without token 3 both trees have the clade 01 of three tokens, whatever their slots."""
    before = batch(torch.zeros(1, 4, 1))
    after = batch(torch.zeros(1, 4, 1), torch.tensor([[True, True, True, False]]))
    changed = Changed(after, torch.tensor([[2, 0, 1, -1]]))  # slots hold tokens 2, 0 and 1
    same = torch.tensor([[[1, 2], [3, 0], [-1, -1]]])  # tokens 0 and 1 first
    other = torch.tensor([[[0, 1], [3, 2], [-1, -1]]])  # tokens 2 and 0 first
    assert stability(before, CHAIN, changed, same).tolist() == [1.0]
    assert stability(before, PAIRS, changed, same).tolist() == [1.0]
    assert stability(before, CHAIN, changed, other).tolist() == [0.0]


def test_two_tokens_have_one_tree_only():
    two = batch(torch.zeros(1, 2, 1))
    merges = torch.tensor([[[0, 1]]])
    assert stability(two, merges, unchanged(two), merges).isnan().all()


def test_restricted_trees_have_the_restricted_clades():
    """Of ((0 1) 2) 3 without token 1: (0 2) 3, here in the slots 1, 2 and 0."""
    slots = torch.tensor([[3, 0, 2, -1]])
    found = restricted_merges(CHAIN, torch.tensor([4]), slots)
    assert found.tolist() == [[[1, 2], [3, 0], [-1, -1]]]


def test_noise_has_its_size_and_nothing_else_changes():
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.normal(size=(200, 5, 3)).astype(np.float32))
    present = torch.arange(5) < torch.arange(200)[:, None] % 4 + 2
    tokens = tokens.masked_fill(~present[..., None], 0.0)
    samples, std = batch(tokens, present), torch.tensor([1.0, 10.0, 1.0])
    changed = jittered(samples, std, generator(), categories=1)
    assert changed.batch.present.equal(present)
    slots = changed.slots.clamp(min=0)
    moved = changed.batch.tokens - tokens.gather(1, slots[..., None].expand(-1, -1, 3))
    moved = moved[present]
    assert moved[:, 0].std() == pytest.approx(0.02, rel=0.1)
    assert moved[:, 1].std() == pytest.approx(0.2, rel=0.1)
    assert not moved[:, 2].any()
    assert not changed.batch.tokens[~present].any()
    assert (changed.slots.sort(1).values != samples.present.long().cumsum(1) - 1).any()


def test_one_token_is_dropped_and_every_one_may_be():
    tokens = torch.arange(3.0).expand(300, 3)[..., None].clone()
    changed = without_one(batch(tokens), generator())
    assert (changed.batch.num_tokens == 2).all()
    kept = changed.batch.tokens[..., 0][changed.batch.present].view(300, 2)
    dropped = 3 - kept.sum(1)
    assert np.bincount(dropped.long().numpy(), minlength=3).min() > 60  # 100 are expected
    assert (changed.slots[changed.batch.present] == kept.flatten()).all()
    with pytest.raises(ValueError, match="fewer than 2 tokens"):
        without_one(batch(tokens[:, :1]), generator())


def test_the_own_hierarchy_follows_the_change_and_so_is_stable():
    samples = make_dataset("HTM-Trees-v0", "test", heights=[3]).fixed(20)
    for changed in (
        without_one(samples, generator()),
        jittered(samples, torch.ones(samples.tokens.shape[2]), generator()),
    ):
        after = changed.batch
        check_merges(after.merges, after.num_tokens)
        assert stability(samples, samples.merges, changed, after.merges).tolist() == [1.0] * 20
        sets = leaf_sets(after.merges, after.num_tokens)
        shared = sets.float() @ after.clades.float().transpose(1, 2)
        sizes = after.clades.sum(2)
        same = (shared == sizes[:, None]) & (shared == sets.sum(2)[:, :, None])
        assert (same.any(1) | (sizes < 2)).all()  # its clades are nodes of its tree


def test_means_and_intervals():
    values = np.array([1.0, 3.0, np.nan])
    assert mean_with_error(values) == (2.0, 1.0)  # the deviation of two values is the root of 2
    assert mean_with_error(values[2:]) is None
    assert mean_with_error(values[:1]) == (1.0, None)
    rng = np.random.default_rng(0)
    assert bootstrap_interval(values[2:], rng) is None
    assert bootstrap_interval(np.full(5, 0.5), rng) == (0.5, 0.5, 0.5)
    shares = np.repeat([0.0, 1.0], 200)  # the deviation of the mean is 0.5 / 20
    mean, low, high = bootstrap_interval(shares, rng)
    assert mean == 0.5
    assert low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006)
    assert high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)
