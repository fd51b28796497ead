"""``flat``: a set autoencoder without merges, the row that shows what the hierarchy buys."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from agents.config.dataclasses_json import LARGEST, check_bounds
from agents.config.options import TEST_EPISODES
from agents.evaluation.encoded import Encoded
from agents.evaluation.evaluate import CHUNK, TREE_SCORES, decoded_scores
from agents.learners.base import Learner
from agents.optim.autoencoder_trainer import AUTOENCODER_OPTIMIZER
from agents.optim.optimizers import GuardedOptimizer, OptimizerConfig
from htm_env.autoencoder import HTMAutoencoder, SavedAutoencoder, seeded_initialisation
from htm_env.checks import at_least, check_choice
from htm_env.datasets import Dataset
from htm_env.measures.metrics import nmse_per_sample
from htm_env.trees.merge_tree import MergeTree
from htm_env.types import NONE, TokenBatch
from htm_env.weights import embedding_dim_of

NO_TREES = "flat makes no trees; expected a learner that merges"


@dataclass(frozen=True)
class FlatConfig:
    """The flat autoencoder and its training."""

    hidden_dim: int = 256
    """Hidden width of the tree autoencoder whose number of parameters it is given."""
    pooling: str = "deep_sets"
    """How tokens become one vector: deep_sets, by their mean, or set_transformer, by attention."""
    optimizer: OptimizerConfig = AUTOENCODER_OPTIMIZER
    """Optimizer of all parts; that of the trees' autoencoders."""
    batch_size: int = 64
    """Samples an update."""

    def __post_init__(self) -> None:
        check_bounds(self, hidden_dim=(1, LARGEST), batch_size=(1, LARGEST))
        check_choice("pooling", self.pooling, sorted(POOLS))


class Flat(Learner):
    """Trains a set autoencoder of the same embedding and size as the tree's, and makes no trees.

    Its loss is the ``nmse``, so categories count by the squared error of their probabilities.

    Its ``nmse`` is that of all learners, with one favour: a decoded set has no order, so it is
    matched to the sample's tokens by the assignment that makes the error least, while a tree has to
    put every token in its place. A sample of ``n`` tokens counts as ``n - 1`` merges, so that equal
    budgets show equal numbers of samples.
    """

    algo = "flat"
    data_parallel = True
    config_class = FlatConfig
    config: FlatConfig
    autoencoder: FlatAutoencoder  # type: ignore[assignment]  # no tree can go through it

    def __init__(self, env_id: str, config: FlatConfig | None = None, **task: Any) -> None:
        super().__init__(env_id, config, **task)
        parameters = self.autoencoder.parameters()
        self.optimizer = GuardedOptimizer(
            "autoencoder", parameters, self.config.optimizer, ranks=self.ranks
        )

    def new_autoencoder(self) -> FlatAutoencoder:  # type: ignore[override]
        if self.task.knows_merger(self.dataset):
            raise ValueError(
                f"flat is an autoencoder, and the merger of {self.task.env} is known, so there is "
                "nothing to decode; expected an algorithm that merges"
            )
        if self.task.mode == "frozen":
            raise ValueError("flat has no pretrained autoencoder to keep frozen; use mode joint")
        dim = embedding_dim_of(self.task.env, self.dataset, self.task.embedding_dim)
        token_dim, slots = self.dataset.token_dim, self.dataset.max_tokens
        pooling = self.config.pooling
        width = matching_width(token_dim, slots, dim, self.config.hidden_dim, pooling)
        autoencoder = FlatAutoencoder(
            token_dim,
            slots,
            dim,
            width,
            categories=self.dataset.categories,
            pooling=pooling,
            generator=self.generator,
        )
        autoencoder.set_statistics(self.dataset.mean, self.dataset.std)
        return autoencoder

    def plan(
        self, batch: TokenBatch, generator: torch.Generator, *, greedy: bool
    ) -> Int64[Tensor, "B M 2"]:
        raise ValueError(NO_TREES)

    def greedy_trees(self, batch: TokenBatch, generator: torch.Generator) -> Int64[Tensor, "B M 2"]:
        return torch.full_like(batch.merges, NONE)

    @torch.no_grad()
    def encode(self, batch: TokenBatch, merges: Int64[Tensor, "B M 2"]) -> Encoded:
        """The embedding of every set, and what it decodes to, matched to its tokens."""
        standardised = self.autoencoder.standardise(batch.tokens)
        roots = self.autoencoder.encode(standardised, batch.present)
        return Encoded(batch, merges, roots, self._reconstruct(batch))

    def trees(
        self, sets: Any, *, lengths: Any = None, present: Any = None, search: int = 0
    ) -> list[MergeTree]:
        """Raises ``ValueError``: there are no trees."""
        raise ValueError(NO_TREES)

    def update(self, progress: float) -> dict[str, float]:
        batch = self.sample(self.config.batch_size)
        self.merges_made += int((batch.num_tokens - 1).sum())
        loss = self._errors(batch, self.std).mean()
        self.optimizer.zero()
        loss.backward()
        scalars = self.optimizer.step({"reconstruction": loss}, progress)
        self.updates += 1
        return {
            **scalars,
            "train/nmse": float(loss.detach()),
            "train/skipped_updates": float(self.optimizer.guard.skipped),
        }

    def _reconstruct(self, batch: TokenBatch) -> Float[Tensor, "B P T"]:
        """The decoded tokens in the data's own units, matched to the sample's."""
        autoencoder = self.autoencoder
        standardised = autoencoder.standardise(batch.tokens)
        roots = autoencoder.encode(standardised, batch.present)
        decoded = autoencoder.probable(autoencoder.decode(roots, batch.num_tokens))
        tokens = matched(decoded, standardised, batch.present)
        return tokens * autoencoder.token_std + autoencoder.token_mean

    def _errors(self, batch: TokenBatch, std: Float[Tensor, "T"]) -> Float[Tensor, "B"]:
        return nmse_per_sample(self._reconstruct(batch), batch.tokens, batch.present, std)

    # ------------------------------------------------------------ scores and pictures

    @torch.no_grad()
    def evaluate(
        self, dataset: Dataset, count: int = TEST_EPISODES, *, sampled: bool = True
    ) -> dict[str, float | None]:
        """``nmse`` after matching; nothing is sampled, and there are no clades and no heights."""
        episodes = dataset.fixed(count).to(self.device)
        std = dataset.std.to(self.device)
        chunks = [
            decoded_scores(self._reconstruct(batch), batch, std, dataset.categories)
            for batch in episodes.parts(CHUNK)
        ]
        scores = {
            name: float(torch.cat([chunk[name].double() for chunk in chunks]).mean())
            for name in chunks[0]
        }
        if sampled:
            scores["sampled_nmse"] = scores["nmse"]
        return {**scores, **dict.fromkeys(TREE_SCORES)}

    @torch.no_grad()
    def figure(self, dataset: Dataset) -> Any:
        from agents.evaluation.figures import SAMPLES, reconstructions_figure

        batch = dataset.fixed(SAMPLES).to(self.device)
        tokens = self._reconstruct(batch)
        std = dataset.std.to(self.device)
        errors = nmse_per_sample(tokens, batch.tokens, batch.present, std)
        merges = torch.full_like(batch.merges, NONE)
        return reconstructions_figure(batch, merges, tokens, errors, dataset)

    # ------------------------------------------------------------ resume

    def state(self) -> dict[str, Any]:
        return {**super().state(), **self.optimizer.state()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.optimizer.restore(state)


class MeanPool(nn.Module):
    """The mean over the tokens (Zaheer et al. 2017, "Deep Sets")."""

    heads = 1
    """The width is a multiple of it."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(
        self, lifted: Float[Tensor, "B P W"], present: Bool[Tensor, "B P"]
    ) -> Float[Tensor, "B W"]:
        summed = lifted.masked_fill(~present[..., None], 0.0).sum(1)
        return summed / present.sum(1, keepdim=True)


class AttentionPool(nn.Module):
    """Two blocks of attention among the tokens, and one of a learned vector to them (Lee et al.
    2019, "Set Transformer": SAB, SAB, PMA)."""

    heads = 2

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(AttentionBlock(width, self.heads) for _ in range(2))
        self.pool = AttentionBlock(width, self.heads)
        self.seed = nn.Parameter(torch.randn(1, 1, width) / width**0.5)

    def forward(
        self, lifted: Float[Tensor, "B P W"], present: Bool[Tensor, "B P"]
    ) -> Float[Tensor, "B W"]:
        for block in self.blocks:
            lifted = block(lifted, lifted, present)
        pooled: Tensor = self.pool(self.seed.expand(len(lifted), -1, -1), lifted, present)
        return pooled[:, 0]


class AttentionBlock(nn.Module):
    """Queries that attend to the tokens of their set, then a layer of each (MAB of the paper)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.attended, self.out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.layer = nn.Linear(width, width)

    def forward(
        self,
        queries: Float[Tensor, "B Q W"],
        tokens: Float[Tensor, "B P W"],
        present: Bool[Tensor, "B P"],
    ) -> Float[Tensor, "B Q W"]:
        found, _ = self.attention(
            queries, tokens, tokens, key_padding_mask=~present, need_weights=False
        )
        hidden = self.attended(queries + found)
        made: Tensor = self.out(hidden + nn.functional.silu(self.layer(hidden)))
        return made


POOLS: dict[str, type[MeanPool | AttentionPool]] = {
    "deep_sets": MeanPool,
    "set_transformer": AttentionPool,
}
"""What makes one vector of the lifted tokens, by the name of the pooling."""


class FlatAutoencoder(SavedAutoencoder):
    """Encodes a token set at once into ``D`` numbers, and those at once into a set.

    The encoder is permutation invariant: every token is lifted, the lifted ones are pooled, and
    what they are pooled to goes through a network. The decoder takes the root and the
    number of tokens, and gives ``P`` tokens in an arbitrary order: they are matched to a sample
    before they are compared with it (:func:`matched`).

    Args:
        token_dim: ``T``, coordinates of a token.
        max_tokens: ``P``, the most tokens of a sample.
        embedding_dim: ``D``.
        width: of the hidden layers; :func:`matching_width` makes two kinds comparable.
        categories: numbers of values of the categories (see :class:`SavedAutoencoder`).
        pooling: what pools the tokens, one of :data:`POOLS`.
        generator: draws the initial weights; torch's global generator if None.

    Raises ``ValueError`` for an unknown pooling, and a width that its heads do not divide.
    """

    def __init__(
        self,
        token_dim: int,
        max_tokens: int,
        embedding_dim: int,
        width: int,
        *,
        categories: Sequence[int] = (),
        pooling: str = "deep_sets",
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = {"token_dim": token_dim, "max_tokens": max_tokens}
        sizes |= {"embedding_dim": embedding_dim, "width": width}
        at_least(1, **sizes)
        check_choice("pooling", pooling, sorted(POOLS))
        pool = POOLS[pooling]
        if width % pool.heads:
            raise ValueError(f"width is {width}; {pooling} takes multiples of {pool.heads}")
        super().__init__({**sizes, "pooling": pooling}, categories)
        self.max_tokens = max_tokens
        with seeded_initialisation(generator):
            self.lifter = _network(token_dim, width, width)
            self.pool = pool(width)
            self.encoder = _network(width, width, embedding_dim)
            self.decoder = nn.Sequential(
                nn.Linear(embedding_dim + max_tokens, width),
                nn.SiLU(),
                _network(width, width, max_tokens * token_dim),
            )

    def encode(
        self, standardised: Float[Tensor, "B P T"], present: Bool[Tensor, "B P"]
    ) -> Float[Tensor, "B D"]:
        """One root a sample, whatever the order of its tokens and the number of empty slots."""
        return self.encoder(self.pool(self.lifter(standardised), present))

    def decode(
        self, roots: Float[Tensor, "B D"], num_tokens: Int64[Tensor, "B"]
    ) -> Float[Tensor, "B Q T"]:
        """``Q = max_tokens`` standardised tokens, of which the first ``n`` are the sample's set.

        Raises ``ValueError`` for more tokens than the autoencoder was made for.
        """
        most = int(num_tokens.max())
        if most > self.max_tokens:
            raise ValueError(
                f"a sample has {most} tokens; this flat autoencoder was made for at most "
                f"{self.max_tokens}"
            )
        counts = nn.functional.one_hot(num_tokens - 1, self.max_tokens).to(roots.dtype)
        decoded = self.decoder(torch.cat([roots, counts], dim=1))
        return decoded.view(-1, self.max_tokens, self.token_dim)


def matched(
    decoded: Float[Tensor, "B Q T"],
    target: Float[Tensor, "B P T"],
    present: Bool[Tensor, "B P"],
) -> Float[Tensor, "B P T"]:
    """Each sample's decoded tokens in the order of the target's that makes the error least.

    The first ``n`` decoded tokens are assigned one to one (Kuhn 1955, the Hungarian method);
    empty slots get zeros. Gradients reach ``decoded``, not the choice of the order.
    """
    batch, slots = present.shape
    counts = present.sum(1).tolist()
    with torch.no_grad():
        costs = (target[:, :, None] - decoded[:, None, :]).square().sum(-1)  # (B, P, Q)
        # What is not finite cannot be matched, but the error has to show it.
        table = costs.nan_to_num(nan=1e30, posinf=1e30).cpu().numpy()
    order = torch.zeros(batch, slots, dtype=torch.long)
    for row, count in enumerate(counts):
        order[row, :count] = torch.from_numpy(
            linear_sum_assignment(table[row, :count, :count])[1].astype("int64")
        )
    rows = torch.arange(batch, device=decoded.device)[:, None]
    return decoded[rows, order.to(decoded.device)].masked_fill(~present[..., None], 0.0)


def matching_width(
    token_dim: int,
    max_tokens: int,
    embedding_dim: int,
    hidden_dim: int,
    pooling: str = "deep_sets",
) -> int:
    """The width at which the flat autoencoder has most nearly as many parameters as the tree's.

    The tree's is :class:`HTMAutoencoder` of the same ``token_dim``, ``embedding_dim`` and
    ``hidden_dim``, with its leaf classifier. A multiple of the heads of the pooling.
    """
    heads = POOLS[pooling].heads
    with torch.device("meta"):  # counts without numbers
        target = num_parameters(HTMAutoencoder(token_dim, embedding_dim, hidden_dim))

        def size(units: int) -> int:
            width = units * heads
            model = FlatAutoencoder(token_dim, max_tokens, embedding_dim, width, pooling=pooling)
            return num_parameters(model)

        least = 2 if heads == 1 else 1
        enough = bisect_left(range(target), target, lo=least, key=size)  # a width has a bias
        around = (max(enough - 1, 1), enough)
        return heads * min(around, key=lambda units: abs(size(units) - target))


def num_parameters(module: nn.Module) -> int:
    """The number of learned parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _network(inputs: int, hidden: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))
