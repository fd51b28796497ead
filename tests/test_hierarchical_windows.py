"""Attention in windows equals a loop over queries, and never looks further."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from agents.encoders.hierarchical.layers import (
    full_attention,
    local_attention,
    rotate,
    shift_back,
    shift_both_ways,
)


def plain_attention(query, key, value, window, causal, present):
    """One query at a time, over the keys that it may look at."""
    result = torch.zeros_like(value)
    for b in range(query.shape[0]):
        for i in range(query.shape[2]):
            seen = [
                j
                for j in range(query.shape[2])
                if present[b, j] and abs(i - j) < window and not (causal and j > i)
            ]
            if seen:
                scores = torch.einsum("hd,hsd->hs", query[b, :, i], key[b, :, seen])
                weights = (scores / query.shape[3] ** 0.5).softmax(1)
                result[b, :, i] = torch.einsum("hs,hsd->hd", weights, value[b, :, seen])
    return result


@given(
    length=st.integers(1, 23), window=st.integers(1, 9), causal=st.booleans(), gaps=st.booleans()
)
@example(length=5, window=4, causal=True, gaps=False)  # the first length with more than one block
@example(length=5, window=4, causal=False, gaps=True)
@example(length=4, window=5, causal=False, gaps=True)  # the whole sequence is one block
def test_windows_equal_a_loop(length, window, causal, gaps):
    generator = torch.Generator().manual_seed(length)
    query, key, value = torch.randn(3, 2, 2, length, 4, generator=generator)
    present = None
    if gaps and not causal:
        present = torch.rand(2, length, generator=generator) < 0.5
    expected = plain_attention(
        query,
        key,
        value,
        window,
        causal,
        torch.ones(2, length, dtype=torch.bool) if present is None else present,
    )
    found = local_attention(query, key, value, window, causal, present)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("causal", [True, False])
def test_full_attention_is_a_window_that_reaches_everything(causal):
    query, key, value = torch.randn(3, 2, 2, 9, 4, generator=torch.Generator().manual_seed(0))
    everywhere = torch.ones(2, 9, dtype=torch.bool)
    torch.testing.assert_close(
        full_attention(query, key, value, causal),
        plain_attention(query, key, value, 9, causal, everywhere),
    )


def test_memory_grows_with_the_window_and_not_with_the_square_of_the_length():
    """The largest tensor of 4096 tokens and a window of 8 has 3 x 8 keys or scores a query."""
    length, window, width = 4096, 8, 4
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    query, key, value = torch.zeros(3, 1, 1, length, width)
    with Sizes():
        local_attention(query, key, value, window, causal=False)
    assert max(sizes) <= 3 * window * max(width, 1) * (length + window)


def test_a_turned_product_depends_on_the_distance_alone():
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def product(first, second):
        return (rotate(query, first) * rotate(key, second)).sum()

    torch.testing.assert_close(product(3, 1), product(12, 10))
    assert abs(product(3, 1) - product(3, 2)) > 1e-3
    torch.testing.assert_close(product(0, 0), (query * key).sum())


def test_positions_from_a_start_are_those_of_a_longer_sequence():
    vectors = torch.randn(2, 3, 7, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rotate(vectors)[:, :, 4:], rotate(vectors[:, :, 4:], 4))


def test_shift_back_takes_the_second_half_from_before():
    vectors = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    assert shift_back(vectors).tolist() == [[[1, 0], [3, 2], [5, 4]]]
    before = torch.tensor([[[8.0, 9.0]]])
    assert shift_back(vectors, before).tolist() == [[[1, 9], [3, 2], [5, 4]]]


def test_shift_both_ways_takes_a_quarter_from_each_side():
    vectors = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]])
    assert shift_both_ways(vectors).tolist() == [[[1, 2, 0, 8], [5, 6, 3, 0]]]


def test_causal_attention_takes_no_absent_vectors():
    query = torch.zeros(1, 1, 4, 2)
    present = torch.ones(1, 4, dtype=torch.bool)
    for attention in (full_attention, lambda *rest: local_attention(*rest[:3], 2, *rest[3:])):
        with pytest.raises(ValueError, match="expected one of the two"):
            attention(query, query, query, True, present)
