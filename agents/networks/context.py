"""A policy that scores pairs in their population: a context encoder in front of a pair scorer."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from agents.encoders import (
    NO_ENCODER,
    ContextConfig,
    ContextEncoder,
    Spans,
    check_encoder,
    make_encoder,
)
from agents.encoders.base import without_junk
from agents.likelihood.base import PolicyTerms
from agents.likelihood.with_context import ContextTerms
from agents.networks.base import MergePolicy
from agents.networks.scorers import NodePolicy, make_scorer
from agents.rollouts.candidates import CandidateLists, FreshListedScores
from agents.rollouts.pair_scores import (
    ContextOutput,
    FreshPairScores,
    NodeTables,
    PairScores,
    Positions,
    bounded,
)
from agents.rollouts.rollout import Episodes
from htm_env.autoencoder import TreeEncoder
from htm_env.types import TokenBatch

OBSERVED = {
    "centroids": ("centroids",),
    "order": ("order",),
    "leaf_order": ("leaf_order",),
    "spans": ("leaves", "owners"),
}
"""The keys of an observation that each thing that an encoder may need is made of."""

ORDERS = ("order", "leaf_order")
"""The keys of an observation that are an encoder's ``order``."""


def observed_by(encoder: str, context: ContextConfig | None = None) -> tuple[str, ...]:
    """The extra keys that an observation has to have for a policy with that encoder.

    Raises ``ValueError`` for an unknown one.
    """
    if check_encoder(encoder) == NO_ENCODER:
        return ()
    options = getattr(ContextConfig() if context is None else context, encoder)
    return tuple(key for name in options.needs for key in OBSERVED[name])


class ContextPolicy(MergePolicy):
    """Every token is scored with its context and the population's summary beside it.

    The scorer takes embedding, context token and summary side by side, so that without anything
    learned of the context it starts as the scorer alone would.
    """

    def __init__(
        self, embedding_dim: int, encoder: ContextEncoder, scorer: NodePolicy, width: int
    ) -> None:
        """``scorer`` takes tokens of ``embedding_dim + 2 * width`` numbers."""
        super().__init__()
        self.embedding_dim = embedding_dim
        self.observes = tuple(key for name in encoder.needs for key in OBSERVED[name])
        self.lift = nn.Linear(embedding_dim, width)
        self.encoder, self.scorer = encoder, scorer
        self.carries, self.has_losses = encoder.carries, encoder.has_losses

    def contextual_scores(
        self,
        observation: dict[str, Tensor],
        state: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ContextOutput:
        """Scores and values, from the beginning or from the ``state`` of the population before.

        After a merge the parent's part of the state is what
        :meth:`agents.encoders.ContextEncoder.merged_state` makes of its children's. With a
        ``generator``, there are the encoder's own losses too.
        """
        active = observation["active"].bool()
        tokens = without_junk(observation["tokens"].float(), active)
        spans = None
        if "owners" in self.observes:
            spans = Spans(observation["leaves"].float(), observation["owners"].long())
        context = self.encoder(
            self.lift(tokens),
            active,
            centroids=observation["centroids"].float() if "centroids" in self.observes else None,
            order=next((observation[key].long() for key in ORDERS if key in self.observes), None),
            spans=spans,
            state=state,
            generator=generator,
        )
        summary = context.summary[:, None].expand_as(context.tokens)
        seen = torch.cat([tokens, context.tokens, summary], dim=-1)
        features = self.scorer.features(seen, observation["leaf_counts"])
        values = self.scorer.values(features.pooled, active[:, None].float())[:, 0]
        scores = bounded(self.scorer.population_scores(features, observation))
        carried = context.state if self.encoder.carries else None
        return ContextOutput(scores, values, context.losses, carried)

    def state_scores(
        self, observation: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "B P C"], Float[Tensor, "B"]]:
        output = self.contextual_scores(observation)
        return output.scores, output.values

    def pair_scores(self, tables: NodeTables, positions: Positions) -> PairScores:
        return FreshPairScores(self, tables, positions)

    def candidate_scores(self, tables: NodeTables, lists: CandidateLists) -> PairScores:
        return FreshListedScores(self, tables, lists)

    def terms(self, autoencoder: TreeEncoder, batch: TokenBatch, episodes: Episodes) -> PolicyTerms:
        return ContextTerms(self, autoencoder, batch, episodes)

    def merged_state(self, first: Tensor, second: Tensor) -> Tensor:
        return self.encoder.merged_state(first, second)

    def scores_from(
        self, observation: dict[str, Tensor], state: Tensor | None, starts: Any
    ) -> tuple[Float[Tensor, "B P C"], Tensor | None]:
        if not self.carries:
            return super().scores_from(observation, state, starts)
        begins = torch.full((len(observation["active"]),), state is None)
        if starts is not None:
            begins |= torch.as_tensor(starts).cpu().bool().reshape(-1)
        outputs = [self.contextual_scores(observation, state)] if not begins.all() else []
        outputs += [self.contextual_scores(observation)] if begins.any() else []
        scores, after = outputs[0].scores, outputs[0].state
        assert after is not None  # since the encoder carries one
        if len(outputs) == 2:
            fresh = outputs[1]
            assert fresh.state is not None
            begins = begins.to(scores.device)
            scores = torch.where(begins[:, None, None], fresh.scores, scores)
            after = torch.where(begins.view(-1, *(1 for _ in after.shape[1:])), fresh.state, after)
        return scores, after


def make_policy(
    scorer: str | None,
    embedding_dim: int,
    hidden_dim: int,
    encoder: str = NO_ENCODER,
    context: ContextConfig | None = None,
    coordinates: int = 0,
    model: TreeEncoder | None = None,
) -> MergePolicy:
    """The policy network of these names; ``ValueError`` with the choices for an unknown one.

    ``coordinates`` is ``T`` of the data, for encoders that read centroids or leaves; ``model``
    merges its tokens, for scorers that read what pairs become. Without a name of a scorer, see
    :func:`agents.networks.scorers.make_scorer`.
    """
    if encoder == NO_ENCODER:
        return make_scorer(scorer, embedding_dim, hidden_dim, model)
    context = ContextConfig() if context is None else context
    return ContextPolicy(
        embedding_dim,
        make_encoder(encoder, context, coordinates),
        make_scorer(scorer, embedding_dim + 2 * context.width, hidden_dim, model),
        context.width,
    )
