"""The normaliser of a policy that scores pairs of nodes, in many states at once."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

UNDERFLOW = 1e-200
"""A sum of weights below this is computed again, relative to its own largest."""
AT_A_TIME = 256
"""States whose sums are computed again at a time."""


def log_totals(
    scores: Float[Tensor, "B N N"], active: Bool[Tensor, "B S N"]
) -> Float[Tensor, "B S"]:
    """``log sum over i != j of exp(scores[i, j])`` over the nodes that are active in each state.

    0 where fewer than two are active. In double precision, and differentiable. One matrix product
    sums all states of a sample: every pair's weight is computed once.
    """
    best = scores.detach().amax(dim=(1, 2), keepdim=True)
    same = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    relative = (scores - best).double().masked_fill(same, -math.inf)
    members = active.double()
    total = ((members @ relative.exp()) * members).sum(2)  # (B, S)
    log_total = total.clamp_min(UNDERFLOW).log()
    open_states = active.sum(2) > 1
    low = (open_states & (total < UNDERFLOW)).nonzero()  # far below the best pair of another state
    again = []
    for part in low.split(AT_A_TIME):
        there = active[part[:, 0], part[:, 1]]
        pairs = relative[part[:, 0]].masked_fill(~(there[:, :, None] & there[:, None]), -math.inf)
        again.append(pairs.flatten(1).logsumexp(1))
    if again:
        log_total = log_total.index_put((low[:, 0], low[:, 1]), torch.cat(again))
    return (log_total + best[..., 0]).where(open_states, 0.0)
