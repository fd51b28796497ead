"""Attention to all vectors, or to those in a window at a cost that grows with the window."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from agents.encoders.base import attend


def full_attention(
    query: Float[Tensor, "B H K d"],
    key: Float[Tensor, "B H K d"],
    value: Float[Tensor, "B H K d"],
    causal: bool,
    present: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B H K d"]:
    """Attention to every vector that is ``present``, in causal attention up to the own one.

    Zeros where all are absent. Raises ``ValueError`` for causal attention with absent vectors: a
    causal sequence is never padded here.
    """
    _not_both(causal, present)
    if present is None:
        return scaled_dot_product_attention(query, key, value, is_causal=causal)
    return attend(query, key, value, present[:, None, None])


def local_attention(
    query: Float[Tensor, "B H K d"],
    key: Float[Tensor, "B H K d"],
    value: Float[Tensor, "B H K d"],
    window: int,
    causal: bool,
    present: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B H K d"]:
    """Attention to the vectors less than ``window`` places away; in causal attention, before.

    The sequence is cut into blocks of ``window`` vectors, each of which looks at itself and the
    blocks beside it (Beltagy et al. 2020, "Longformer"; Roy et al. 2021, "Efficient content-based
    sparse attention", for the blocks): time and memory O(K * window).
    """
    _not_both(causal, present)
    batch, heads, length, _ = query.shape
    if length <= window:
        return full_attention(query, key, value, causal, present)
    blocks = -(-length // window)
    surplus = blocks * window - length
    after = 0 if causal else window
    queries = pad(query, (0, 0, 0, surplus)).reshape(batch, heads * blocks, window, -1)

    def beside(vectors: Tensor) -> Tensor:
        padded = pad(vectors, (0, 0, window, surplus + after))
        seen = padded.unfold(2, 2 * window + after, window).transpose(3, 4)
        return seen.reshape(batch, heads * blocks, 2 * window + after, -1)

    if present is None:
        present = torch.ones(1, length, dtype=torch.bool, device=query.device)
    there = pad(present, (window, surplus + after)).unfold(1, 2 * window + after, window)
    mask = there[:, :, None] & in_window(window, causal, query.device)  # (B, blocks, w, seen)
    mask = mask[:, None].expand(-1, heads, -1, -1, -1).flatten(1, 2)
    attended = attend(queries, beside(key), beside(value), mask)
    return attended.reshape(batch, heads, blocks * window, -1)[:, :, :length]


def in_window(window: int, causal: bool, device: torch.device) -> Bool[Tensor, "w seen"]:
    """True <--> a block's vector may look at this one of those from the block before on."""
    own = torch.arange(window, device=device)[:, None] + window
    other = torch.arange(2 * window if causal else 3 * window, device=device)
    distance = own - other
    return (distance < window) & (distance >= 0 if causal else distance > -window)


def _not_both(causal: bool, present: Tensor | None) -> None:
    if causal and present is not None:
        raise ValueError("attention is causal and has absent vectors; expected one of the two")
