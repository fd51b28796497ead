"""Sums over the time in which a pair of nodes could be merged.

A pair keeps its score while both of its nodes are active, so what depends on its probability at
every step of an episode depends on the step through the normaliser alone. Sums over its lifetime,
from the step at which the younger node is there to the step at which the first of the two is
merged, then need no pass over all pairs at every step.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.softmax import weights_of


class Lifetimes:
    """When each pair of nodes of ``B`` episodes could be merged.

    Args:
        merges: child nodes of every merge; -1 pads, at the end.
        exists: True <--> the node was there, from the start or by a merge.
        num_leaves: tokens of every sample.
    """

    def __init__(
        self,
        merges: Int64[Tensor, "B M 2"],
        exists: Bool[Tensor, "B N"],
        num_leaves: Int64[Tensor, "B"],
    ) -> None:
        self.steps = merges.shape[1]
        num_nodes, device = exists.shape[1], merges.device
        length = (merges[..., 0] >= 0).sum(1, keepdim=True)  # (B, 1)
        made = torch.arange(num_nodes, device=device) - num_leaves[:, None]  # by which merge
        born = (made + 1).clamp(min=0).masked_fill(~exists, self.steps)
        time = torch.arange(self.steps, device=device).repeat_interleave(2)
        died = (length - 1).expand(-1, num_nodes + 1).clone()  # the last is for padding
        died.scatter_(1, merges.flatten(1) % (num_nodes + 1), time.expand(len(merges), -1))
        died = died[:, :-1]
        self.first_step = torch.maximum(born[:, :, None], born[:, None])  # (B, N, N)
        self.last_step = torch.minimum(died[:, :, None], died[:, None])
        self.pairs = self.first_step <= self.last_step
        """True <--> the pair could be merged at some step."""
        self.pairs.diagonal(dim1=1, dim2=2).fill_(False)

    def sums(
        self,
        scores: Float[Tensor, "B N N"],
        log_totals: Float[Tensor, "B M"],
        weights: Float[Tensor, "B M"],
    ) -> Float[Tensor, "B N N"]:
        """``sum over t of weights[t] * exp(scores[i, j] - log_totals[t])``; 0 for other pairs.

        ``weights`` may have any sign; every term's exponential is at most 1 where the totals are
        those of the scores. The sums from every first step to every last one are kept relative to
        the smallest total among their steps, as in a softmax that is computed as it goes, so that
        nothing overflows, and a step at which everything was less likely loses no digits.
        """
        batch = len(scores)
        smallest = log_totals.new_full((batch, self.steps, self.steps), torch.inf)
        summed = torch.zeros_like(smallest)
        low, total = smallest[:, :, 0].clone(), summed[:, :, 0].clone()  # by the first step
        for last in range(self.steps):
            now = log_totals[:, last, None]
            lower = torch.minimum(low[:, : last + 1], now)
            kept = total[:, : last + 1] * weights_of(lower - low[:, : last + 1])
            added = weights_of(lower - now)
            total[:, : last + 1] = torch.addcmul(kept, weights[:, last, None], added)
            low[:, : last + 1] = lower
            smallest[:, : last + 1, last], summed[:, : last + 1, last] = lower, total[:, : last + 1]
        index = (self.first_step * self.steps + self.last_step).where(self.pairs, 0).flatten(1)
        lowest = smallest.flatten(1).gather(1, index).view_as(scores)
        held = summed.flatten(1).gather(1, index).view_as(scores)
        return (weights_of(scores - lowest) * held).where(self.pairs, 0.0)
