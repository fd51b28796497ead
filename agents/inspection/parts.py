"""The trees that a learner makes of samples, with the embeddings of their nodes, and which of the
nodes are labelled clades of the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from agents.evaluation.evaluate import CHUNK, EVALUATION_SEED
from agents.learners.base import Learner
from htm_env.datasets import Dataset
from htm_env.datasets.width import sorted_tokens
from htm_env.forest import leaf_sets
from htm_env.measures.parts import Clades, Nodes
from htm_env.types import NONE, TokenBatch


@dataclass(frozen=True)
class LabelledTrees:
    """Greedy trees of samples, all on the processor."""

    keys: Int64[np.ndarray, "B"]
    batch: TokenBatch
    merges: Int64[Tensor, "B M 2"]
    nodes: Float[Tensor, "B N D"]
    """The content of every node: its embedding, without the pose where it has one."""
    leaves: Bool[Tensor, "B N P"]
    """The leaves under every node."""
    labels: Int64[Tensor, "B N"]
    """Of the labelled clade that a node is exactly; -1 where it is none."""
    clade_labels: Int64[Tensor, "B C"]
    """Of the data's clades, whether the trees have them or not; -1 where they have none, and for a
    clade that an earlier one of the sample repeats."""

    @property
    def is_inner(self) -> Bool[Tensor, "B N"]:
        """True <--> the node has at least two leaves, and not all."""
        sizes = self.leaves.sum(2)
        return (sizes >= 2) & (sizes < self.batch.num_tokens[:, None])

    def inner_nodes(self) -> Int64[np.ndarray, "M 2"]:
        """Sample and node of every row of :meth:`as_nodes`."""
        return self.is_inner.nonzero().numpy()

    def as_nodes(self) -> Nodes:
        """The inner nodes one after another."""
        samples, nodes = self.inner_nodes().T
        embeddings = self.nodes[samples, nodes].double().numpy()
        return Nodes(embeddings, self.labels[samples, nodes].numpy(), samples)

    def sorted_parts(self) -> Float[np.ndarray, "M F"]:
        """The tokens under every inner node in sorted order, empty slots as zeros: an embedding of
        it without learning."""
        samples, nodes = self.inner_nodes().T
        tokens = self.batch.tokens.numpy()[samples]
        parts = sorted_tokens(tokens, self.leaves[samples, nodes].numpy())
        return parts.reshape(len(parts), -1).astype(np.float64)

    def as_clades(self) -> Clades:
        """The labelled clades one after another."""
        samples, columns = (self.clade_labels != NONE).nonzero(as_tuple=True)
        return Clades(self.clade_labels[samples, columns].numpy(), samples.numpy())


@torch.no_grad()
def labelled_trees(
    learner: Learner, dataset: Dataset, keys: Int64[np.ndarray, "B"]
) -> LabelledTrees | None:
    """The greedy trees of the samples with these keys; None where the learner makes no trees."""
    batch = dataset.episodes(keys)
    generator = torch.Generator(learner.device).manual_seed(EVALUATION_SEED)
    merges, nodes = [], []
    for part in batch.to(learner.device).parts(CHUNK):
        merges.append(learner.greedy_trees(part, generator))
        if bool((merges[-1][part.num_tokens > 1, 0] == NONE).any()):
            return None
        encoding = learner.autoencoder.encode(part.tokens, part.present, merges[-1])
        nodes.append(learner.autoencoder.content(encoding.nodes).cpu())
    made = torch.cat(merges).cpu()
    leaves = torch.cat(
        [
            leaf_sets(trees, part.num_tokens)
            for part, trees in zip(batch.parts(CHUNK), made.split(CHUNK), strict=True)
        ]
    )
    clade_labels = torch.full(batch.clades.shape[:2], NONE)
    if dataset.clade_label_names is not None:
        clade_labels = torch.from_numpy(dataset.clade_labels(keys)).clone()
    clade_labels[_uncounted(batch)] = NONE
    labels = _labels_of_nodes(leaves, batch.clades, clade_labels)
    return LabelledTrees(keys, batch, made, torch.cat(nodes), leaves, labels, clade_labels)


def _uncounted(batch: TokenBatch) -> Bool[Tensor, "B C"]:
    """True <--> a clade is a single token or all of them, or the same as an earlier one."""
    same = _same_sets(batch.clades, batch.clades)
    repeats = same.tril(diagonal=-1).any(2)
    sizes = batch.clades.sum(2)
    return repeats | (sizes < 2) | (sizes >= batch.num_tokens[:, None])


def _labels_of_nodes(
    leaves: Bool[Tensor, "B N P"],
    clades: Bool[Tensor, "B C P"],
    clade_labels: Int64[Tensor, "B C"],
) -> Int64[Tensor, "B N"]:
    if not clades.shape[1]:
        return torch.full(leaves.shape[:2], NONE)
    same = _same_sets(leaves, clades)  # (B, N, C)
    return torch.where(same, clade_labels[:, None], NONE).amax(2)


def _same_sets(first: Bool[Tensor, "B X P"], second: Bool[Tensor, "B Y P"]) -> Tensor:
    """(B, X, Y), True <--> the two sets of leaves are the same and not empty."""
    shared = first.float() @ second.float().transpose(1, 2)  # exact up to 2^24 leaves
    same = (shared == first.sum(2)[:, :, None]) & (shared == second.sum(2)[:, None])
    return same & (shared > 0)
