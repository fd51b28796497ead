"""Episodes of a policy, many at once: merges, embeddings, log-probabilities and entropies.

Only the row and the column of the new token are scored after a merge, and what is computed shrinks
with the populations (see ``positions.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from agents.choices import choices, choose_pairs, most_entropy, pair_weights
from agents.policy import ILLEGAL, MergePolicy, bounded
from agents.positions import PairTable, Positions
from htm_env.autoencoder import HTMAutoencoder
from htm_env.forest import leaf_counts
from htm_env.levels import forest_levels
from htm_env.types import TokenBatch


@dataclass(frozen=True)
class Rollout:
    """``B`` episodes and everything that learning from them needs; no gradients."""

    merges: Int64[Tensor, "B M 2"]
    nodes: Float[Tensor, "B N D"]
    """The embedding of every node; zeros for nodes that were not made."""
    leaf_counts: Int64[Tensor, "B N"]
    """Tokens under every node; 0 for nodes that were not made."""
    active: Int64[Tensor, "B M P"]
    """The active nodes before each merge, at the first positions; -1 pads."""
    log_prob: Float[Tensor, "B M"]
    """Log-probability of each merge under the policy that made it; 0 in padding."""
    entropy: Float[Tensor, "B M"]
    """Entropy of each choice over that of a uniform one, in [0, 1] (see ``choices.py``)."""

    @property
    def steps(self) -> Bool[Tensor, "B M"]:
        """True <--> a merge was made."""
        return self.merges[..., 0] >= 0

    def open_steps(self, ordered: bool) -> Bool[Tensor, "B M"]:
        """True <--> there was more than one choice; two nodes leave only their order to choose."""
        return (self.active >= 0).sum(2) > (1 if ordered else 2)

    @property
    def exists(self) -> Bool[Tensor, "B N"]:
        return self.leaf_counts > 0


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
) -> Rollout:
    """Let ``policy`` merge every sample of ``batch``.

    ``greedy`` takes the best pair instead of sampling; ``num_merges`` stops earlier than at one
    root; ``ordered_entropy`` says whether the order within a pair counts as a choice;
    without ``measure_entropy``, which costs time at every step, entropies stay 0.
    """
    to_make = batch.num_tokens - 1 if num_merges is None else num_merges
    order = to_make.argsort(descending=True, stable=True)
    made = _rollout_sorted(
        *(autoencoder, policy, batch.rows(order), generator, greedy, to_make[order]),
        *(ordered_entropy, measure_entropy),
    )
    back = order.argsort()
    return Rollout(*(tensor[back] for tensor in made))


def _rollout_sorted(
    autoencoder: HTMAutoencoder,
    policy: MergePolicy,
    batch: TokenBatch,
    generator: torch.Generator,
    greedy: bool,
    to_make: Tensor,
    ordered_entropy: bool,
    measure_entropy: bool,
) -> tuple[Tensor, ...]:
    size, slots = batch.present.shape
    num_leaves = batch.num_tokens
    lifted = autoencoder.lifter(autoencoder.standardise(batch.tokens)) * batch.present[..., None]
    nodes = lifted.new_zeros(size, 2 * slots - 1, lifted.shape[2])
    nodes[:, :slots] = lifted
    counts = num_leaves.new_zeros(size, 2 * slots - 1)
    counts[:, :slots] = batch.present.long()
    features = policy.features(lifted, counts[:, :slots])
    scores = PairTable(bounded(policy.scores(features, features)), batch.present, ILLEGAL)

    positions = Positions(batch.present, to_make)
    log_prob, entropy = nodes.new_zeros(size, slots - 1), nodes.new_zeros(size, slots - 1)
    for step in positions.steps():
        if measure_entropy:
            distribution = choices(scores.view(step), ordered_entropy)
            weights = distribution.probability
            most = most_entropy(step.num_active, ordered_entropy)
            entropy[step.rows, step.time] = distribution.entropy / most
        else:
            weights, _ = pair_weights(scores.view(step))
        first, second, log_prob[step.rows, step.time] = choose_pairs(weights, generator, greedy)
        children, parent = positions.merge(step, first, second)
        row = step.rows
        merged = autoencoder.merger(nodes[row[:, None], children].flatten(1))
        nodes[row, parent] = merged
        counts[row, parent] = counts[row[:, None], children].sum(1)

        features[row, step.high] = features[row, step.last]
        new = policy.features(merged, counts[row, parent])
        features[row, step.low] = new
        known = features[: len(row), : step.width]
        scores.replace(
            step,
            bounded(policy.scores(new[:, None], known)[:, 0]),
            bounded(policy.scores(known, new[:, None])[..., 0]),
        )
    return positions.merges, nodes, counts, positions.active, log_prob, entropy


@torch.no_grad()
def follow(
    autoencoder: HTMAutoencoder, batch: TokenBatch, merges: Int64[Tensor, "B M 2"]
) -> Rollout:
    """The episodes of given merges, encoded level by level; their log-probabilities stay 0."""
    num_leaves = batch.num_tokens
    levels = forest_levels(merges, num_leaves)
    size, slots = batch.present.shape
    states = autoencoder.encode_levels(autoencoder.standardise(batch.tokens), batch.present, levels)
    nodes = batch.tokens.new_zeros(size * (2 * slots - 1), autoencoder.embedding_dim)
    nodes[torch.cat([level.nodes for level in levels])] = torch.cat(states)
    zeros = batch.tokens.new_zeros(size, slots - 1)
    return Rollout(
        merges,
        nodes.view(size, 2 * slots - 1, -1),
        leaf_counts(merges, num_leaves),
        Positions.of(batch.present, merges).active,
        zeros,
        zeros,
    )
