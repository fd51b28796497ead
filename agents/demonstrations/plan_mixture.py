"""A plan that is followed, or not, a whole episode long."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from agents.demonstrations.behaviour import Behaviour
from agents.fixed.order import random_order
from agents.fixed.slot_trees import random_tree
from htm_env.autoencoder import HTMAutoencoder
from htm_env.types import NONE, TokenBatch
from replay import number_of_sequences


@dataclass(frozen=True)
class PlanMixture(Behaviour):
    """Follows a plan with probability ``1 - epsilon``, else merges at random, a whole episode long.

    Having seen the merges so far, one knows better which of the two it is, so with the probability
    ``P`` of a beginning of an episode, ``mu(a_t | before) = P(before, a_t) / P(before)``, where
    ``P = (1 - epsilon) P_plan + epsilon P_uniform``.

    Where a plan's order within pairs is drawn at random (``turned``), either order follows it, with
    probability 1/2 each. Anything else that a fixed policy draws (``cosine``'s orders; what
    ``sorted`` does with ties) is drawn once, with the plan, and the policy is the one given that.
    """

    batch: TokenBatch
    autoencoder: HTMAutoencoder
    plan: Int64[Tensor, "B M 2"]
    epsilon: float
    turned: bool
    """True <--> the order within the plan's pairs is a fair coin each time."""

    @torch.no_grad()
    def episodes(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        merges, arguments = self.plan, (self.batch, self.autoencoder, generator)
        if self.turned:
            merges = random_order(merges, *arguments)
        device = generator.device
        explores = torch.rand(len(merges), generator=generator, device=device) < self.epsilon
        merges = torch.where(
            explores.to(merges.device)[:, None, None], random_tree(*arguments), merges
        )
        return merges, self.log_prob(merges)

    def log_prob(self, merges: Int64[Tensor, "B M 2"]) -> Float[Tensor, "B M"]:
        same = (merges == self.plan).all(-1)
        if self.turned:
            same |= (merges == self.plan.flip(-1)).all(-1)
        followed = (same.int().cumprod(dim=1) > 0).double().log()  # 0, or -inf once it is left
        beginning = torch.logaddexp(
            self._log_plan + followed + self._log_turns(merges.shape[1]),
            math.log(self.epsilon) + self._log_uniform(merges).cumsum(dim=1),
        )
        before = torch.cat([torch.zeros_like(beginning[:, :1]), beginning[:, :-1]], dim=1)
        given = (beginning - before).clamp(max=0.0).masked_fill(merges[..., 0] < 0, 0.0)
        return given.to(self.batch.tokens.dtype)

    def tree_log_prob(
        self, merges: Int64[Tensor, "B M 2"], generator: torch.Generator
    ) -> Float[Tensor, "B"]:
        """Exact for a tree of any size: the plan is one of its merge sequences, or none."""
        num_leaves = self.batch.num_tokens
        made = (merges[..., 0] >= 0).sum(1)
        turns = self._log_turns(merges.shape[1] + 1)[(made - 1).clamp(min=0)] * (made > 0)
        planned = same_trees(self.plan, merges, num_leaves, self.turned).double().log()
        uniform = self._log_uniform(merges).sum(1) + number_of_sequences(merges, num_leaves).log()
        total = torch.logaddexp(self._log_plan + planned + turns, math.log(self.epsilon) + uniform)
        return total.clamp(max=0.0).to(self.batch.tokens.dtype)

    @property
    def _log_plan(self) -> float:
        return math.log1p(-self.epsilon) if self.epsilon < 1 else -math.inf

    def _log_turns(self, steps: int) -> Float[Tensor, "M"]:
        """The log-probability of the orders within the plan's first 1, 2, ... pairs."""
        count = torch.arange(1, steps + 1, device=self.plan.device).double()
        return -math.log(2) * count * self.turned

    def _log_uniform(self, merges: Tensor) -> Tensor:
        steps = torch.arange(merges.shape[1], device=merges.device)
        active = (self.batch.num_tokens[:, None] - steps).clamp(min=2).double()
        return -(active * (active - 1)).log().masked_fill(merges[..., 0] < 0, 0.0)


def same_trees(
    planned: Int64[Tensor, "B M 2"],
    merges: Int64[Tensor, "B M 2"],
    num_leaves: Int64[Tensor, "B"],
    either_order: bool,
) -> Bool[Tensor, "B"]:
    """True <--> both are the same trees, whatever the sequence in which they were merged.

    With ``either_order``, pairs may be turned.
    """
    batch, steps, _ = merges.shape
    num_nodes = 2 * steps + 1
    rows = torch.arange(batch, device=merges.device)
    made = num_leaves[:, None] + torch.arange(steps, device=merges.device)
    spare = num_nodes  # padding writes here
    index = torch.where(merges >= 0, merges, spare).flatten(1)
    empty = merges.new_full((batch, num_nodes + 1), NONE)
    parent = empty.scatter(1, index, made.repeat_interleave(2, dim=1))
    partner = empty.scatter(1, index, merges.flip(-1).flatten(1))
    is_first = empty.scatter(
        1, index, torch.tensor([1, 0], device=index.device).repeat(steps).expand(batch, -1)
    )
    twin = torch.arange(num_nodes + 1, device=merges.device).repeat(batch, 1)
    same = (merges >= 0).sum((1, 2)) == (planned >= 0).sum((1, 2))
    for step in range(steps):
        first, second = planned[:, step].unbind(-1)
        real = first >= 0
        first_twin, second_twin = twin[rows, first], twin[rows, second]
        found = partner[rows, first_twin] == second_twin
        if not either_order:
            found &= is_first[rows, first_twin] == 1
        found &= parent[rows, first_twin] >= 0
        same &= found | ~real
        twin[rows, made[:, step]] = torch.where(real & found, parent[rows, first_twin], spare)
    return same
