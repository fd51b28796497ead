"""A softmax over distances: the stochastic version of merging what is nearest."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.demonstrations.behaviour import Behaviour
from agents.fixed.order import compare, node_centroids
from agents.likelihood.trees import SEQUENCES, exact_tree_log_probs, sequence_log_probs
from agents.rollouts.pair_scores import ILLEGAL, PairTable, Positions, bounded
from agents.rollouts.rollout import choose_pairs, probabilities
from htm_env.autoencoder import HTMAutoencoder
from htm_env.types import TokenBatch
from replay import tree_log_prob


class SoftNearest(Behaviour):
    """At every step a softmax over the negative distances of the centroids of all active pairs.

    The child that comes first in sorted order (the smaller centroid, first coordinate, then the
    next) is put first with probability ``1 - order_epsilon``; either, where all coordinates tie.
    """

    def __init__(
        self,
        batch: TokenBatch,
        autoencoder: HTMAutoencoder,
        temperature: float,
        order_epsilon: float,
    ) -> None:
        self.batch, self.autoencoder = batch, autoencoder
        self.temperature, self.order_epsilon = temperature, order_epsilon

    @torch.no_grad()
    def episodes(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        num_tokens = self.batch.num_tokens
        order = num_tokens.argsort(descending=True, stable=True)
        merges, log_prob = self._episodes(self.batch.rows(order), generator)
        back = order.argsort()
        return merges[back], log_prob[back]

    def _episodes(self, batch: TokenBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Of samples whose sizes fall from row to row."""
        centroids = self.autoencoder.standardise(batch.tokens).double()
        centroids = centroids * batch.present[..., None]  # (B, P, T)
        counts = batch.present.double()
        scores = PairTable(
            self._scores(centroids[:, :, None], centroids[:, None]), batch.present, ILLEGAL
        )
        positions = Positions(batch.present, batch.num_tokens - 1)
        log_prob = torch.zeros_like(batch.tokens[:, 1:, 0])
        for step in positions.steps():
            now, rows = scores.view(step), step.rows
            first, second, _ = choose_pairs(probabilities(now), generator, False)
            chosen = now[rows, first, second] - now.flatten(1).logsumexp(1)
            log_prob[rows, step.time] = chosen.clamp(max=0.0).to(log_prob.dtype)
            positions.merge(step, first, second)
            pair = torch.stack([first, second], dim=1)
            share = counts[rows[:, None], pair]
            total = share.sum(1, keepdim=True)
            new = (centroids[rows[:, None], pair] * (share / total)[..., None]).sum(1)
            centroids[rows, step.high] = centroids[rows, step.last]
            counts[rows, step.high] = counts[rows, step.last]
            centroids[rows, step.low], counts[rows, step.low] = new, total[:, 0]
            known = centroids[: len(rows), : step.width]
            scores.replace(
                step, self._scores(new[:, None], known), self._scores(known, new[:, None])
            )
        return positions.merges, log_prob

    @torch.no_grad()
    def log_prob(self, merges: Int64[Tensor, "B M 2"]) -> Float[Tensor, "B M"]:
        active = Positions.of(self.batch.present, merges).active
        log_prob, _ = sequence_log_probs(self._node_scores(merges), merges, active)
        return log_prob.to(self.batch.tokens.dtype)

    @torch.no_grad()
    def tree_log_prob(
        self, merges: Int64[Tensor, "B M 2"], generator: torch.Generator
    ) -> Float[Tensor, "B"]:
        """Exact for trees of up to 20 tokens (see ``likelihood/trees.py``); otherwise estimated
        from some of a tree's sequences: consistent, not unbiased."""

        def of_sequences(sequences: Tensor, tree: Tensor) -> Tensor:
            samples = self.batch.rows(many[tree])
            again = SoftNearest(samples, self.autoencoder, self.temperature, self.order_epsilon)
            return again.log_prob(sequences).sum(1)

        scores, num_leaves = self._node_scores(merges), self.batch.num_tokens
        result = exact_tree_log_probs(scores, merges, num_leaves).to(self.batch.tokens.dtype)
        many = result.isnan().nonzero()[:, 0]
        if len(many):
            result[many] = tree_log_prob(
                merges[many], num_leaves[many], of_sequences, generator, sequences=SEQUENCES
            )
        return result

    def _node_scores(self, merges: Tensor) -> Float[Tensor, "B N N"]:
        """That of every ordered pair of nodes of the trees."""
        centroids = node_centroids(merges, self.batch, self.autoencoder)
        return self._scores(centroids[:, :, None], centroids[:, None])

    def _scores(self, first: Tensor, second: Tensor) -> Tensor:
        """Log-probability, but for a constant, of merging two centroids in this order."""
        distance = torch.linalg.vector_norm(first - second, dim=-1)
        comes = compare(*torch.broadcast_tensors(first, second))
        sorted_share = torch.where(comes < 0, 1 - self.order_epsilon, self.order_epsilon)
        share = torch.where(comes == 0, 0.5, sorted_share)
        return bounded(-distance / self.temperature) + share.log()
