"""A plain training step in the style of the published method: what ours is compared with.

Tokens are in slots, the pairs that can be merged in a dense table of scores ``(B, P, P)``. All
samples go in lockstep, one merge of each at a time, and the decoder goes the same way back. The
scores come from an MLP over two concatenated embeddings; a new token's row and column are scored
anew, the rest of the table is kept: all of it again at every merge would cost ``P`` times as much,
and no memory would hold the gradients. All samples have the same number of tokens.

Written for the reader, batched over the samples; the tests hold the fast implementation against it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

from agents.networks.scorers import PairPolicy
from htm_env.autoencoder import HTMAutoencoder

ILLEGAL = -1e9


class Encoded(NamedTuple):
    """What merging every sample down to one token gives."""

    slots: Float[Tensor, "B P D"]
    """The root where it ended up, and what was left in slots that merges have emptied."""
    states: list[Tensor]
    """Every embedding that was made: lifted tokens (B P D), then one merged token (B D) a step."""
    pairs: list[tuple[Tensor, Tensor]]
    """The two slots (B,) of each merge; the merged token is in the first of them."""
    log_prob: Float[Tensor, "B M"]
    rewards: Float[Tensor, "B M"]
    """Minus the squared error of unmerging what was just merged."""


def pair_scores(
    policy: PairPolicy, first: Float[Tensor, "*pairs D"], second: Float[Tensor, "*pairs D"]
) -> Float[Tensor, "*pairs"]:
    """The MLP over two embeddings."""
    return policy.rest(policy.first(torch.cat([first, second], dim=-1))).squeeze(-1)


def score_table(policy: PairPolicy, slots: Float[Tensor, "B P D"]) -> Float[Tensor, "B P P"]:
    """The scores of all ordered pairs, legal or not."""
    first, second = torch.broadcast_tensors(slots[:, :, None], slots[:, None])  # (B, P, P, D)
    return pair_scores(policy, first, second)


def legal_table(active: Bool[Tensor, "B P"]) -> Bool[Tensor, "B P P"]:
    """True <--> both slots hold a token, and they are two."""
    both = active[:, :, None] & active[:, None, :]
    return both & ~torch.eye(active.shape[1], dtype=torch.bool, device=active.device)


def encode(
    autoencoder: HTMAutoencoder,
    policy: PairPolicy,
    standardised: Float[Tensor, "B P T"],
    generator: torch.Generator | None = None,
    merges: Int64[Tensor, "B M 2"] | None = None,
) -> Encoded:
    """Merge to one token a sample: the pairs that the policy draws, or the nodes of ``merges``."""
    (batch, size, _), device = standardised.shape, standardised.device
    row = torch.arange(batch, device=device)
    slots = autoencoder.lifter(standardised)  # (B, P, D)
    active = torch.ones(batch, size, dtype=torch.bool, device=device)
    node = torch.arange(size, device=device).repeat(batch, 1)  # which node is in which slot
    table = score_table(policy, slots.detach())
    states, pairs, log_probs, rewards = [slots], [], [], []
    for step in range(size - 1):
        legal = legal_table(active)
        log_prob = log_softmax(table.masked_fill(~legal, ILLEGAL).flatten(1), dim=1)  # (B, P P)
        if merges is None:
            action = torch.multinomial(log_prob.detach().exp(), 1, generator=generator)[:, 0]
            first, second = action // size, action % size
        else:
            first = (node == merges[:, step, :1]).long().argmax(1)
            second = (node == merges[:, step, 1:]).long().argmax(1)
            action = first * size + second
        pair = torch.cat([slots[row, first], slots[row, second]], dim=1)  # (B, 2 D)
        merged = autoencoder.merger(pair)
        with torch.no_grad():
            rewards.append(-(autoencoder.unmerger(merged) - pair).square().mean(1))
        slots = slots.index_put((row, first), merged)
        node[row, first], node[row, second] = size + step, -1
        active[row, second] = False

        known, new = slots.detach(), merged.detach()[:, None].expand(-1, size, -1)
        table = table.index_put((row, first), pair_scores(policy, new, known))
        column = table.transpose(1, 2).index_put((row, first), pair_scores(policy, known, new))
        table = column.transpose(1, 2)
        states.append(merged)
        pairs.append((first, second))
        log_probs.append(log_prob[row, action])
    return Encoded(slots, states, pairs, torch.stack(log_probs, 1), torch.stack(rewards, 1))


def decode(autoencoder: HTMAutoencoder, encoded: Encoded) -> Float[Tensor, "B P D"]:
    """Unmerge the roots in the reverse order, down to the embedding of every token."""
    slots = encoded.slots
    row = torch.arange(len(slots), device=slots.device)
    for first, second in reversed(encoded.pairs):
        left, right = autoencoder.unmerger(slots[row, first]).chunk(2, dim=1)
        slots = slots.index_put((row, first), left).index_put((row, second), right)
    return slots


def losses(
    autoencoder: HTMAutoencoder,
    policy: PairPolicy,
    standardised: Float[Tensor, "B P T"],
    generator: torch.Generator,
) -> dict[str, Float[Tensor, ""]]:
    """Reconstruction, REINFORCE on the normalised one-step reward, and the leaf classifier.

    The policy and the classifier learn from embeddings that they do not change.
    """
    encoded = encode(autoencoder, policy, standardised, generator)
    decoded = decode(autoencoder, encoded)
    rewards = encoded.rewards
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
    lifted, *merged = encoded.states
    leaves = torch.cat([lifted, decoded], dim=1).flatten(0, 1)
    logits = autoencoder.classifier(torch.cat([leaves, *merged]).detach()).squeeze(1)
    is_leaf = torch.arange(len(logits), device=logits.device) < len(leaves)
    return {
        "reconstruction": (autoencoder.unlifter(decoded) - standardised).square().mean(),
        "policy": -(advantages * encoded.log_prob).sum(1).mean(),
        "classifier": binary_cross_entropy_with_logits(logits, is_leaf.float()),
    }


def training_step(
    autoencoder: HTMAutoencoder,
    policy: PairPolicy,
    optimizer: torch.optim.Optimizer,
    standardised: Float[Tensor, "B P T"],
    generator: torch.Generator,
) -> dict[str, float]:
    """Forward, all losses, backward, one step of the optimizer; returns the losses."""
    made = losses(autoencoder, policy, standardised, generator)
    optimizer.zero_grad()
    torch.stack(list(made.values())).sum().backward()
    optimizer.step()
    return {name: float(loss.detach()) for name, loss in made.items()}
