"""The plain loops: one sample, one merge, one network call at a time. Slow, and easy to believe.

Merges are a list of ``(first, second)`` node ids without padding; tokens are ``(n, T)``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor

from htm_env.autoencoder import HTMAutoencoder

Merges = list[tuple[int, int]]


@dataclass
class PlainForest:
    """The forest of one sample of ``n`` tokens, as dictionaries."""

    n: int
    slots: dict[int, int] = field(default_factory=dict)
    """The active node in each slot that has one."""
    merges: Merges = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = {leaf: leaf for leaf in range(self.n)}

    def merge(self, first: int, second: int) -> None:
        self.merges.append((self.slots[first], self.slots[second]))
        self.slots[first] = self.n + len(self.merges) - 1
        del self.slots[second]

    def children(self, node: int) -> tuple[int, int] | None:
        return None if node < self.n else self.merges[node - self.n]

    def nodes(self) -> range:
        return range(self.n + len(self.merges))

    def height(self, node: int) -> int:
        pair = self.children(node)
        return 0 if pair is None else 1 + max(map(self.height, pair))

    def depth(self, node: int) -> int:
        for step, pair in enumerate(self.merges):
            if node in pair:
                return 1 + self.depth(self.n + step)
        return 0

    def first_leaf(self, node: int) -> int:
        pair = self.children(node)
        return node if pair is None else self.first_leaf(pair[0])

    def leaves(self, node: int) -> set[int]:
        pair = self.children(node)
        return {node} if pair is None else self.leaves(pair[0]) | self.leaves(pair[1])


@dataclass
class Drawn:
    """A random batch of forests, plain and batched."""

    plain: list[PlainForest]
    slot_pairs: list[list[tuple[int, int]]]
    present: Tensor
    merges: Tensor
    num_leaves: Tensor


@st.composite
def forests(draw, max_slots: int = 9, max_batch: int = 4, smallest: int = 1) -> Drawn:
    """Samples of different sizes, merged in any order, each for any number of merges."""
    random = draw(st.randoms(use_true_random=False))
    sizes = draw(st.lists(st.integers(smallest, max_slots), min_size=1, max_size=max_batch))
    slots = draw(st.integers(max(2, *sizes, 2), max_slots + 1))
    plain, slot_pairs = [], []
    for n in sizes:
        forest, pairs = PlainForest(n), []
        for _ in range(draw(st.integers(0, n - 1))):
            pair = tuple(random.sample(sorted(forest.slots), 2))
            forest.merge(*pair)
            pairs.append(pair)
        plain.append(forest)
        slot_pairs.append(pairs)
    return batched(plain, slots, slot_pairs)


def batched(plain: list[PlainForest], slots: int, slot_pairs=()) -> Drawn:
    """The plain forests as padded tensors."""
    num_leaves = torch.tensor([forest.n for forest in plain])
    merges = torch.full((len(plain), slots - 1, 2), -1)
    for row, forest in enumerate(plain):
        if forest.merges:
            merges[row, : len(forest.merges)] = torch.tensor(forest.merges)
    present = torch.arange(slots) < num_leaves[:, None]
    return Drawn(plain, list(slot_pairs), present, merges, num_leaves)


def random_tree(n: int, generator: torch.Generator) -> PlainForest:
    """A whole tree over ``n`` tokens, merged in random order."""
    forest = PlainForest(n)
    while len(forest.slots) > 1:
        active = sorted(forest.slots)
        first, second = torch.randperm(len(active), generator=generator)[:2].tolist()
        forest.merge(active[first], active[second])
    return forest


# ---------------------------------------------------------------- the autoencoder


def encode(autoencoder: HTMAutoencoder, tokens: Tensor, forest: PlainForest) -> list[Tensor]:
    """The embedding ``(D,)`` of every node, merge by merge."""
    standardised = (tokens - autoencoder.token_mean) / autoencoder.token_std
    nodes = [autoencoder.lifter(token) for token in standardised]
    for first, second in forest.merges:
        nodes.append(autoencoder.merger(torch.cat([nodes[first], nodes[second]])))
    return nodes


def decode(
    autoencoder: HTMAutoencoder, active: dict[int, Tensor], forest: PlainForest
) -> list[Tensor]:
    """The tokens ``(T,)`` of every leaf from the embeddings of the active nodes, backwards."""
    states = dict(active)
    for step in reversed(range(len(forest.merges))):
        first, second = forest.merges[step]
        unmerged = autoencoder.unmerger(states[forest.n + step])
        states[first], states[second] = unmerged.chunk(2)
    return [
        autoencoder.unlifter(states[leaf]) * autoencoder.token_std + autoencoder.token_mean
        for leaf in range(forest.n)
    ]


def reconstruct(autoencoder: HTMAutoencoder, tokens: Tensor, forest: PlainForest) -> Tensor:
    """The tokens ``(n, T)`` after encoding and decoding the whole forest."""
    nodes = encode(autoencoder, tokens, forest)
    active = {node: nodes[node] for node in forest.slots.values()}
    return torch.stack(decode(autoencoder, active, forest))


# ---------------------------------------------------------------- errors and rewards


def nmse(autoencoder: HTMAutoencoder, tokens: Tensor, forest: PlainForest, std: Tensor) -> float:
    """``E_t``: squared error in units of ``std``, averaged over tokens and coordinates."""
    with torch.no_grad():
        residual = (reconstruct(autoencoder, tokens, forest) - tokens) / std
    return float(residual.square().mean())


def errors_along(
    autoencoder: HTMAutoencoder, tokens: Tensor, forest: PlainForest, std: Tensor
) -> list[float]:
    """``E_0 .. E_K``: the whole forest decoded again after every merge."""
    partial = PlainForest(forest.n)
    errors = [nmse(autoencoder, tokens, partial, std)]
    for first, second in forest.merges:
        slot_of = {node: slot for slot, node in partial.slots.items()}
        partial.merge(slot_of[first], slot_of[second])
        errors.append(nmse(autoencoder, tokens, partial, std))
    return errors


def one_step_reward(
    autoencoder: HTMAutoencoder, tokens: Tensor, forest: PlainForest, step: int
) -> float:
    """Minus the mean squared error of unmerging what merge ``step`` has just made."""
    with torch.no_grad():
        nodes = encode(autoencoder, tokens, forest)
        first, second = forest.merges[step]
        unmerged = autoencoder.unmerger(nodes[forest.n + step])
        pair = torch.cat([nodes[first], nodes[second]])
    return -float((unmerged - pair).square().mean())
