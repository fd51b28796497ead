"""The pair scorers: a pointer of queries and keys, and the published method's MLP over pairs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from agents.networks.base import Features, NodePolicy


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
        first: Float[Tensor, "B N H"],
        second: Float[Tensor, "B N H"],
        needed: Callable[[], Tensor],
    ) -> Float[Tensor, "B N N"]:
        pairs = needed()
        sample, one, other = pairs.nonzero(as_tuple=True)
        hidden = first[sample, one] + second[sample, other]  # (pairs, H)
        scores = hidden.new_zeros(pairs.shape)
        return scores.index_put((sample, one, other), self.rest(hidden).squeeze(-1))


SCORERS: dict[str, type[NodePolicy]] = {"pointer": PointerPolicy, "pair_mlp": PairPolicy}


def make_scorer(scorer: str, embedding_dim: int, hidden_dim: int) -> NodePolicy:
    """The pair scorer of that name; ``ValueError`` with the choices if there is none."""
    if scorer not in SCORERS:
        raise ValueError(f"unknown scorer {scorer!r}; choose from {sorted(SCORERS)}")
    return SCORERS[scorer](embedding_dim, hidden_dim)
