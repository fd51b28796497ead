"""Watching a learner merge: its episodes as numbers for pictures and pages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64

from agents.evaluation.evaluate import EVALUATION_SEED, Planner
from agents.evaluation.search import improved
from agents.evaluation.sets import renumbered
from agents.learners.base import Learner
from htm_env.datasets import Dataset
from htm_env.datasets.base import KEY_LIMIT
from htm_env.drawing.trace import Considered, Trace
from htm_env.measures.metrics import nmse_per_sample
from htm_env.population import merge_costs
from htm_env.trees.merge_tree import MergeTree


@torch.no_grad()
def traces_of(
    learner: Learner, dataset: Dataset, keys: Sequence[int], search: int = 0
) -> list[Trace]:
    """The greedy episodes of the samples with these keys, one a key.

    The tokens of given data are in the order of their row, and called as there.

    A policy that draws, such as ``random``, draws anew for every key, so that the tree of a sample
    does not depend on the others. ``search`` is the budget of :func:`tree_search`.

    Raises ``ValueError`` for a learner that makes no trees, and for keys that the data does not
    have.
    """
    last = (KEY_LIMIT if dataset.size is None else dataset.size) - 1
    for key in keys:
        if not 0 <= key <= last:
            raise ValueError(f"there is no sample {key}: the {dataset.split} split has 0 to {last}")
    planner = improved(learner, search)
    return [_trace(learner, planner, dataset, key) for key in keys]


def _trace(learner: Learner, planner: Planner, dataset: Dataset, key: int) -> Trace:
    device = learner.device
    batch = dataset.episodes(np.array([key], dtype=np.int64)).to(device)
    generator = torch.Generator(device).manual_seed(EVALUATION_SEED + key)
    merges = planner.plan(batch, generator, greedy=True)
    considered = tuple(
        Considered(nodes.cpu().numpy().astype(np.int64), probabilities.cpu().numpy())
        for nodes, probabilities in learner.pair_probabilities(batch, merges)
    )
    tokens = int(batch.num_tokens)
    merges = merges[0, : tokens - 1]
    # The same sample once for each number of merges, all decoded together.
    forests = merges.expand(tokens, -1, -1).clone()  # (n, n - 1, 2)
    made = torch.arange(tokens - 1, device=merges.device)
    forests[made >= torch.arange(tokens, device=merges.device)[:, None]] = -1
    copies = batch.rows(torch.zeros(tokens, dtype=torch.long, device=merges.device))
    model, decoded = learner.autoencoder, None
    encoded = model.encode(copies.tokens, copies.present, forests)
    if model.decodes:
        decoded = model.decode(encoded.population, forests, copies.present)
        errors = nmse_per_sample(decoded, copies.tokens, copies.present, learner.std)
    else:
        errors = merge_costs(model, copies, forests, encoded.nodes).sum(1)
    order, names = _given_order(dataset, key, tokens)
    slots = torch.from_numpy(order)
    leaf = torch.empty_like(slots).scatter_(0, slots, torch.arange(tokens))
    named = renumbered(merges[None].cpu(), leaf[None], batch.num_tokens.cpu())[0]
    return Trace(
        tokens=dataset.to_user(batch.tokens[0, :tokens]).cpu().numpy()[order],
        kind=dataset.kind,
        tree=MergeTree(named.numpy(), tokens),
        reconstructions=None
        if decoded is None
        else dataset.to_user(decoded[:, :tokens]).cpu().numpy()[:, order],
        errors=errors.double().cpu().numpy(),
        considered=tuple(_reordered(each, leaf.numpy()) for each in considered),
        title=sample_title(dataset, key),
        leaf_names=names,
    )


def _given_order(
    dataset: Dataset, key: int, tokens: int
) -> tuple[Int64[np.ndarray, "n"], tuple[str, ...]]:
    """The slots of a sample in the order of its row, and what its tokens are called there.

    The slots as they are, without names, where the data is generated.
    """
    found = dataset.places(np.array([key], dtype=np.int64))
    if found is None or dataset.rows is None:
        return np.arange(tokens), ()
    places = found[0, :tokens]
    order = np.argsort(places, kind="stable")
    names = None if dataset.token_names is None else dataset.token_names[key % len(dataset.rows)]
    return order, tuple(str(at) if names is None else names[at] for at in places[order].tolist())


def _reordered(considered: Considered, leaf: Int64[np.ndarray, "n"]) -> Considered:
    """The same choice where leaf ``i`` is ``leaf[i]``, in ascending order of the nodes again."""
    nodes, probabilities = considered
    is_leaf = nodes < len(leaf)
    named = np.where(is_leaf, leaf[np.where(is_leaf, nodes, 0)], nodes)
    order = np.argsort(named)
    return Considered(named[order], probabilities[np.ix_(order, order)])


def sample_title(dataset: Dataset, key: int) -> str:
    """The name of a sample, or its row in the data as given, and its label; empty if generated."""
    if dataset.rows is None:
        return ""
    place = key % len(dataset.rows)
    names = dataset.row_names
    title = f"row {dataset.rows[place]}" if names is None else names[place]
    if dataset.has_labels:
        label = int(dataset.labels(np.array([key], dtype=np.int64))[0])
        title += f" ({label if dataset.label_names is None else dataset.label_names[label]})"
    return title
