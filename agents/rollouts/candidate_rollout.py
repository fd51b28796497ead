"""Episodes of a policy that chooses among candidates: O(P k) a merge instead of O(P^2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from agents.networks.base import MergePolicy
from agents.rollouts.candidate_record import CandidateRecord
from agents.rollouts.deviation import Deviation
from agents.rollouts.leaves import leaf_tables
from agents.rollouts.listed_scores import listed_scores
from agents.rollouts.sampling import choices, choose_pairs, probabilities
from htm_env.autoencoder import HTMAutoencoder
from htm_env.candidates import Nearest
from htm_env.forest import leftmost_leaves
from htm_env.types import NONE, TokenBatch
from replay import CandidatePairs


class CandidateEpisodes(NamedTuple):
    """What a rollout among candidates makes (see :class:`agents.rollouts.rollout.Rollout`)."""

    merges: Int64[Tensor, "B M 2"]
    nodes: Float[Tensor, "B N D"]
    leaf_counts: Int64[Tensor, "B N"]
    log_prob: Float[Tensor, "B M"]
    log_total: Float[Tensor, "B M"]
    entropy: Float[Tensor, "B M"]
    """In nats; where it was not measured, minus the log-probability of what was drawn."""
    candidates: CandidatePairs


def candidate_episodes(
    autoencoder: HTMAutoencoder,
    policy: MergePolicy,
    batch: TokenBatch,
    generator: torch.Generator,
    greedy: bool,
    to_make: Int64[Tensor, "B"],
    nearest: Nearest,
    measure_entropy: bool = True,
    deviation: Deviation | None = None,
) -> CandidateEpisodes:
    """Let ``policy`` merge every sample, whose numbers of merges must fall from row to row."""
    size, slots = batch.present.shape
    nodes, counts = leaf_tables(autoencoder, batch)
    standardised = autoencoder.standardise(batch.tokens)
    record = CandidateRecord(nearest, standardised, nodes, batch.present)
    scores = listed_scores(policy, autoencoder, batch, nodes, counts)
    merges = batch.num_tokens.new_full((size, slots - 1, 2), NONE)
    log_prob, log_total, entropy = nodes.new_zeros(3, size, slots - 1).unbind()
    for time, running in enumerate(_running(to_make, slots - 1)):
        record.run(running, time)
        row = torch.arange(running, device=nodes.device)
        now = scores.at(record)  # (R, P, k)
        if measure_entropy:
            probability, entropy[row, time] = choices(now, ordered=True)
        else:
            probability = probabilities(now)
        first, place, chosen = choose_pairs(probability, generator, greedy)
        log_prob[row, time], log_total[row, time] = chosen, now[row, first, place] - chosen
        if deviation is not None:
            first, place = deviation.chosen(time, now, first, place)
        second = record.lists.partners[row, first, place]
        children = torch.stack([record.nodes[row, first], record.nodes[row, second]], dim=1)
        parent = batch.num_tokens[:running] + time
        merges[row, time] = children
        nodes[row, parent] = autoencoder.merger(nodes[row[:, None], children].flatten(1))
        counts[row, parent] = counts[row[:, None], children].sum(1)
        record.merge(time, first, second, parent, nodes)
        scores.after(record, first, children, parent)
    record.run(0, int(to_make.max()))
    entropy = entropy if measure_entropy else -log_prob
    return CandidateEpisodes(merges, nodes, counts, log_prob, log_total, entropy, record.pairs())


@torch.no_grad()
def candidates_along(
    standardised: Float[Tensor, "B P T"],
    present: Bool[Tensor, "B P"],
    nodes: Float[Tensor, "B N D"],
    merges: Int64[Tensor, "B M 2"],
    nearest: Nearest,
) -> CandidatePairs:
    """The pairs that are candidates while these merges are made, whoever chose them."""
    num_leaves, to_make = present.sum(1), (merges[..., 0] >= 0).sum(1)
    order = to_make.argsort(descending=True, stable=True)
    nodes, made, leaves = nodes[order], merges[order], num_leaves[order]
    slot = leftmost_leaves(made, leaves)
    record = CandidateRecord(nearest, standardised[order], nodes, present[order])
    for time, running in enumerate(_running(to_make, made.shape[1])):
        record.run(running, time)
        first, second = slot[:running].gather(1, made[:running, time]).unbind(1)
        record.merge(time, first, second, leaves[:running] + time, nodes)
    record.run(0, int(to_make.max()))
    return record.pairs(order)


def _running(to_make: Int64[Tensor, "B"], steps: int) -> list[int]:
    """How many episodes make a merge at each step, as long as there is one."""
    time = torch.arange(steps, device=to_make.device)
    return [rows for rows in (to_make[:, None] > time).sum(0).tolist() if rows]
