"""Reconstruction by a decoder that is not told the tree: the leaf classifier says where to stop."""

from __future__ import annotations

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import pad

from htm_env.autoencoder import HTMAutoencoder
from htm_env.generation.generate import generate
from htm_env.types import TokenBatch

TOO_LARGE = 1e30
"""Error of a pair that is not finite, so that an assignment exists."""


@torch.no_grad()
def untold_errors(
    autoencoder: HTMAutoencoder,
    roots: Float[Tensor, "B D"],
    batch: TokenBatch,
    mean: Float[Tensor, "T"],
    std: Float[Tensor, "T"],
) -> Float[Tensor, "B"]:
    """The ``nmse`` of every sample decoded from its root by :func:`generate`, as a set.

    Decoded are at most twice as many tokens as the batch has slots, which are assigned to the
    sample's so that the error is least (see :func:`set_errors`). ``mean`` and ``std`` are those of
    the training split.
    """
    slots = batch.present.shape[1]
    made = generate(autoencoder, roots, max_depth=slots, max_tokens=2 * slots)
    return torch.stack(
        [
            set_errors((decoded[has] - mean) / std, (tokens[present] - mean) / std)
            for decoded, has, tokens, present in zip(
                made.tokens, made.present, batch.tokens, batch.present, strict=True
            )
        ]
    )


def set_errors(decoded: Float[Tensor, "Q T"], tokens: Float[Tensor, "n T"]) -> Float[Tensor, ""]:
    """The ``nmse`` between two sets of standardised tokens under the best assignment.

    The smaller set is filled up with the mean, 0, so that a missing token costs what it differs
    from the mean by, and so does one too many. Errors are summed and divided by the sample's own
    number of tokens. (Kuhn 1955, the Hungarian method.)
    """
    size = max(len(decoded), len(tokens))
    decoded = pad(decoded, (0, 0, 0, size - len(decoded)))
    filled = pad(tokens, (0, 0, 0, size - len(tokens)))
    errors = (filled[:, None] - decoded[None]).square().mean(dim=2)  # (size, size)
    table = errors.nan_to_num(nan=TOO_LARGE, posinf=TOO_LARGE).cpu().numpy()
    of_sample, of_decoded = linear_sum_assignment(table)
    return errors[of_sample, of_decoded].sum() / len(tokens)
