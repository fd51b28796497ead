"""Evaluation of a policy together with its autoencoder, on fixed episodes of a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from agents.config.options import TEST_EPISODES
from agents.fixed import fixed_policy
from htm_env.autoencoder import TreeEncoder
from htm_env.datasets import Dataset
from htm_env.forest import leaf_sets, tree_height
from htm_env.measures.metrics import (
    CladeScores,
    category_error_rate,
    clade_scores,
    classifier_scores,
    mean_or_none,
    nmse_per_sample,
)
from htm_env.population import final_errors
from htm_env.rewards import EncodedEpisodes, Reward
from htm_env.types import TokenBatch

VALIDATION_EPISODES, VALIDATION_TOKENS = 256, 2**16
"""Episodes of a validation, fewer where they could have more tokens together."""
EVALUATION_SEED = 0
"""Draws of policies that draw: the same ones in every evaluation of every run."""
CHUNK = 256
"""Episodes evaluated at once; bounds the memory and changes no number."""
PAIRS_AT_A_TIME = 2**22
"""And pairs of tokens whose clades are compared together."""

TREE_SCORES = (*(f"tree_{name}" for name in CladeScores._fields), "mean_height")
"""Names of the scores that :func:`tree_scores` gives, in its order."""


@runtime_checkable
class Planner(Protocol):
    """Whatever makes whole trees: a learner, a fixed policy, a mixture of them."""

    def plan(
        self, batch: TokenBatch, generator: torch.Generator, *, greedy: bool
    ) -> Int64[Tensor, "B M 2"]:
        """The merges of a whole tree for every sample, -1 in padding: the best ones if ``greedy``,
        else drawn."""


def planned(
    planner: Planner, batch: TokenBatch, generator: torch.Generator, *, greedy: bool
) -> Int64[Tensor, "B M 2"]:
    """What a planner's ``plan`` gives; ``ValueError`` where that is not merges for every sample."""
    merges: object = planner.plan(batch, generator, greedy=greedy)
    found = repr(merges)
    if isinstance(merges, Tensor):
        shape = tuple(merges.shape)
        if merges.dtype == torch.int64 and len(shape) == 3 and shape[::2] == (len(batch.tokens), 2):
            return merges
        found = f"{merges.dtype} of shape {shape}"
    raise ValueError(
        f"{type(planner).__name__}.plan returned {found}; expected the merges of every sample, "
        f"int64 of shape ({len(batch.tokens)}, P - 1, 2)"
    )


def validation_episodes(dataset: Dataset) -> int:
    """Episodes of a validation: 256 of at most 256 tokens, fewer of larger sets."""
    return max(1, min(VALIDATION_EPISODES, VALIDATION_TOKENS // dataset.max_tokens))


@torch.no_grad()
def evaluate(
    planner: Planner,
    autoencoder: TreeEncoder,
    dataset: Dataset,
    count: int = TEST_EPISODES,
    seed: int = EVALUATION_SEED,
    *,
    sampled: bool = True,
    reward: Reward | None = None,
) -> dict[str, float | None]:
    """Scores over the first ``count`` fixed episodes of ``dataset``, each weighing the same.

    Gives ``nmse`` (merges chosen greedily; of a known merger ``return``, the summed ``reward``,
    and beside it ``cost`` where the return is not minus that), of data with categories
    ``error_rate`` (the share of them that is decoded wrongly), ``sampled_nmse`` (merges drawn from
    the policy; left out if not ``sampled``), of the greedy trees what :func:`tree_scores` gives,
    and the leaf classifier's four accuracies (``htm_env/measures/metrics.py``). Finite data gives
    each row once, so perhaps fewer episodes. ``seed`` makes everything repeatable; no other
    generator is touched.

    Raises ``ValueError`` where ``count`` is less than one or the plan leaves several trees.
    """
    return means(
        sample_scores(planner, autoencoder, dataset, count, seed, sampled=sampled, reward=reward)
    )


@torch.no_grad()
def sample_scores(
    planner: Planner,
    autoencoder: TreeEncoder,
    dataset: Dataset,
    count: int = TEST_EPISODES,
    seed: int = EVALUATION_SEED,
    *,
    sampled: bool = True,
    reward: Reward | None = None,
) -> dict[str, Float64[Tensor, "N"]]:
    """The scores of :func:`evaluate` for every episode."""
    device = autoencoder.token_mean.device
    std = dataset.std.to(device)
    episodes = dataset.fixed(count).to(device)
    greedy_generator = torch.Generator(device).manual_seed(seed)
    sampling_generator = torch.Generator(device).manual_seed(seed + 1)
    chunks = []
    for batch in episodes.parts(CHUNK):
        merges = planned(planner, batch, greedy_generator, greedy=True)
        drawn = planned(planner, batch, sampling_generator, greedy=False) if sampled else None
        if autoencoder.decodes:
            decoded = decoded_roots(autoencoder, batch, merges)
            chunk = decoded_scores(decoded, batch, std, dataset.categories)
            if drawn is not None:
                chunk["sampled_nmse"] = root_errors(autoencoder, batch, drawn, std)
            chunk |= classifier_scores(autoencoder.decoding(), batch, merges)
        else:
            chunk = {"return": returns(autoencoder, batch, merges, std, reward)}
            if drawn is not None:
                chunk["sampled_return"] = returns(autoencoder, batch, drawn, std, reward)
            if not _is_minus_cost(reward) and autoencoder.costs_known:
                chunk["cost"] = root_errors(autoencoder, batch, merges, std)
        chunks.append(chunk | tree_scores(batch, merges))
    return _joined(chunks)


@torch.no_grad()
def reference_scores(
    autoencoder: TreeEncoder,
    dataset: Dataset,
    count: int = TEST_EPISODES,
    seed: int = EVALUATION_SEED,
) -> dict[str, dict[str, float | None]]:
    """Scores of trees that are not learned, on the episodes of :func:`evaluate`.

    ``random_merges``, the chance level, and for data that has one its ``own_hierarchy``: merges
    that make every clade of the data, and join what these leave open in a balanced way. Of the
    exact scores this is the best that a binary tree can reach.

    Raises ``ValueError`` where ``count`` is less than one.
    """
    episodes = dataset.fixed(count).to(autoencoder.token_mean.device)
    generator = torch.Generator(episodes.tokens.device).manual_seed(seed)
    random, own = [], []
    for batch in episodes.parts(CHUNK):
        merges = fixed_policy("random", autoencoder).plan(batch, generator)
        random.append(tree_scores(batch, merges))
        if dataset.has_hierarchy:
            own.append(tree_scores(batch, batch.merges))
    references = {"random_merges": random, "own_hierarchy": own}
    return {name: means(_joined(chunks)) for name, chunks in references.items() if chunks}


def tree_scores(batch: TokenBatch, merges: Int64[Tensor, "B M 2"]) -> dict[str, Float[Tensor, "B"]]:
    """Agreement of trees with the data's own hierarchy, a number a sample under each name.

    ``tree_recall``, ``tree_f1``, ``tree_precision``, ``tree_exact_f1`` and
    ``tree_robinson_foulds`` (see ``htm_env/measures/metrics.py``; NaN where the data has no clade),
    and ``mean_height``.
    """
    if batch.clades.any():
        found = _clade_scores(batch, merges)
    else:
        nothing = batch.tokens.new_full((len(merges),), torch.nan)
        found = CladeScores(*[nothing] * len(CladeScores._fields))
    return dict(zip(TREE_SCORES, (*found, tree_height(merges, batch.num_tokens)), strict=True))


def _clade_scores(batch: TokenBatch, merges: Int64[Tensor, "B M 2"]) -> CladeScores:
    """A few samples at a time: each takes tables of all pairs of nodes."""
    size = max(1, PAIRS_AT_A_TIME // batch.present.shape[1] ** 2)
    found = []
    for part, made in zip(batch.parts(size), merges.split(size), strict=True):
        sets = leaf_sets(made, part.num_tokens)  # (B, N, P); single leaves never count
        found.append(clade_scores(sets, part.clades, part.present))
    return CladeScores(*map(torch.cat, zip(*found, strict=True)))


def _joined(chunks: Sequence[dict[str, Tensor]]) -> dict[str, Float64[Tensor, "N"]]:
    return {name: torch.cat([chunk[name].double() for chunk in chunks]) for name in chunks[0]}


def means(scores: Mapping[str, Float64[Tensor, "N"]]) -> dict[str, float | None]:
    """The mean over all samples of every score.

    A share is NaN where there is nothing to find; an error that is NaN has to be seen.
    """
    shares = ("tree_", "classifier_")
    return {
        name: mean_or_none(values) if name.startswith(shares) else float(values.mean())
        for name, values in scores.items()
    }


@torch.no_grad()
def sample_returns(
    planner: Planner,
    autoencoder: TreeEncoder,
    dataset: Dataset,
    count: int = TEST_EPISODES,
    seed: int = EVALUATION_SEED,
    reward: Reward | None = None,
) -> Float64[Tensor, "N"]:
    """The return of every fixed episode of :func:`evaluate`, greedy, where the merger is known."""
    device = autoencoder.token_mean.device
    std, generator = dataset.std.to(device), torch.Generator(device).manual_seed(seed)
    found = []
    for batch in dataset.fixed(count).to(device).parts(CHUNK):
        merges = planned(planner, batch, generator, greedy=True)
        found.append(returns(autoencoder, batch, merges, std, reward).double())
    return torch.cat(found).cpu()


@torch.no_grad()
def returns(
    autoencoder: TreeEncoder,
    batch: TokenBatch,
    merges: Int64[Tensor, "B M 2"],
    std: Float[Tensor, "T"],
    reward: Reward | None = None,
) -> Float[Tensor, "B"]:
    """The summed reward of every sample's tree under a known merger; minus its cost if None."""
    if reward is None or _is_minus_cost(reward):
        return -root_errors(autoencoder, batch, merges, std)
    nodes = autoencoder.encode(batch.tokens, batch.present, merges).nodes
    return reward.episode(EncodedEpisodes(autoencoder, batch, merges, nodes, std)).sum(1)


def _is_minus_cost(reward: Reward | None) -> bool:
    """True <--> under a known merger the return is minus the cost of the tree."""
    return reward is None or reward.needs_costs or reward.merge_costs is not None


@torch.no_grad()
def root_errors(
    autoencoder: TreeEncoder,
    batch: TokenBatch,
    merges: Int64[Tensor, "B M 2"],
    std: Float[Tensor, "T"],
) -> Float[Tensor, "B"]:
    """The ``nmse`` of every sample, decoded from its root alone, without noise; of a known merger
    the cost of its merges."""
    if not autoencoder.decodes:
        nodes = autoencoder.encode(batch.tokens, batch.present, merges).nodes
        return final_errors(autoencoder, batch, merges, nodes, std)
    decoded = decoded_roots(autoencoder, batch, merges)
    return nmse_per_sample(decoded, batch.tokens, batch.present, std)


@torch.no_grad()
def decoded_roots(
    autoencoder: TreeEncoder, batch: TokenBatch, merges: Int64[Tensor, "B M 2"]
) -> Float[Tensor, "B P T"]:
    """The tokens of every sample, decoded from its root alone, without noise."""
    roots = autoencoder.encode(batch.tokens, batch.present, merges).roots
    return autoencoder.decode(roots, merges, batch.present)


def decoded_scores(
    decoded: Float[Tensor, "B P T"],
    batch: TokenBatch,
    std: Float[Tensor, "T"],
    categories: Sequence[int] = (),
) -> dict[str, Float[Tensor, "B"]]:
    """``nmse`` of decoded tokens, and of data with categories ``error_rate``: the share of wrong
    ones."""
    scores = {"nmse": nmse_per_sample(decoded, batch.tokens, batch.present, std)}
    if categories:
        scores["error_rate"] = category_error_rate(decoded, batch.tokens, batch.present, categories)
    return scores
