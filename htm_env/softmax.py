"""Softmax sums over pairs of nodes, in many states at once, without slow subnormal numbers."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LEAST = {torch.float32: -80.0, torch.float64: -700.0}
"""Below, :func:`weights_of` is 0."""
UNDERFLOW = 1e-200
"""A sum of weights below this is computed again, relative to its own largest."""
AT_A_TIME = 256
"""States whose sums are computed again at a time."""


def weights_of(logarithms: Tensor) -> Tensor:
    """``exp(logarithms)``, exactly 0 where that is negligible; differentiable.

    Processors take up to five hundred times as long for an exponential that is no normal number,
    and illegal or hopeless choices, whose are, outnumber the others in most populations.
    """
    least = LEAST[logarithms.dtype]
    weights = logarithms.clamp(min=least).exp()
    return torch.nn.functional.threshold(weights, 2 * math.exp(least), 0.0)


def log_totals(
    scores: Float[Tensor, "B N N"], active: Bool[Tensor, "B S N"]
) -> Float[Tensor, "B S"]:
    """``log sum over i != j of exp(scores[i, j])`` over the nodes that are active in each state.

    0 where fewer than two are active. In double precision, and differentiable. One matrix product
    sums all states of a sample: every pair's weight is computed once.
    """
    best, relative = _relative(scores)
    total = _summed(weights_of(relative), active)
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


def choice_entropy(
    scores: Float[Tensor, "B N N"], active: Bool[Tensor, "B S N"], ordered: bool
) -> Float[Tensor, "B S"]:
    """The entropy of choosing a pair in each state, in nats; 0 where there is nothing to choose.

    Without ``ordered``, the two orders of a pair are one choice. Of a state in which everything is
    e^700 times less likely than the best pair of another state it is 0.
    """
    _, relative = _relative(scores)
    weights = weights_of(relative)
    log_choice = relative if ordered else relative.logaddexp(relative.transpose(1, 2))
    total = _summed(weights, active)
    mean = _summed(weights * log_choice.where(weights > 0, 0.0), active) / total
    return (total.log() - mean).clamp(min=0.0).where(total > 0, 0.0)


def _relative(scores: Float[Tensor, "B N N"]) -> tuple[Tensor, Float[Tensor, "B N N"]]:
    """The best score of each sample, and all others below it; -inf for a node with itself."""
    best = scores.detach().amax(dim=(1, 2), keepdim=True)
    same = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    return best, (scores - best).double().masked_fill(same, -math.inf)


def _summed(values: Float[Tensor, "B N N"], active: Bool[Tensor, "B S N"]) -> Float[Tensor, "B S"]:
    """The sum over all pairs that are active in each state."""
    members = active.double()
    return ((members @ values) * members).sum(2)
