"""The pair scorers: queries and keys, the published MLP over pairs, and what pairs become; and the
embeddings with coordinates that they may read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn
from torch.nn.functional import linear

from agents.likelihood.among_all import PairTerms
from agents.likelihood.among_candidates import CandidateTerms
from agents.likelihood.base import PolicyTerms
from agents.networks.base import MergePolicy
from agents.rollouts.candidates import CandidateLists, KeptListedScores
from agents.rollouts.greedy_search import merge_greedily
from agents.rollouts.pair_scores import (
    ArrayScorer,
    Features,
    KeptPairScores,
    NodeTables,
    PairScorer,
    PairScores,
    PointerWeights,
    Positions,
    ThroughTorch,
    bounded,
)
from agents.rollouts.rollout import Episodes
from htm_env.autoencoder import (
    ArrayFunction,
    PackedWeights,
    TreeEncoder,
    array_function,
    packed_function,
    packed_weights,
)
from htm_env.candidates import Nearest
from htm_env.checks import check_choice
from htm_env.observation import check_keys, check_width
from htm_env.types import TokenBatch

MANY = 256
"""From so many token slots on samples are merged one by one, which then is faster than together."""


class PlacedMerger:
    """The merged embedding, the mean of the centroids by their numbers of leaves, and the logarithm
    of how many these are together."""

    def __init__(self, merger: Callable[[Tensor], Tensor], dim: int) -> None:
        self.merger = merger
        self.embedding, self.place = slice(None, dim), slice(dim, -1)

    def __call__(self, pairs: Float[Tensor, "*rows V"]) -> Float[Tensor, "*rows W"]:
        first, second = pairs.chunk(2, dim=-1)
        both = torch.cat([first[..., self.embedding], second[..., self.embedding]], dim=-1)
        count = torch.logaddexp2(first[..., -1:], second[..., -1:])
        share = (first[..., -1:] - count).exp2()
        centroid = torch.lerp(second[..., self.place], first[..., self.place], share)
        return torch.cat([self.merger(both), centroid, count], dim=-1)

    def on_arrays(self) -> ArrayFunction:
        """The same on numpy arrays, with the weights as they are now."""
        merger = packed_function(self.merger)

        def function(pairs: np.ndarray) -> np.ndarray:
            first, second = pairs[:, : pairs.shape[1] // 2], pairs[:, pairs.shape[1] // 2 :]
            both = np.concatenate([first[:, self.embedding], second[:, self.embedding]], axis=1)
            counts = np.exp2(pairs[:, [first.shape[1] - 1, -1]])
            total = counts.sum(1, keepdims=True)
            share = counts[:, :1] / total
            made = np.empty_like(first)
            made[:, self.embedding] = merger(both)
            made[:, self.place] = share * first[:, self.place] + (1 - share) * second[:, self.place]
            np.log2(total, out=made[:, -1:])
            return made

        return function

    def packed_weights(self) -> PackedWeights | None:
        """Those of the merger of embeddings; what lies beside these needs none."""
        return packed_weights(self.merger)


class Placed(TreeEncoder):
    """An encoder whose embeddings have the centroid of their leaves, and the logarithm of their
    number, beside them: ``D + T + 1`` numbers, of which a policy reads more than embeddings.

    Embeddings move while an autoencoder learns, and a policy that reads nothing else has to follow
    them; coordinates stay.
    """

    observes = ("centroids",)
    """Keys of an observation that it needs beside tokens and leaf counts."""

    def __init__(self, encoder: TreeEncoder) -> None:
        width = encoder.embedding_dim + encoder.token_dim + 1
        super().__init__({"token_dim": encoder.token_dim, "embedding_dim": width})
        self.encoder, self.inner = encoder, encoder.embedding_dim
        self.merger = PlacedMerger(encoder.merger, encoder.embedding_dim)

    def standardise(self, tokens: Float[Tensor, "B P T"]) -> Float[Tensor, "B P T"]:
        return self.encoder.standardise(tokens)

    def lifter(self, standardised: Float[Tensor, "*rows T"]) -> Float[Tensor, "*rows W"]:
        """A leaf lies where its token does, and log2(1) is 0."""
        lifted = self.encoder.lifter(standardised)
        return torch.cat([lifted, standardised, torch.zeros_like(lifted[..., :1])], dim=-1)

    def observed(self, observation: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """An observation of the environment with such embeddings for its tokens.

        Raises ``ValueError`` for another embedding dimension, and for one without centroids.
        """
        check_width(observation, self.inner)
        check_keys(observation, self.observes)
        tokens, centroids, counts = (
            torch.as_tensor(observation[key], device=device).float()
            for key in ("tokens", "centroids", "leaf_counts")
        )
        counts = counts.clamp(min=1).log2()[..., None]
        return {**observation, "tokens": torch.cat([tokens, centroids, counts], dim=-1)}


class NodePolicy(MergePolicy, PairScorer):
    """A policy that gives a token the same features in every population: the pair scorers."""

    symmetric = False
    """True <--> the order within a pair changes no score."""
    value_head: nn.Module
    """From the mean of what is pooled and the logarithm of the count."""

    def node_scores(
        self,
        first: Float[Tensor, "B I H"],
        second: Float[Tensor, "B J H"],
        needed: Callable[[], Tensor],
    ) -> Float[Tensor, "B I J"]:
        """The scores of all pairs of some nodes, or of those with others (then ``I`` is not ``J``).

        ``needed`` gives the pairs that are read, bool ``(B, I, J)``, to a scorer for which
        it pays to leave out the others, which may then hold anything finite.
        """
        return self.scores(first, second)

    def scores_where(
        self,
        pairs: Bool[Tensor, "B I J"],
        first: Float[Tensor, "B I H"],
        second: Float[Tensor, "B J H"],
    ) -> Float[Tensor, "B I J"]:
        """The scores of some pairs, one by one; 0 for the others."""
        sample, one, other = pairs.nonzero(as_tuple=True)
        found = self.paired_scores(first[sample, one], second[sample, other])
        return found.new_zeros(pairs.shape).index_put((sample, one, other), found)

    def values(
        self, pooled: Float[Tensor, "B N V"], members: Float[Tensor, "B S N"]
    ) -> Float[Tensor, "B S"]:
        """The value of states, each a set of nodes: ``members`` is 1 where a node is active."""
        return self._value(members @ pooled, members.sum(-1, keepdim=True))

    def values_along(
        self,
        pooled: Float[Tensor, "B N V"],
        merges: Int64[Tensor, "B M 2"],
        num_leaves: Int64[Tensor, "B"],
    ) -> Float[Tensor, "B M"]:
        """The value of the state before every merge of an episode; anything finite in padding.

        A merge changes the sum over a state by its parent less its children, so that the sums of
        all states are running totals: O(M), where a table of who is active would be O(M N).
        """
        size, steps, _ = merges.shape
        rows = torch.arange(size, device=merges.device)[:, None]
        time = torch.arange(steps, device=merges.device)
        made = merges[..., :1] >= 0
        children = pooled[rows[..., None], merges.clamp(min=0)].sum(2)
        change = (pooled[rows, num_leaves[:, None] + time] - children).where(made, 0.0)
        leaves = torch.arange(pooled.shape[1], device=merges.device) < num_leaves[:, None]
        first = pooled.masked_fill(~leaves[..., None], 0.0).sum(1, keepdim=True)
        sums = first + change.cumsum(1) - change
        return self._value(sums, (num_leaves[:, None] - time)[..., None].to(sums.dtype))

    def _value(
        self, sums: Float[Tensor, "B S V"], count: Float[Tensor, "B S 1"]
    ) -> Float[Tensor, "B S"]:
        """The value of states of ``count`` tokens, over which ``sums`` are summed."""
        count = count.clamp(min=1)
        return self.value_head(torch.cat([sums / count, count.log2()], dim=-1)).squeeze(-1)

    def state_scores(
        self, observation: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "B P C"], Float[Tensor, "B"]]:
        active = observation["active"].bool()
        # What is in empty slots must not reach a sum, not even as 0 * NaN.
        tokens = observation["tokens"].float().masked_fill(~active[..., None], 0.0)
        features = self.features(tokens, observation["leaf_counts"])
        values = self.values(features.pooled, active[:, None].float())[:, 0]
        return bounded(self.population_scores(features, observation)), values

    def population_scores(
        self, features: Features, observation: dict[str, Tensor]
    ) -> Float[Tensor, "B P C"]:
        """The scores of all pairs, or of the candidates that the observation has; those of empty
        entries are finite."""
        first, second = features.first, features.second
        if "candidates" not in observation:
            return self.scores(first, second)
        rows = torch.arange(len(first), device=first.device)[:, None, None]
        partners = second[rows, observation["candidates"].clamp(min=0).long()]  # (B, P, k, H)
        return self.paired_scores(first[:, :, None].expand_as(partners), partners)

    @property
    def pair_scorer(self) -> PairScorer | None:
        """This network; None in a subclass that makes logits or values in a way of its own."""
        return self

    def on_arrays(self) -> ArrayScorer:
        return ThroughTorch(self)

    def pair_scores(self, tables: NodeTables, positions: Positions) -> PairScores:
        return KeptPairScores(self, tables)

    def candidate_scores(self, tables: NodeTables, lists: CandidateLists) -> PairScores:
        return KeptListedScores(self, tables, lists)

    def terms(self, autoencoder: TreeEncoder, batch: TokenBatch, episodes: Episodes) -> PolicyTerms:
        among_all = episodes.candidates is None
        return (PairTerms if among_all else CandidateTerms)(self, batch, episodes)

    def plan(
        self,
        autoencoder: TreeEncoder,
        batch: TokenBatch,
        generator: torch.Generator,
        *,
        greedy: bool,
        nearest: Nearest | None = None,
    ) -> Int64[Tensor, "B M 2"]:
        if greedy and nearest is not None and batch.present.shape[1] >= MANY:
            return merge_greedily(autoencoder, self, batch, nearest)
        return super().plan(autoencoder, batch, generator, greedy=greedy, nearest=nearest)


class PointerPolicy(NodePolicy):
    """A query and a key per token; scores from their product and from a learned distance.

    ``score(i, j) = q_i . k_j / sqrt(d) - |f_i - f_j|^2 + o_i - o_j``: one matrix product, since
    query and key are extended so that it gives the distance and the order as well (Vinyals et al.
    2015, "Pointer networks", for the pointer).
    """

    def __init__(
        self, embedding_dim: int, hidden_dim: int = 128, key_dim: int = 64, distance_dim: int = 16
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.key_dim, self.distance_dim = key_dim, distance_dim
        self.body = nn.Sequential(nn.Linear(embedding_dim + 1, hidden_dim), nn.SiLU())
        self.residual = nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.SiLU())
        self.head = nn.Linear(hidden_dim, 2 * key_dim + distance_dim + 1)
        self.distance_skip = nn.Linear(embedding_dim, distance_dim, bias=False)
        self.value_head = nn.Sequential(
            nn.Linear(hidden_dim + 1, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, 1)
        )
        nn.init.normal_(self.head.weight, std=0.1 / hidden_dim**0.5)
        nn.init.zeros_(self.head.bias)
        nn.init.normal_(self.distance_skip.weight, std=0.1 / embedding_dim**0.5)

    def features(
        self, embeddings: Float[Tensor, "*batch D"], leaf_counts: Int[Tensor, "*batch"]
    ) -> Features:
        counts = leaf_counts.clamp(min=1).to(embeddings.dtype).log2()[..., None]
        hidden = self.body(torch.cat([embeddings, counts], dim=-1))
        hidden = hidden + self.residual(hidden)
        query, key, place, order = self.head(hidden).split(
            [self.key_dim, self.key_dim, self.distance_dim, 1], dim=-1
        )
        place = place + self.distance_skip(embeddings)
        near = -place.square().sum(-1, keepdim=True)
        one = torch.ones_like(near)
        first = torch.cat([query / self.key_dim**0.5, 2 * place, near + order, one], dim=-1)
        second = torch.cat([key, place, one, near - order], dim=-1)
        return Features(first, second, hidden)

    def scores(
        self, first: Float[Tensor, "B I H"], second: Float[Tensor, "B J H"]
    ) -> Float[Tensor, "B I J"]:
        return first @ second.transpose(-1, -2)

    def paired_scores(
        self, first: Float[Tensor, "*pairs H"], second: Float[Tensor, "*pairs H"]
    ) -> Float[Tensor, "*pairs"]:
        return torch.linalg.vecdot(first, second)

    def on_arrays(self) -> ArrayScorer:
        """In a subclass that makes features or scores in a way of its own, by these."""
        names = "features", "scores", "node_scores", "paired_scores"
        own = all(getattr(type(self), name) is getattr(PointerPolicy, name) for name in names)
        return PointerOnArrays(self) if own else super().on_arrays()


class PointerOnArrays:
    """A pointer policy on numpy arrays."""

    symmetric = False

    def __init__(self, policy: PointerPolicy) -> None:
        self._body, self._residual, self._head, self._skip = (
            array_function(layer)
            for layer in (policy.body, policy.residual, policy.head, policy.distance_skip)
        )
        self._keys, self._places, self._policy = policy.key_dim, policy.distance_dim, policy

    def features(
        self, embeddings: np.ndarray, leaf_counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        keys, places = self._keys, self._places
        counts = np.log2(leaf_counts, dtype=embeddings.dtype)[:, None]
        hidden = self._body(np.concatenate([embeddings, counts], axis=1))
        hidden += self._residual(hidden)
        head = self._head(hidden)
        first = np.empty((len(head), keys + places + 2), head.dtype)
        second = np.empty_like(first)
        place, order = head[:, 2 * keys : -1], head[:, -1]
        place += self._skip(embeddings)
        near = np.einsum("rd,rd->r", place, place)
        np.multiply(head[:, :keys], keys**-0.5, out=first[:, :keys])
        np.add(place, place, out=first[:, keys:-2])
        np.subtract(order, near, out=first[:, -2])
        first[:, -1] = 1.0
        second[:, :keys] = head[:, keys : 2 * keys]
        second[:, keys:-2] = place
        second[:, -2] = 1.0
        np.negative(near + order, out=second[:, -1])
        return first, second

    def scores(self, first: np.ndarray, second: np.ndarray, needed: np.ndarray) -> np.ndarray:
        return first @ second.transpose(0, 2, 1)

    def paired_scores(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        scores: np.ndarray = np.einsum("nh,nh->n", first, second)
        return scores

    def weights(self) -> PointerWeights | None:
        """None in a subclass with other layers."""
        policy = self._policy
        for part in (policy.body, policy.residual):
            if [type(layer) for layer in part] != [nn.Linear, nn.SiLU] or part[0].bias is None:
                return None
        if type(policy.head) is not nn.Linear or policy.head.bias is None:
            return None
        if type(policy.distance_skip) is not nn.Linear or policy.distance_skip.bias is not None:
            return None
        layers = policy.body, policy.residual, policy.head
        weights = [values.t() for layer in layers for values in layer.parameters()]
        skip = torch.nn.functional.pad(policy.distance_skip.weight.t(), (0, 0, 0, 1))
        return PointerWeights(
            *(values.detach().contiguous().numpy() for values in (*weights, skip))
        )


class PairPolicy(NodePolicy):
    """The published method's scorer: an MLP over the two concatenated embeddings, for every pair.

    Its first layer is linear in each embedding, so the features are its two halves; the hidden
    layer of a pair is still ``hidden_dim`` wide, and only pairs that are needed are scored.
    """

    def __init__(self, embedding_dim: int, hidden_dim: int = 256) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.first = nn.Linear(2 * embedding_dim, hidden_dim)
        self.rest = nn.Sequential(
            nn.ReLU(), nn.Linear(hidden_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 1)
        )
        self.value_head = nn.Sequential(
            nn.Linear(2 * hidden_dim + 1, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 1)
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.constant_(layer.bias, 1e-3)

    def features(
        self, embeddings: Float[Tensor, "*batch D"], leaf_counts: Int[Tensor, "*batch"]
    ) -> Features:
        as_first, as_second = self.first.weight.chunk(2, dim=1)
        first = linear(embeddings, as_first, self.first.bias)
        second = linear(embeddings, as_second)
        return Features(first, second)

    def scores(
        self, first: Float[Tensor, "B I H"], second: Float[Tensor, "B J H"]
    ) -> Float[Tensor, "B I J"]:
        hidden = first[:, :, None] + second[:, None]  # (B, I, J, H)
        return self.rest(hidden).squeeze(-1)

    def paired_scores(
        self, first: Float[Tensor, "*pairs H"], second: Float[Tensor, "*pairs H"]
    ) -> Float[Tensor, "*pairs"]:
        return self.rest(first + second).squeeze(-1)

    def node_scores(
        self,
        first: Float[Tensor, "B I H"],
        second: Float[Tensor, "B J H"],
        needed: Callable[[], Tensor],
    ) -> Float[Tensor, "B I J"]:
        return self.scores_where(needed(), first, second)


@dataclass(frozen=True)
class KnownMerges:
    """Merges as a known merger makes them, and what they earn; no gradients."""

    model: TreeEncoder

    @torch.no_grad()
    def __call__(
        self, first: Float[Tensor, "I D"], second: Float[Tensor, "I D"]
    ) -> tuple[Float[Tensor, "I D"], Float[Tensor, "I"]]:
        """What the pairs become, and their rewards where that is no root."""
        costs = self.model.merge_costs
        assert costs is not None  # else there was no such policy
        merged = self.model.merger(torch.cat([first, second], dim=1))
        last = torch.zeros_like(first[:, 0], dtype=torch.bool)
        return merged, -costs(first, second, merged, last).to(merged.dtype)


class MergedPolicy(NodePolicy):
    """An MLP over two tokens, what they become, and what that earns; for mergers that are known.

    ``score(i, j) = s r_ij + MLP(f_i + g_j + h(m_ij, r_ij))``, with ``m`` the embedding of what is
    made and ``r`` the known reward of the merge (as of one that makes no root, since before that
    one there is nothing to choose). The last layer starts at 0 and ``s`` at 1: untrained, it ranks
    pairs as greedy search by the reward does. Under a commutative merger ``g = f``, so that the
    order within a pair changes nothing, and each pair is scored once.
    """

    def __init__(self, embedding_dim: int, hidden_dim: int, model: TreeEncoder | None) -> None:
        """``model`` takes the first numbers of a token's ``embedding_dim``; what follows them is
        its context. Raises ``ValueError`` where the merger is not known."""
        super().__init__()
        if model is None or model.merge_costs is None:
            others = sorted(set(SCORERS) - {"merged"})
            raise ValueError(
                "the scorer merged reads what pairs become, which an autoencoder has to learn "
                f"first; choose from {others}, or give a merger that is known"
            )
        if not model.costs_known:
            raise ValueError(
                "the scorer merged reads what merges earn, and this merger's reward has no "
                "of_merges; choose from ['pair_mlp', 'pointer']"
            )
        self.embedding_dim, self.merged_dim = embedding_dim, model.embedding_dim
        self.symmetric = model.commutative
        self._merges = KnownMerges(model)
        self.body = nn.Sequential(
            nn.Linear(embedding_dim + 1, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.SiLU(),
        )
        self.head = nn.Linear(hidden_dim, hidden_dim * (1 if self.symmetric else 2))
        self.become = nn.Linear(self.merged_dim + 1, hidden_dim)
        last = nn.Linear(hidden_dim, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.rest = nn.Sequential(nn.SiLU(), nn.Linear(hidden_dim, hidden_dim), nn.SiLU(), last)
        self.reward_scale = nn.Parameter(torch.ones(()))
        self.value_head = nn.Sequential(
            nn.Linear(hidden_dim + 1, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, 1)
        )

    def features(
        self, embeddings: Float[Tensor, "*batch D"], leaf_counts: Int[Tensor, "*batch"]
    ) -> Features:
        counts = leaf_counts.clamp(min=1).to(embeddings.dtype).log2()[..., None]
        hidden = self.body(torch.cat([embeddings, counts], dim=-1))
        own = embeddings[..., : self.merged_dim]
        halves = self.head(hidden).chunk(1 if self.symmetric else 2, dim=-1)
        first, second = halves[0], halves[-1]
        return Features(torch.cat([own, first], dim=-1), torch.cat([own, second], dim=-1), hidden)

    def scores(
        self, first: Float[Tensor, "B I H"], second: Float[Tensor, "B J H"]
    ) -> Float[Tensor, "B I J"]:
        shape = (len(first), first.shape[1], second.shape[1], first.shape[2])
        return self.paired_scores(first[:, :, None].expand(shape), second[:, None].expand(shape))

    def paired_scores(
        self, first: Float[Tensor, "*pairs H"], second: Float[Tensor, "*pairs H"]
    ) -> Float[Tensor, "*pairs"]:
        dim = self.merged_dim
        pairs = (half[..., :dim].reshape(-1, dim) for half in (first, second))
        merged, reward = self._merges(*pairs)
        merged, reward = merged.view(*first.shape[:-1], dim), reward.view(first.shape[:-1])
        become = self.become(torch.cat([merged, reward.asinh()[..., None]], dim=-1))
        hidden = first[..., dim:] + second[..., dim:] + become
        return self.rest(hidden).squeeze(-1) + self.reward_scale * reward

    def node_scores(
        self,
        first: Float[Tensor, "B I H"],
        second: Float[Tensor, "B J H"],
        needed: Callable[[], Tensor],
    ) -> Float[Tensor, "B I J"]:
        pairs = needed()
        twice = self.symmetric and pairs.shape[1] == pairs.shape[2]
        if twice:
            pairs = (pairs | pairs.transpose(1, 2)).triu()
        scores = self.scores_where(pairs, first, second)
        return scores + scores.triu(1).transpose(1, 2) if twice else scores


SCORERS: dict[str, Callable[[int, int, TreeEncoder | None], NodePolicy]] = {
    "pointer": lambda dim, width, model: PointerPolicy(dim, width),
    "pair_mlp": lambda dim, width, model: PairPolicy(dim, width),
    "merged": MergedPolicy,
}
"""From the numbers of a token, the width of hidden layers, and the model of whose tokens pairs are
scored."""


def make_scorer(
    scorer: str | None, embedding_dim: int, hidden_dim: int, model: TreeEncoder | None = None
) -> NodePolicy:
    """The pair scorer of that name; ``ValueError`` with the choices if there is none.

    Without a name, merged where merger and costs are known, else pointer.
    """
    if scorer is None:
        known = model is not None and not model.decodes and model.costs_known
        scorer = "merged" if known else "pointer"
    check_choice("scorer", scorer, sorted(SCORERS))
    return SCORERS[scorer](embedding_dim, hidden_dim, model)
