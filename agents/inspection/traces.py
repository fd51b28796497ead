"""Watching a learner merge: its episodes as numbers for pictures and pages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from agents.evaluation.evaluate import EVALUATION_SEED
from agents.learners.base import Learner
from agents.learners.policy_learner import PolicyLearner
from agents.rollouts.pair_scores import pair_scores
from agents.rollouts.positions import Positions
from agents.rollouts.rollout import Rollout, follow
from htm_env.datasets import Dataset
from htm_env.datasets.base import KEY_LIMIT
from htm_env.drawing.trace import Considered, Trace
from htm_env.measures.metrics import nmse_per_sample
from htm_env.trees.merge_tree import MergeTree
from htm_env.types import TokenBatch
from replay import CandidatePairs


def traces(learner: Learner, dataset: Dataset, count: int) -> list[Trace]:
    """The greedy episodes of the first ``count`` fixed samples of ``dataset``.

    Raises ``ValueError`` for a learner that makes no trees.
    """
    return traces_of(learner, dataset, dataset.fixed_keys(count).tolist())


@torch.no_grad()
def traces_of(learner: Learner, dataset: Dataset, keys: Sequence[int]) -> list[Trace]:
    """The greedy episodes of the samples with these keys, one a key.

    A policy that draws, such as ``random``, draws anew for every key, so that the tree of a sample
    does not depend on which others stand beside it.

    Raises ``ValueError`` for a learner that makes no trees, and for keys that the data does not
    have.
    """
    if not learner.makes_trees:
        raise ValueError(f"{learner.algo} makes no trees; expected a learner that merges")
    last = (KEY_LIMIT if dataset.size is None else dataset.size) - 1
    for key in keys:
        if not 0 <= key <= last:
            raise ValueError(f"there is no sample {key}: the {dataset.split} split has 0 to {last}")
    return [_trace(learner, dataset, key) for key in keys]


def _trace(learner: Learner, dataset: Dataset, key: int) -> Trace:
    device = learner.device
    batch = dataset.episodes(np.array([key], dtype=np.int64)).to(device)
    generator = torch.Generator(device).manual_seed(EVALUATION_SEED + key)
    merges = learner.plan(batch, generator, greedy=True)
    nearest = learner.config.nearest if isinstance(learner, PolicyLearner) else None
    episode = follow(learner.autoencoder, batch, merges, nearest)
    tokens = int(batch.num_tokens)
    merges = episode.merges[0, : tokens - 1]
    # The same sample once for each number of merges, all decoded together.
    forests = merges.expand(tokens, -1, -1).clone()  # (n, n - 1, 2)
    made = torch.arange(tokens - 1, device=merges.device)
    forests[made >= torch.arange(tokens, device=merges.device)[:, None]] = -1
    copies = batch.rows(torch.zeros(tokens, dtype=torch.long, device=merges.device))
    encoded = learner.autoencoder.encode(copies.tokens, copies.present, forests)
    decoded = learner.autoencoder.decode(encoded.population, forests, copies.present)
    errors = nmse_per_sample(decoded, copies.tokens, copies.present, learner.std)
    return Trace(
        tokens=batch.tokens[0, :tokens].cpu().numpy(),
        kind=dataset.kind,
        tree=MergeTree(merges.cpu().numpy(), tokens),
        reconstructions=decoded[:, :tokens].cpu().numpy(),
        errors=errors.double().cpu().numpy(),
        considered=(
            _considered(learner, batch, episode) if isinstance(learner, PolicyLearner) else ()
        ),
    )


@torch.no_grad()
def _considered(
    learner: PolicyLearner, batch: TokenBatch, episode: Rollout
) -> tuple[Considered, ...]:
    """The policy's probabilities of all ordered pairs before every merge; 0 of those that were no
    candidates."""
    scores = pair_scores(
        learner.policy, learner.autoencoder, batch, episode.nodes, episode.leaf_counts
    )
    positions = Positions(batch.present, episode.steps.sum(1))
    steps = []
    for step in positions.steps():
        table = scores.at(step, positions)[0].double()
        nodes, place = positions.here[0, : step.width].sort()
        own = table[place[:, None], place].fill_diagonal_(-torch.inf)
        if episode.candidates is not None:
            own = own.masked_fill(~_candidates_at(episode.candidates, step.time, nodes), -torch.inf)
        probabilities = own.flatten().softmax(0).view_as(own)
        steps.append(Considered(nodes.cpu().numpy().astype(np.int64), probabilities.cpu().numpy()))
        children, parent = positions.merge(step, *positions.find(step, episode.merges))
        scores.after(step, children, parent)
    return tuple(steps)


def _candidates_at(
    candidates: CandidatePairs, time: int, nodes: Int64[Tensor, "k"]
) -> Bool[Tensor, "k k"]:
    """True <--> the pair of these nodes, in ascending order, was a candidate before the merge."""
    now = torch.tensor([0], device=nodes.device), torch.tensor([time], device=nodes.device)
    _, pair = candidates.at(*now)
    first, second = torch.searchsorted(nodes, candidates.nodes[pair]).unbind(1)
    listed = torch.zeros(len(nodes), len(nodes), dtype=torch.bool, device=nodes.device)
    listed[first, second] = True
    return listed
