"""The optimum of small samples: every ordered merge sequence tried."""

from __future__ import annotations

from itertools import permutations

import torch
from jaxtyping import Int64
from torch import Tensor

from htm_env.autoencoder import HTMAutoencoder
from htm_env.forest import pad_merges
from htm_env.types import NONE, TokenBatch

LARGEST = 4
"""Five tokens have 2,880 sequences, eight have 203 million."""
EPISODES_A_CALL = 8192


def all_merge_sequences(num_leaves: int) -> Int64[Tensor, "S M 2"]:
    """Every sequence of ordered merges over ``n`` tokens, in node ids, ``M = n - 1``.

    There are ``n! (n - 1)!``: 2, 12 and 144 for two, three and four tokens. Some differ only in
    when their merges are made. Raises ``ValueError`` for fewer than one token.
    """
    if num_leaves < 1:
        raise ValueError(f"num_leaves is {num_leaves}; expected at least 1")

    def continued(active: list[int]) -> list[list[list[int]]]:
        if len(active) == 1:
            return [[]]
        parent = 2 * num_leaves - len(active)
        return [
            [[first, second], *rest]
            for first, second in permutations(active, 2)
            for rest in continued([*(set(active) - {first, second}), parent])
        ]

    sequences = continued(list(range(num_leaves)))
    return torch.tensor(sequences, dtype=torch.int64).view(len(sequences), num_leaves - 1, 2)


@torch.no_grad()
def exhaustive_merges(batch: TokenBatch, autoencoder: HTMAutoencoder) -> Int64[Tensor, "B M 2"]:
    """The merges with the smallest ``nmse`` of each sample.

    Raises ``ValueError`` naming the first sample of more than ``LARGEST`` tokens.
    """
    num_leaves, num_slots = batch.num_tokens, batch.present.shape[1]
    if (num_leaves > LARGEST).any():
        row = int((num_leaves > LARGEST).nonzero()[0])
        raise ValueError(
            f"sample {row} has {int(num_leaves[row])} tokens; the exhaustive search takes at most "
            f"{LARGEST}"
        )
    best = num_leaves.new_full((len(num_leaves), num_slots - 1, 2), NONE)
    for size in num_leaves.unique().tolist():
        rows = (num_leaves == size).nonzero().squeeze(1)
        sequences = all_merge_sequences(max(1, size)).to(rows.device)
        for part in rows.split(max(1, EPISODES_A_CALL // len(sequences))):
            errors = _errors(batch.tokens[part, :size], sequences, autoencoder)
            best[part] = pad_merges(sequences[errors.argmin(dim=1)], num_slots)
    return best


def _errors(tokens: Tensor, sequences: Tensor, autoencoder: HTMAutoencoder) -> Tensor:
    """``(rows, S)``: the summed squared error of each sample ``(n, T)`` under each sequence."""
    samples, choices = len(tokens), len(sequences)
    repeated = tokens.repeat_interleave(choices, dim=0)
    merges = sequences.repeat(samples, 1, 1)
    present = torch.ones(repeated.shape[:2], dtype=torch.bool, device=tokens.device)
    roots = autoencoder.encode(repeated, present, merges).roots
    decoded = autoencoder.decode(roots, merges, present)
    difference = (decoded - repeated) / autoencoder.token_std
    return difference.square().sum(dim=(1, 2)).view(samples, choices)
