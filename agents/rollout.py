"""Episodes of a policy, many at once: merges, embeddings, log-probabilities and entropies.

Only the row and the column of the new token are scored after a merge. Inside a rollout the active
nodes of a sample stand at its first positions (the parent takes the lower position of the pair, the
last active node the higher one), and the samples are sorted by how many merges they still have to
make, so that what is computed shrinks with the populations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from agents.policy import ILLEGAL, MergePolicy
from htm_env.autoencoder import HTMAutoencoder, forest_levels
from htm_env.forest import leaf_counts
from htm_env.types import NONE, TokenBatch


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
    """Entropy of each choice over that of a uniform one, in [0, 1] (see :func:`choice_entropy`)."""

    @property
    def steps(self) -> Bool[Tensor, "B M"]:
        """True <--> a merge was made."""
        return self.merges[..., 0] >= 0

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
) -> Rollout:
    """Let ``policy`` merge every sample of ``batch``.

    ``greedy`` takes the best pair instead of sampling; ``num_merges`` stops earlier than at one root;
    ``ordered_entropy`` says whether the order within a pair counts as a choice.
    """
    to_make = batch.num_tokens - 1 if num_merges is None else num_merges
    order = to_make.argsort(descending=True, stable=True)
    made = _rollout_sorted(
        autoencoder, policy, batch.rows(order), generator, greedy, to_make[order], ordered_entropy
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
) -> tuple[Tensor, ...]:
    size, slots = batch.present.shape
    device, num_leaves = batch.tokens.device, batch.num_tokens
    rows = torch.arange(size, device=device)
    position = torch.arange(slots, device=device)

    lifted = autoencoder.lifter(autoencoder.standardise(batch.tokens)) * batch.present[..., None]
    nodes = lifted.new_zeros(size, 2 * slots - 1, lifted.shape[2])
    nodes[:, :slots] = lifted
    counts = num_leaves.new_zeros(size, 2 * slots - 1)
    counts[:, :slots] = batch.present.long()
    here = position.expand(size, slots).masked_fill(~batch.present, NONE).clone()  # node of position
    features = policy.features(lifted, counts[:, :slots])
    scores = policy.scores(features, features)
    scores.masked_fill_(~(batch.present[:, :, None] & batch.present[:, None, :]), ILLEGAL)
    scores.diagonal(dim1=1, dim2=2).fill_(ILLEGAL)

    merges = here.new_full((size, slots - 1, 2), NONE)
    active = here.new_full((size, slots - 1, slots), NONE)
    log_prob, entropy = nodes.new_zeros(size, slots - 1), nodes.new_zeros(size, slots - 1)
    running_at = (to_make[:, None] > position[:-1]).sum(0).tolist()  # samples left at each step
    most = int(num_leaves.max())
    for step, running in enumerate(running_at):
        if running == 0:
            break
        row, width = rows[:running], most - step
        active[:running, step] = here[:running]
        current = scores[:running, :width, :width]
        first, second, log_prob[:running, step] = choose_pairs(current, generator, greedy)
        entropy[:running, step] = choice_entropy(
            current, num_leaves[:running] - step, ordered_entropy
        )
        merges[:running, step, 0] = here[row, first]
        merges[:running, step, 1] = here[row, second]
        children = merges[:running, step]  # (R, 2)
        parent = num_leaves[:running] + step
        merged = autoencoder.merger(nodes[row[:, None], children].flatten(1))
        nodes[row, parent] = merged
        counts[row, parent] = counts[row[:, None], children].sum(1)

        low, high = torch.minimum(first, second), torch.maximum(first, second)
        last = num_leaves[:running] - step - 1
        here[row, high] = here[row, last]
        here[row, last] = NONE
        here[row, low] = parent
        features[row, high] = features[row, last]
        new = policy.features(merged, counts[row, parent])
        features[row, low] = new
        scores[row, high] = scores[row, last]
        scores[row, :, high] = scores[row, :, last]
        known = features[:running, :width]
        scores[row, low, :width] = policy.scores(new[:, None], known)[:, 0]
        scores[row, :width, low] = policy.scores(known, new[:, None])[..., 0]
        beyond = position[:width] >= last[:, None]  # positions that are empty now
        scores[row, low, :width] = scores[row, low, :width].masked_fill(beyond, ILLEGAL)
        scores[row, :width, low] = scores[row, :width, low].masked_fill(beyond, ILLEGAL)
        scores[row, last] = ILLEGAL
        scores[row, :, last] = ILLEGAL
        scores[row, low, low] = ILLEGAL
        scores[row, high, high] = ILLEGAL
    return merges, nodes, counts, active, log_prob, entropy


def choose_pairs(
    scores: Float[Tensor, "R W W"], generator: torch.Generator, greedy: bool
) -> tuple[Int64[Tensor, "R"], Int64[Tensor, "R"], Float[Tensor, "R"]]:
    """An ordered pair of positions a sample, and its log-probability.

    Sampled in two stages, the first position and then the second given the first, so that a step
    draws ``2 W`` random numbers a sample instead of ``W^2``.
    """
    rows = torch.arange(len(scores), device=scores.device)
    width = scores.shape[1]
    best = scores.amax(dim=(1, 2), keepdim=True)
    weights = (scores - best).exp()  # (R, W, W), illegal pairs exactly 0
    by_first = weights.sum(2)
    log_total = by_first.sum(1).log() + best[:, 0, 0]
    if greedy:
        pair = scores.flatten(1).argmax(1)
        first, second = pair // width, pair % width
    else:
        first = torch.multinomial(by_first, 1, generator=generator).squeeze(1)
        second = torch.multinomial(weights[rows, first], 1, generator=generator).squeeze(1)
    return first, second, scores[rows, first, second] - log_total


def choice_entropy(
    scores: Float[Tensor, "*batch W W"], num_active: Int64[Tensor, "*batch"], ordered: bool
) -> Float[Tensor, "*batch"]:
    """The entropy of choosing a pair, over that of choosing uniformly; differentiable.

    ``ordered`` counts ``(i, j)`` and ``(j, i)`` as two choices, otherwise their probabilities are
    summed: which tokens to merge is then worth exploring, which of them comes first is not. With
    two active nodes there is one unordered choice, of entropy 0 by definition.
    """
    choices = num_active * (num_active - 1)
    if not ordered:
        upper = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = torch.logaddexp(scores, scores.transpose(-1, -2)).masked_fill(~upper, ILLEGAL)
        choices = choices // 2
    scores = scores.flatten(-2)
    normaliser = scores.logsumexp(-1)
    probabilities = (scores - normaliser[..., None]).exp()
    entropy = normaliser - (probabilities * scores).sum(-1)
    return torch.where(choices > 1, entropy / choices.clamp(min=2).log(), 0.0)


@torch.no_grad()
def follow(
    autoencoder: HTMAutoencoder, batch: TokenBatch, merges: Int64[Tensor, "B M 2"]
) -> Rollout:
    """The episodes of given merges, encoded level by level; their log-probabilities stay 0."""
    num_leaves = batch.num_tokens
    levels = forest_levels(merges, num_leaves)
    size, slots = batch.present.shape
    states = autoencoder.encode_levels(
        autoencoder.standardise(batch.tokens), batch.present, levels
    )
    nodes = batch.tokens.new_zeros(size * (2 * slots - 1), autoencoder.embedding_dim)
    nodes[torch.cat([level.nodes for level in levels])] = torch.cat(states)
    zeros = batch.tokens.new_zeros(size, slots - 1)
    return Rollout(
        merges,
        nodes.view(size, 2 * slots - 1, -1),
        leaf_counts(merges, num_leaves),
        active_before_merges(merges, num_leaves),
        zeros,
        zeros,
    )


def active_before_merges(
    merges: Int64[Tensor, "B M 2"], num_leaves: Int64[Tensor, "B"]
) -> Int64[Tensor, "B M P"]:
    """The active nodes before each merge, at the first positions in node order; -1 pads.

    A node is active from the step after the one that made it to the step that merges it.
    """
    batch, steps, _ = merges.shape
    num_nodes = 2 * steps + 1
    device = merges.device
    node = torch.arange(num_nodes, device=device)
    time = torch.arange(steps, device=device)
    real = merges[..., 0] >= 0
    born = (node - num_leaves[:, None] + 1).clamp(min=0)  # (B, N)
    merged_at = born.new_full((batch, num_nodes + 1), steps)  # -1 lands in the pad
    merged_at.scatter_(
        1, merges.flatten(1) % (num_nodes + 1), time.repeat_interleave(2).expand(batch, -1)
    )
    made = num_leaves + real.sum(1)
    active = (
        (born[:, None] <= time[:, None])
        & (merged_at[:, None, :-1] >= time[:, None])
        & (node < made[:, None])[:, None]
        & real[..., None]
    )  # (B, M, N)
    first = node.expand_as(active).masked_fill(~active, num_nodes).sort(dim=2).values
    return first[..., : steps + 1].masked_fill(first[..., : steps + 1] == num_nodes, NONE)
