"""The policy network on rows of states that follow one another, without computing a token twice.

A merge changes two slots, so that the states of one episode share most of their tokens. Rows that
follow one another are gathered into runs; a run has each of its tokens (its *nodes*) once, and all
scores of its states are entries of one table of pairs of nodes, as in ``losses.py``. Where there
are candidates, only those are scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from agents.policy import ILLEGAL, MergePolicy, NodePolicy, action_logits, bounded
from htm_env.forest import action_mask, action_to_pair


@dataclass(frozen=True)
class Runs:
    """``B`` states as ``R`` runs of at most ``S`` steps and ``N`` nodes each."""

    run: Int64[Tensor, "B"]
    step: Int64[Tensor, "B"]
    """The run of each state, and where in it the state stands."""
    node: Int64[Tensor, "B P"]
    """The node in each slot, counted within the run; 0 in empty slots."""
    tokens: Float[Tensor, "R N D"]
    leaf_counts: Int[Tensor, "R N"]
    """The nodes; zeros where a run has fewer."""
    members: Float[Tensor, "R S N"]
    """1 where the node is active in the state."""

    @classmethod
    def of(
        cls,
        tokens: Float[Tensor, "B P D"],
        counts: Int[Tensor, "B P"],
        active: Bool[Tensor, "B P"],
    ) -> Runs:
        """A run goes on while a state has a token where the state before had the same one."""
        stays = active[1:] & active[:-1] & (counts[1:] == counts[:-1])
        stays &= (tokens[1:] == tokens[:-1]).all(dim=2)
        is_new = active.clone()
        is_new[1:] &= ~stays
        begins = torch.ones_like(active[:, 0])
        begins[1:] = ~stays.any(dim=1)

        row = torch.arange(len(active), device=active.device)
        run = begins.cumsum(0) - 1
        step = row - row[begins][run]
        number = is_new.flatten().cumsum(0).view_as(active) - 1  # of a new token, in reading order
        before = (is_new.sum(1).cumsum(0) - is_new.sum(1))[begins]  # new tokens before each run
        source = torch.where(is_new, row[:, None], 0).cummax(dim=0).values
        node = ((number.gather(0, source) - before[run][:, None]) * active).clamp(min=0)

        size = (int(run[-1]) + 1, int(node.max()) + 1)
        at = (run[:, None].expand_as(node)[is_new], node[is_new])
        run_tokens = tokens.new_zeros(*size, tokens.shape[2]).index_put_(at, tokens[is_new])
        run_counts = counts.new_zeros(size).index_put_(at, counts[is_new])
        members = tokens.new_zeros(size[0], int(step.max()) + 1, size[1])
        where = (run[:, None].expand_as(node)[active], step[:, None].expand_as(node)[active])
        members[(*where, node[active])] = 1.0
        return cls(run, step, node, run_tokens, run_counts, members)


def shared_forward(
    network: MergePolicy, observation: dict[str, Tensor]
) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B"]]:
    """What ``network(observation)`` gives, several times cheaper where rows follow one another.

    Networks with a ``forward`` of their own, because a token's features depend on other tokens, are
    asked themselves.
    """
    own = type(network).forward is not MergePolicy.forward
    if own or not isinstance(network, NodePolicy):
        return network(observation)
    active = observation["active"].bool()
    runs = Runs.of(observation["tokens"].float(), observation["leaf_counts"], active)
    features = network.features(runs.tokens, runs.leaf_counts)  # of (R, N) nodes
    values = network.values(features.pooled, runs.members)[runs.run, runs.step]
    if "candidates" in observation:  # then a table of all pairs of nodes is too large
        at = (runs.run[:, None], runs.node)  # (B, P)
        first, second = features.first[at], features.second[at]
        scores = bounded(network.listed_scores(first, second, observation["candidates"]))
        return action_logits(scores, observation), values
    needed = (runs.members.transpose(1, 2) @ runs.members) > 0
    scores = bounded(network.node_scores(features.first, features.second, lambda: needed))
    slots, nodes = active.shape[1], scores.shape[1]
    first, second = action_to_pair(torch.arange(slots * (slots - 1), device=active.device), slots)
    pair = (runs.run[:, None] * nodes + runs.node[:, first]) * nodes + runs.node[:, second]
    logits = scores.flatten().gather(0, pair.flatten()).view(pair.shape)  # (B, A)
    return logits.masked_fill(~action_mask(active), ILLEGAL), values
