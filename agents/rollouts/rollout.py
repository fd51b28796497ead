"""Episodes of a policy, many at once: merges, embeddings, log-probabilities and entropies.

What is computed shrinks with the populations (see ``positions.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from agents.networks.base import MergePolicy
from agents.rollouts.candidate_rollout import candidate_episodes, candidates_along
from agents.rollouts.deviation import Deviation
from agents.rollouts.leaves import leaf_tables
from agents.rollouts.pair_scores import pair_scores
from agents.rollouts.positions import Positions
from agents.rollouts.sampling import choices, choose_pairs, most_entropy, probabilities
from htm_env.autoencoder import HTMAutoencoder
from htm_env.candidates import Nearest
from htm_env.forest import forest_levels, leaf_counts
from htm_env.types import TokenBatch
from replay import CandidatePairs


@dataclass(frozen=True)
class Rollout:
    """``B`` episodes and everything that learning from them needs; no gradients."""

    merges: Int64[Tensor, "B M 2"]
    nodes: Float[Tensor, "B N D"]
    """The embedding of every node; zeros for nodes that were not made."""
    leaf_counts: Int64[Tensor, "B N"]
    """Tokens under every node; 0 for nodes that were not made."""
    log_prob: Float[Tensor, "B M"]
    """Log-probability of each merge under the policy that made it; 0 in padding."""
    log_total: Float[Tensor, "B M"]
    """Logarithm of the sum of the exponentials of the scores of all choices; 0 in padding."""
    entropy: Float[Tensor, "B M"]
    """Entropy of each choice over that of a uniform one, in [0, 1] (see ``choices.py``); where it
    was not measured, minus the log-probability of what was drawn, of which it is the mean."""
    positions: Int64[Tensor, "B M P"] | None = None
    """See :attr:`active`; None where nobody has followed them yet."""
    candidates: CandidatePairs | None = None
    """The pairs that could be merged; None for all of them."""

    @property
    def steps(self) -> Bool[Tensor, "B M"]:
        """True <--> a merge was made."""
        return self.merges[..., 0] >= 0

    @property
    def num_active(self) -> Int64[Tensor, "B M"]:
        """Nodes that are active before each merge; 0 in padding."""
        made = torch.arange(self.merges.shape[1], device=self.merges.device)
        return (self.num_leaves[:, None] - made) * self.steps

    @property
    def num_leaves(self) -> Int64[Tensor, "B"]:
        """Tokens of each sample: only they are nodes with one leaf."""
        return (self.leaf_counts == 1).sum(1)

    @cached_property
    def active(self) -> Int64[Tensor, "B M P"]:
        """The active nodes before each merge, at the first positions; -1 pads."""
        if self.positions is not None:
            return self.positions
        present = self.leaf_counts[:, : self.merges.shape[1] + 1] == 1  # P = M + 1
        return Positions.of(present, self.merges).active

    def open_steps(self, ordered: bool) -> Bool[Tensor, "B M"]:
        """True <--> there was more than one choice; two nodes leave only their order to choose,
        which counts as a choice where it is ``ordered``, and among candidates always."""
        return self.num_active > (2 if self.candidates is None and not ordered else 1)

    def most_entropy(self, ordered: bool) -> Float[Tensor, "B M"]:
        """That of choosing uniformly, in nats; 1 where there is only one choice."""
        if self.candidates is None:
            return most_entropy(self.num_active, ordered)
        number = self.candidates.numbers
        return torch.where(number > 1, number.clamp(min=2).log(), 1.0)

    @property
    def members(self) -> Float[Tensor, "B M N"]:
        """1 where the node is active before the merge."""
        return membership(self.active, self.nodes.shape[1]).to(self.nodes.dtype)

    @property
    def coactive(self) -> Bool[Tensor, "B N N"]:
        """True <--> both nodes were active, and could be merged, before the same merge."""
        return (self.members.transpose(1, 2) @ self.members) > 0

    def rows(self, index: Tensor | slice) -> Rollout:
        """The episodes that ``index`` selects along the batch axis."""
        values = (getattr(self, field.name) for field in fields(self)[:-1])
        chosen = (None if value is None else value[index] for value in values)
        candidates = None if self.candidates is None else self.candidates.rows(index)
        return Rollout(*chosen, candidates)  # type: ignore[call-arg, arg-type]

    @property
    def exists(self) -> Bool[Tensor, "B N"]:
        return self.leaf_counts > 0


def membership(active: Int64[Tensor, "B M P"], num_nodes: int) -> Bool[Tensor, "B M N"]:
    """True <--> the node is among those that are active before the merge; -1 pads ``active``."""
    batch, steps, _ = active.shape
    padded = active.new_zeros((batch, steps, num_nodes + 1), dtype=torch.bool)
    return padded.scatter_(2, active % (num_nodes + 1), True)[..., :-1]  # -1 lands in the pad


@torch.no_grad()
def rollout(
    autoencoder: HTMAutoencoder,
    policy: MergePolicy,
    batch: TokenBatch,
    generator: torch.Generator,
    *,
    greedy: bool = False,
    num_merges: Int64[Tensor, "B"] | None = None,
    ordered_entropy: bool = True,
    measure_entropy: bool = True,
    nearest: Nearest | None = None,
    deviation: Deviation | None = None,
) -> Rollout:
    """Let ``policy`` merge every sample of ``batch``.

    ``greedy`` takes the best pair instead of sampling; ``num_merges`` stops earlier than at one
    root; ``ordered_entropy`` says whether the order within a pair counts as a choice;
    without ``measure_entropy``, which costs time at every step, entropies are estimated.
    ``nearest`` lets it choose among candidates only, whose order always counts as a choice. A
    ``deviation`` takes another pair at one step, where log-probability and total say nothing.
    """
    to_make = batch.num_tokens - 1 if num_merges is None else num_merges
    order = to_make.argsort(descending=True, stable=True)
    arguments = (autoencoder, policy, batch.rows(order), generator, greedy, to_make[order])
    deviation = None if deviation is None else deviation.rows(order)
    if nearest is None:
        made = _rollout_sorted(*arguments, ordered_entropy, measure_entropy, deviation)
    else:
        found = candidate_episodes(*arguments, nearest, measure_entropy, deviation)
        made = Rollout(**found._asdict())
    made = replace(made, entropy=made.entropy / made.most_entropy(ordered_entropy))
    return made.rows(order.argsort())


def _rollout_sorted(
    autoencoder: HTMAutoencoder,
    policy: MergePolicy,
    batch: TokenBatch,
    generator: torch.Generator,
    greedy: bool,
    to_make: Tensor,
    ordered_entropy: bool,
    measure_entropy: bool,
    deviation: Deviation | None,
) -> Rollout:
    """Entropies in nats."""
    size, slots = batch.present.shape
    nodes, counts = leaf_tables(autoencoder, batch)
    scores = pair_scores(policy, autoencoder, batch, nodes, counts)
    positions = Positions(batch.present, to_make)
    log_prob, score, turned, spread = nodes.new_zeros(4, size, slots - 1).unbind()
    for step in positions.steps():
        now, row, running = scores.at(step, positions), step.rows, len(step.rows)
        if measure_entropy:
            probability, spread[:running, step.time] = choices(now, ordered_entropy)
        else:  # it follows from the scores of what was drawn, after the last step
            probability = probabilities(now)
        first, second, log_prob[:running, step.time] = choose_pairs(probability, generator, greedy)
        if deviation is not None:
            first, second = deviation.chosen(step.time, now, first, second)
        score[:running, step.time] = now[row, first, second]
        if not (measure_entropy or ordered_entropy):
            turned[:running, step.time] = now[row, second, first]
        children, parent = positions.merge(step, first, second)
        merged = autoencoder.merger(nodes[row[:, None], children].flatten(1))
        nodes[row, parent] = merged
        counts[row, parent] = counts[:running].gather(1, children).sum(1)
        scores.after(step, children, parent)
    if not measure_entropy:
        spread = -log_prob
        if not ordered_entropy:
            spread = (spread - (turned - score).exp().log1p()).clamp(min=0.0)
    return Rollout(
        positions.merges, nodes, counts, log_prob, score - log_prob, spread, positions.active
    )


@torch.no_grad()
def follow(
    autoencoder: HTMAutoencoder,
    batch: TokenBatch,
    merges: Int64[Tensor, "B M 2"],
    nearest: Nearest | None = None,
) -> Rollout:
    """The episodes of given merges, encoded level by level; with ``nearest``, among candidates.

    What a policy thinks of them stays 0; see :func:`agents.likelihood.log_probs.judged`.
    """
    num_leaves = batch.num_tokens
    levels = forest_levels(merges, num_leaves)
    size, slots = batch.present.shape
    states = autoencoder.encode_levels(autoencoder.standardise(batch.tokens), batch.present, levels)
    nodes = batch.tokens.new_zeros(size * (2 * slots - 1), autoencoder.embedding_dim)
    nodes[torch.cat([level.nodes for level in levels])] = torch.cat(states)
    zeros = batch.tokens.new_zeros(size, slots - 1)
    nodes = nodes.view(size, 2 * slots - 1, -1)
    candidates = None
    if nearest is not None:
        standardised = autoencoder.standardise(batch.tokens)
        candidates = candidates_along(standardised, batch.present, nodes, merges, nearest)
    counts = leaf_counts(merges, num_leaves)
    return Rollout(merges, nodes, counts, zeros, zeros, zeros, candidates=candidates)
