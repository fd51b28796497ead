"""The policy network on one population after another, looking only at what is new in each.

A merge changes two slots of a population. To a pair scorer a token looks the same whatever stands
beside it, so that its features hold until it goes, and the score of a candidate until either of the
two does. Where every pair is an action, all scores are one product of the features, made anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from agents.networks.base import Features, MergePolicy, NodePolicy, action_logits, bounded
from agents.ppo.sharing import looks_at_tokens_alone


@dataclass
class _Seen:
    """``B`` populations and what the network made of them, which follows them as they change."""

    network: NodePolicy
    weights: list[Tensor]
    tokens: Float[Tensor, "B P D"]
    counts: Int64[Tensor, "B P"]
    features: Features
    candidates: Int64[Tensor, "B P k"] | None
    scores: Float[Tensor, "B P k"] | None
    """Of the candidates; anything finite in empty places. None where all are candidates."""

    @classmethod
    def of(
        cls,
        network: NodePolicy,
        tokens: Float[Tensor, "B P D"],
        counts: Int64[Tensor, "B P"],
        candidates: Int64[Tensor, "B P k"] | None,
    ) -> _Seen:
        made = network.features(tokens, counts)
        # Copies: they are written to, and may be one tensor, or the embeddings themselves.
        hidden = None if made.hidden is None else made.hidden.clone()
        features = Features(made.first.clone(), made.second.clone(), hidden)
        scores = None
        if candidates is not None:
            scores = bounded(network.listed_scores(features.first, features.second, candidates))
        weights = [weight.clone() for weight in network.parameters()]
        return cls(network, weights, tokens, counts, features, candidates, scores)

    def fits(
        self,
        network: NodePolicy,
        tokens: Float[Tensor, "B P D"],
        candidates: Int64[Tensor, "B P k"] | None,
    ) -> bool:
        """True <--> it says anything of these: as many populations, to a network that is the same
        and has not learned."""
        sizes = [None if lists is None else lists.shape for lists in (candidates, self.candidates)]
        return (
            (tokens.shape, tokens.device) == (self.tokens.shape, self.tokens.device)
            and sizes[0] == sizes[1]
            and network is self.network
            and all(map(torch.equal, self.weights, network.parameters()))
        )

    def follow(
        self,
        tokens: Float[Tensor, "B P D"],
        counts: Int64[Tensor, "B P"],
        candidates: Int64[Tensor, "B P k"] | None,
    ) -> None:
        """Look at the tokens and the candidates that are new."""
        is_new = (tokens != self.tokens).any(2) | (counts != self.counts)
        made, kept = self.network.features(tokens[is_new], counts[is_new]), self.features
        kept.first[is_new], kept.second[is_new] = made.first, made.second
        if kept.hidden is not None and made.hidden is not None:
            kept.hidden[is_new] = made.hidden
        self.tokens, self.counts = tokens, counts
        if candidates is not None:
            self._score(candidates, is_new)

    def _score(self, candidates: Int64[Tensor, "B P k"], is_new: Bool[Tensor, "B P"]) -> None:
        assert self.candidates is not None and self.scores is not None
        partner = candidates.clamp(min=0)
        to_score = (candidates != self.candidates) | is_new[:, :, None]
        to_score |= is_new.gather(1, partner.flatten(1)).view_as(partner)
        row, slot, place = (to_score & (candidates >= 0)).nonzero(as_tuple=True)
        second = self.features.second[row, partner[row, slot, place]]
        scores = self.network.paired_scores(self.features.first[row, slot], second)
        self.scores[row, slot, place] = bounded(scores)
        self.candidates = candidates


class RecentLook:
    """Gives what ``network(observation)`` gives, without gradients.

    What was made of the latest populations is kept, and compared with the next ones: of those of a
    rollout, one merge later, only new tokens are looked at. Any others may come as well.
    """

    def __init__(self) -> None:
        self._seen: _Seen | None = None

    def __reduce__(self) -> tuple[type[RecentLook], tuple[()]]:
        """Copies, and what is written to files, begin with nothing."""
        return RecentLook, ()

    @torch.inference_mode(False)  # or nobody else could write to what is kept
    @torch.no_grad()
    def __call__(
        self, network: MergePolicy, observation: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B"]]:
        active = observation["active"].bool()
        mixed = torch.is_autocast_enabled(active.device.type)  # of one type here, of another there
        if mixed or not looks_at_tokens_alone(network):
            return network(observation)
        # Copies, since the environment may write to what it showed.
        tokens = observation["tokens"].float().masked_fill(~active[..., None], 0.0)
        counts = observation["leaf_counts"].to(torch.int64, copy=True)
        candidates = observation.get("candidates")
        if candidates is not None:
            candidates = candidates.to(torch.int64, copy=True)
        seen, self._seen = self._seen, None  # an interrupted look leaves nothing
        if seen is not None and seen.fits(network, tokens, candidates):
            seen.follow(tokens, counts, candidates)
        else:
            seen = _Seen.of(network, tokens, counts, candidates)
        self._seen = seen
        features, scores = seen.features, seen.scores
        if scores is None:
            scores = bounded(network.scores(features.first, features.second))
        values = network.values(features.pooled, active[:, None].float())[:, 0]
        return action_logits(scores, observation), values
