"""The scores of candidates during a rollout, kept from merge to merge or made anew at each."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.networks.base import ILLEGAL, MergePolicy, NodePolicy, bounded
from agents.rollouts.candidate_record import CandidateRecord
from agents.rollouts.pair_scores import FreshScores, pair_scores
from htm_env.autoencoder import HTMAutoencoder
from htm_env.types import SampleRows, TokenBatch


@runtime_checkable
class ListedScores(Protocol):
    """What a rollout among candidates asks at every step; the tables of nodes fill up meanwhile."""

    def at(self, record: CandidateRecord) -> Float[Tensor, "R P k"]:
        """The scores before the merge; those of empty places far below all others."""

    def after(
        self,
        record: CandidateRecord,
        slot: Int64[Tensor, "R"],
        children: Int64[Tensor, "R 2"],
        parent: Int64[Tensor, "R"],
    ) -> None:
        """The merge was made: embedding and leaf count of ``parent``, which stands in ``slot``, are
        known, and the lists are those after it."""


class KeptListedScores:
    """Of a policy to which a token looks the same whatever stands beside it.

    Only what is fresh in the lists is scored.
    """

    def __init__(
        self,
        policy: NodePolicy,
        batch: TokenBatch,
        nodes: Float[Tensor, "B N D"],
        counts: Int64[Tensor, "B N"],
    ) -> None:
        slots, rows = batch.present.shape[1], SampleRows.of(batch)
        self.policy, self.nodes, self.counts = policy, nodes, counts
        leaves = policy.features(nodes[rows.first_rows, :slots], counts[rows.first_rows, :slots])
        # Copies: they are written to, and may be one tensor, or the embeddings themselves.
        self.first = rows.spread(leaves.first).clone()
        self.second = rows.spread(leaves.second).clone()
        self.scores: Tensor | None = None

    def at(self, record: CandidateRecord) -> Float[Tensor, "R P k"]:
        if self.scores is None:
            self.scores = self.first.new_full(record.lists.partners.shape, ILLEGAL)
            self._score_fresh(record)
        return self.scores[: len(record.nodes)]

    def after(
        self,
        record: CandidateRecord,
        slot: Int64[Tensor, "R"],
        children: Int64[Tensor, "R 2"],
        parent: Int64[Tensor, "R"],
    ) -> None:
        row = torch.arange(len(slot), device=slot.device)
        embeddings, counts = self.nodes[row, parent], self.counts[row, parent]
        new = self.policy.features(embeddings, counts)
        self.first[row, slot], self.second[row, slot] = new.first, new.second
        assert self.scores is not None  # since a merge was chosen by them
        self.scores = self.scores[: len(row)].masked_fill(record.lists.partners < 0, ILLEGAL)
        self._score_fresh(record)

    def _score_fresh(self, record: CandidateRecord) -> None:
        assert self.scores is not None
        row, slot, place = record.lists.fresh.nonzero(as_tuple=True)
        partner = record.lists.partners[row, slot, place]
        scores = self.policy.paired_scores(self.first[row, slot], self.second[row, partner])
        self.scores[row, slot, place] = bounded(scores)


class FreshListedScores:
    """Of a policy with a context encoder: all candidates are scored before every merge."""

    def __init__(self, scores: FreshScores) -> None:
        self.scores = scores

    def at(self, record: CandidateRecord) -> Float[Tensor, "R P k"]:
        partners = record.lists.partners
        return self.scores.look(record.nodes, partners).masked_fill(partners < 0, ILLEGAL)

    def after(
        self,
        record: CandidateRecord,
        slot: Int64[Tensor, "R"],
        children: Int64[Tensor, "R 2"],
        parent: Int64[Tensor, "R"],
    ) -> None:
        self.scores.merged(children, parent)


def listed_scores(
    policy: MergePolicy,
    autoencoder: HTMAutoencoder,
    batch: TokenBatch,
    nodes: Float[Tensor, "B N D"],
    counts: Int64[Tensor, "B N"],
) -> ListedScores:
    """The scores of a rollout among candidates; its nodes hold the leaves, and will hold the rest.

    Raises ``TypeError`` for a policy network of neither kind.
    """
    if isinstance(policy, NodePolicy):
        return KeptListedScores(policy, batch, nodes, counts)
    scores = pair_scores(policy, autoencoder, batch, nodes, counts)
    assert isinstance(scores, FreshScores)  # the only other kind there is
    return FreshListedScores(scores)
