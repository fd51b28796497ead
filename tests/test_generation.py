"""Generated trees against a plain recursive oracle, and samples that a person can derive."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import small_autoencoder
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from htm_env import HTMAutoencoder, MergeTree
from htm_env.generation.denoising import denoise
from htm_env.generation.generate import generate, interpolate, refine
from htm_env.types import TokenBatch


def recursive(autoencoder, root, threshold, depth=0, max_depth=10**6):
    """Nested pairs of tokens: one node at a time."""
    leaf = float(torch.sigmoid(autoencoder.classifier(root[None]))) >= threshold
    if leaf or depth == max_depth:
        return autoencoder.unlifter(root[None])[0] * autoencoder.token_std + autoencoder.token_mean
    first, second = autoencoder.unmerger(root[None]).view(2, -1)
    return tuple(
        recursive(autoencoder, child, threshold, depth + 1, max_depth) for child in (first, second)
    )


def flattened(nested):
    """The tokens from left to right, and the tree over their numbers."""
    tokens = []

    def number(node):
        if isinstance(node, tuple):
            return tuple(number(child) for child in node)
        tokens.append(node)
        return len(tokens) - 1

    tree = number(nested)
    return torch.stack(tokens), tree


class Counting(nn.Module):
    """Says that a node is a leaf where its first number is below one."""

    def forward(self, state):
        return 20.0 * (1.0 - state[:, :1]) - 10.0


class Splitting(nn.Module):
    """The first child has one less to do and the same second number; the second child is done."""

    def forward(self, state):
        first, second = state - torch.tensor([1.0, 0.0]), state * torch.tensor([0.0, 1.0])
        second = second + torch.tensor([0.0, 100.0])
        return torch.cat([first, second], dim=1)


def caterpillar() -> HTMAutoencoder:
    """A root ``(k, x)`` gives a chain of k merges: its tokens are x, then x + 100 k times."""
    autoencoder = HTMAutoencoder(1, 2, 8)
    autoencoder.classifier, autoencoder.unmerger = Counting(), Splitting()
    autoencoder.unlifter = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        autoencoder.unlifter.weight.copy_(torch.tensor([[0.0, 1.0]]))
    return autoencoder


def random_case(seed: int, count: int):
    autoencoder = small_autoencoder(token_dim=2, seed=seed).double()  # one by one or not: the same
    generator = torch.Generator().manual_seed(seed)
    roots = 3 * torch.randn(count, 5, generator=generator, dtype=torch.float64)
    with torch.no_grad():  # about half of all nodes are leaves: all kinds of trees
        states = torch.cat([roots, autoencoder.unmerge(roots)])
        threshold = float(torch.sigmoid(autoencoder.classifier(states)).median()) + 1e-9
    return autoencoder, roots, threshold


@given(st.integers(0, 10**6), st.integers(1, 6))
@torch.no_grad()
def test_generation_by_level_equals_the_recursive_oracle(seed, count):
    autoencoder, roots, threshold = random_case(seed, count)
    generated = generate(autoencoder, roots, threshold=threshold, max_depth=4)
    for row, root in enumerate(roots):
        tokens, nested = flattened(recursive(autoencoder, root, threshold, max_depth=4))
        size = len(tokens)
        assert int(generated.num_tokens[row]) == size
        assert generated.present[row].tolist() == [
            k < size for k in range(generated.present.shape[1])
        ]
        assert torch.allclose(generated.tokens[row, :size], tokens, atol=1e-5)
        assert (generated.tokens[row, size:] == 0).all()
        assert (generated.merges[row, size - 1 :] == -1).all()
        tree = generated.tree(row)
        assert (tree.nested() if size > 1 else 0) == nested
        # The deepest merges come first.
        inner = tree.depths()[size:]
        assert (np.diff(inner) <= 0).all()


def test_a_chain_by_hand():
    generated = generate(caterpillar(), torch.tensor([[3.25, 7.0], [0.0, 5.0], [1.0, 0.0]]))
    assert generated.tokens[..., 0].tolist() == [[7, 107, 107, 107], [5, 0, 0, 0], [0, 100, 0, 0]]
    assert generated.num_tokens.tolist() == [4, 1, 2]
    assert generated.merges.tolist() == [
        [[0, 1], [4, 2], [5, 3]],
        [[-1, -1]] * 3,
        [[0, 1], [-1, -1], [-1, -1]],
    ]
    assert generated.tree(0) == MergeTree.from_newick("(((0,1),2),3);")
    assert generated.tree(1).merges.shape == (0, 2)
    assert not generated.truncated.any()


def test_a_limit_that_changed_a_sample_is_reported_and_no_other_is():
    roots = torch.tensor([[5.25, 0.0], [2.25, 0.0]])
    deep = generate(caterpillar(), roots, max_depth=3)
    assert deep.num_tokens.tolist() == [4, 3]
    assert deep.depth_limited.tolist() == deep.truncated.tolist() == [True, False]
    assert not deep.token_limited.any()
    many = generate(caterpillar(), roots, max_tokens=3)
    assert many.num_tokens.tolist() == [3, 3]
    assert many.token_limited.tolist() == many.truncated.tolist() == [True, False]
    assert not many.depth_limited.any()
    assert generate(caterpillar(), roots, max_depth=0).num_tokens.tolist() == [1, 1]
    exact = generate(caterpillar(), roots, max_depth=5, max_tokens=6)
    assert not exact.truncated.any()


@given(st.integers(0, 10**6), st.integers(1, 9))
def test_no_sample_exceeds_the_limit_and_each_fills_it_if_it_was_limited(seed, max_tokens):
    autoencoder, roots, threshold = random_case(seed, 5)
    generated = generate(
        autoencoder, roots, threshold=threshold, max_depth=6, max_tokens=max_tokens
    )
    assert (generated.num_tokens <= max_tokens).all()
    assert (generated.num_tokens[generated.token_limited] == max_tokens).all()
    free = generate(autoencoder, roots, threshold=threshold, max_depth=6, max_tokens=64)
    same = ~generated.token_limited
    assert torch.equal(generated.num_tokens[same], free.num_tokens[same])
    for row in range(5):
        generated.tree(row)  # raises if it is no tree


def test_a_sample_does_not_depend_on_the_batch():
    autoencoder, roots, threshold = random_case(3, 6)
    together = generate(autoencoder, roots, threshold=threshold, max_depth=5)
    for row in range(6):
        alone = generate(autoencoder, roots[row : row + 1], threshold=threshold, max_depth=5)
        size = int(alone.num_tokens)
        assert torch.allclose(together.tokens[row, :size], alone.tokens[0], atol=1e-6)
        assert together.tree(row) == alone.tree(0)


def test_a_higher_threshold_makes_larger_trees():
    autoencoder, roots, threshold = random_case(0, 50)
    sizes = [
        generate(autoencoder, roots, threshold=value, max_depth=5).num_tokens
        for value in (0.0, threshold, 1.0)
    ]
    assert (sizes[0] == 1).all()  # every probability is at least 0
    assert (sizes[0] <= sizes[1]).all() and (sizes[1] <= sizes[2]).all()
    assert (sizes[2] == 32).all()  # no probability is 1: only the depth ends it


def test_generation_needs_sensible_arguments():
    autoencoder, roots = small_autoencoder(2), torch.zeros(3, 5)
    for bad, says in [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": float("nan")}, "threshold"),
        ({"max_depth": -1}, "max_depth is -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
    ]:
        with pytest.raises(ValueError, match=says):
            generate(autoencoder, roots, **bad)
    with pytest.raises(ValueError, match=r"shape \(3, 4\)"):
        generate(autoencoder, torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"shape \(0, 5\)"):
        generate(autoencoder, torch.zeros(0, 5))
    roots[1, 2] = torch.inf
    with pytest.raises(ValueError, match="root 1 is not finite"):
        generate(autoencoder, roots)


# ---------------------------------------------------------------- refinement


class Flagged(nn.Module):
    """Says that a node is a leaf where its first number is below a half."""

    def forward(self, state):
        return 20.0 * (0.5 - state[:, :1])


def linear(rows: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
        layer.bias.copy_(torch.tensor(bias))
    return layer


def halving() -> HTMAutoencoder:
    """A root ``(1, x)`` gives the tokens x and 0, which are encoded as ``(1, x / 2)``."""
    autoencoder = HTMAutoencoder(1, 2, 8)
    autoencoder.classifier = Flagged()
    autoencoder.lifter = linear([[0.0], [1.0]], [0.0, 0.0])
    autoencoder.unlifter = linear([[0.0, 1.0]], [0.0])
    autoencoder.merger = linear([[0.0] * 4, [0.0, 0.5, 0.0, 0.5]], [1.0, 0.0])
    autoencoder.unmerger = linear([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]], [0.0] * 4)
    return autoencoder


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_every_round_encodes_along_the_tree_and_decodes_again(rounds):
    roots = torch.tensor([[1.0, 8.0], [0.0, 5.0]])  # two tokens, and one
    refined = refine(halving(), generate(halving(), roots), rounds)
    assert refined.num_tokens.tolist() == [2, 1]
    assert refined.tokens[0, :, 0].tolist() == [8.0 / 2**rounds, 0.0]
    assert refined.tokens[1, 0, 0] == 5.0
    assert refined.tree(0).nested() == (0, 1)


def test_a_sample_that_changes_little_enough_is_left_alone():
    roots = torch.tensor([[1.0, 8.0], [1.0, 2.0], [0.0, 5.0]])
    # 8 becomes 4 (an nmse of 16 / 2), then 2 (of 4 / 2), then 1; the second one starts there.
    for enough, ends in (
        (0.4, (1.0, 1.0)),
        (0.5, (2.0, 2.0)),
        (2.0, (4.0, 2.0)),
        (8.0, (8.0, 2.0)),
    ):
        refined = refine(halving(), generate(halving(), roots), 3, enough=enough)
        assert refined.tokens[:2, 0, 0].tolist() == list(ends)
        assert refined.num_tokens.tolist() == [2, 2, 1]
    with pytest.raises(ValueError, match="enough is -1"):
        refine(halving(), generate(halving(), roots), 1, enough=-1.0)


def test_a_sample_that_changes_its_size_is_not_left_alone():
    autoencoder = halving()
    autoencoder.merger = linear([[0.0] * 4, [0.0, 0.5, 0.0, 0.5]], [0.0, 0.0])  # now a leaf's state
    refined = refine(autoencoder, generate(autoencoder, torch.tensor([[1.0, 8.0]])), 1, enough=1e9)
    assert refined.num_tokens.tolist() == [1]
    assert refined.tokens[0, 0, 0] == 4.0
    assert refined.present.shape == (1, 1)  # no empty slot


def test_refining_keeps_the_marks_of_what_was_cut_and_refuses_negative_rounds():
    cut = generate(halving(), torch.tensor([[1.0, 8.0], [0.0, 8.0]]), max_tokens=1)
    assert cut.token_limited.tolist() == [True, False]
    refined = refine(halving(), cut, 1)  # a lone token is encoded as a leaf
    assert refined.token_limited.tolist() == [True, False]
    assert refined.num_tokens.tolist() == [1, 1]
    with pytest.raises(ValueError, match="rounds is -1"):
        refine(halving(), cut, -1)


# ---------------------------------------------------------------- interpolation


def test_interpolation_is_straight_and_ends_at_both_roots():
    first, second = torch.tensor([0.0, 10.0]), torch.tensor([2.25, 30.0])
    way = interpolate(caterpillar(), first, second, 3)
    assert way.tokens[:, 0, 0].tolist() == [10, 20, 30]
    assert way.num_tokens.tolist() == [1, 2, 3]  # 0, then 1.125, then 2.25 merges
    ends = generate(caterpillar(), torch.stack([first, second]))
    assert torch.equal(way.tokens[[0, -1]], ends.tokens)
    with pytest.raises(ValueError, match="steps is 1"):
        interpolate(caterpillar(), first, second, 1)


# ---------------------------------------------------------------- denoising


def batch_of(tokens: torch.Tensor) -> TokenBatch:
    size, slots, _ = tokens.shape
    return TokenBatch(
        tokens,
        torch.ones(size, slots, dtype=torch.bool),
        torch.zeros(size, 0, slots, dtype=torch.bool),
        torch.full((size, slots - 1, 2), -1),
    )


def pairs(batch: TokenBatch) -> torch.Tensor:
    return torch.tensor([[0, 1]]).expand(len(batch.tokens), 1, 2)


def averaging() -> HTMAutoencoder:
    """Decodes both tokens of a pair as their mean, and standardises by 10."""
    autoencoder = HTMAutoencoder(1, 1, 8)
    autoencoder.lifter, autoencoder.unlifter = nn.Identity(), nn.Identity()
    autoencoder.merger, autoencoder.unmerger = (
        nn.Linear(2, 1, bias=False),
        nn.Linear(1, 2, bias=False),
    )
    with torch.no_grad():
        autoencoder.merger.weight.fill_(0.5)
        autoencoder.unmerger.weight.fill_(1.0)
    autoencoder.set_statistics(torch.tensor([3.0]), torch.tensor([10.0]))
    return autoencoder


def test_denoising_halves_the_variance_where_the_root_is_the_mean():
    clean = batch_of(torch.full((4000, 2, 1), 50.0))
    generator = torch.Generator().manual_seed(0)
    found = denoise(averaging(), clean, pairs, 0.3, generator)
    assert torch.allclose(found.reconstruction, found.noisy.mean(1, keepdim=True).expand(-1, 2, 1))
    assert float((found.noisy - 50).std()) == pytest.approx(3.0, rel=0.05)  # 0.3 of 10
    assert float(found.noisy_error.mean()) == pytest.approx(0.09, rel=0.05)
    assert float(found.error.mean()) == pytest.approx(0.045, rel=0.05)
    assert torch.equal(found.merges, pairs(clean))


def test_noise_repeats_with_the_seed_leaves_padding_alone_and_can_be_none():
    autoencoder = small_autoencoder(token_dim=1)
    batch = batch_of(torch.ones(3, 2, 1))
    batch.present[0, 1], batch.tokens[0, 1] = False, 0.0

    def plan(noisy):
        merges = pairs(noisy).clone()
        merges[0] = -1
        return merges

    def noisy(seed, std):
        return denoise(autoencoder, batch, plan, std, torch.Generator().manual_seed(seed))

    assert torch.equal(noisy(0, 0.5).noisy, noisy(0, 0.5).noisy)
    assert not torch.equal(noisy(0, 0.5).noisy, noisy(1, 0.5).noisy)
    assert float(noisy(0, 0.5).noisy[0, 1]) == 0.0
    assert (noisy(0, 0.0).noisy_error == 0).all()
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="noise_std"):
            noisy(0, bad)
