"""Affinity of two tokens: how near they are, and how much more often such a pair is met within a
sample than by chance.

Parts recur: two strokes of one component have the same shapes and relative position in many
characters, strokes of two components have many. The pointwise mutual information of two tokens is
the logarithm of how often such a pair is met within one sample over how often it is met between
tokens of two samples. It finds parts without a label (Isola, Zoran, Krishnan and Adelson 2014,
"Crisp boundary detection using pointwise mutual information"; 2015, "Learning visual groups from
co-occurrences in space and time").
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from scipy.spatial import KDTree
from torch import Tensor

from htm_env.datasets.base import Dataset
from htm_env.datasets.kinds import POLYLINES, place_columns, polyline_distances
from htm_env.types import TokenBatch

SAMPLES = 8192
"""Training samples that are read, at most."""
MOST_READ = 2**26
"""Numbers of their tokens and padding, at most."""
CROWD = 0.25
"""A sample of e times as many tokens is so many standard deviations away: what recurs in small
samples need not be a part of large ones."""
SIMILAR = 64
"""The other sample of a chance pair is one of so many whose number of tokens is nearest."""


class Pairs(NamedTuple):
    """Pairs of training tokens: their shapes and relative positions."""

    axes: Float64[np.ndarray, "F F"]
    """Principal axes, along which they are searched twice as fast."""
    within: KDTree
    """Of tokens of one sample, each in both orders."""
    between: KDTree
    """Of tokens of two samples."""


@dataclass(frozen=True, eq=False)
class Recurrence:
    """Affinities between tokens, from the training split of a dataset and nothing else.

    The affinity of two tokens in nats is ``weight * information - log(distance + touching)``:
    nearness has a scale-free prior, and what recurs counts beside it. Distances are the least ones
    between the lines that tokens stand for (:meth:`htm_env.datasets.Dataset.polylines`), in units
    of the standard deviation of their points.

    The information of a pair is ``log((within + rare) / (between + rare))`` of two counts: the
    training pairs within ``radius`` of it, of ``pairs`` that were drawn within samples, and of as
    many from two samples each. Pairs are compared by shapes and relative position, wherever they
    are: the points of both less their mean. What is beside a line, as the intensities of a patch,
    is compared as it is, and so is everything of tokens that are no lines. Samples of very
    different numbers of tokens tell little of each other.

    The defaults were chosen by ``tree_f1`` on the validation split of ``HTM-Kanji-v0``.
    """

    dataset: Dataset
    """Any split of it."""
    pairs: int = 120_000
    """Training pairs of each kind; fewer of wide tokens, and at most as many as the training
    samples have, so that no pair recurs by being drawn again and again."""
    radius: float = 0.1
    """Root mean square over the numbers of a token, in standard deviations."""
    rare: float = 10.0
    """Pairs that are added to both counts: what is as rare says nothing."""
    weight: float = 2.0
    """Of the information."""
    touching: float = 0.02
    """Added to distances: nearer ones are as near."""
    most_numbers: int = 2**26
    """Numbers of the training pairs of each kind, at most: of wide tokens there are fewer pairs."""
    most_remembered: int = 2**23
    """Affinities that are remembered, those of the latest samples; of one batch all are."""
    at_once: int = 2**22
    """Numbers of the pairs that are looked up together."""
    _remembered: dict[bytes, Float64[np.ndarray, "n n"]] = field(default_factory=dict, repr=False)

    def affinities(self, batch: TokenBatch) -> Float[Tensor, "B P P"]:
        """The affinity of every two tokens of a sample, symmetric; 0 on the diagonal and in empty
        slots.

        A sample has the same whatever the order of its tokens and whatever samples are beside it.
        Raises ``ValueError`` for tokens of another dimension than the data's, and where no two
        training samples have two tokens.
        """
        if batch.tokens.shape[2] != self.dataset.token_dim:
            raise ValueError(
                f"tokens have {batch.tokens.shape[2]} numbers; expected {self.dataset.token_dim}, "
                f"as those of {self.dataset.name}, which says what recurs"
            )
        tokens, present = batch.tokens.cpu().numpy(), batch.present.cpu().numpy()
        found = np.zeros((*present.shape, present.shape[1]), np.float32)
        orders = [_order(tokens[row, : present[row].sum()]) for row in range(len(tokens))]
        keys = [tokens[row, order].tobytes() for row, order in enumerate(orders)]
        known = {key: self._remembered.get(key) for key in keys}
        tables = {key: table for key, table in known.items() if table is not None}
        new = {key: row for row, key in enumerate(keys) if key not in tables}
        tables |= dict(
            zip(new, self._tables([tokens[row, orders[row]] for row in new.values()]), strict=True)
        )
        for row, (key, order) in enumerate(zip(keys, orders, strict=True)):
            found[row, order[:, None], order] = tables[key]
        self._remembered.update({key: tables[key] for key in new})
        room = max(self.most_remembered // present.shape[1] ** 2, len(keys))
        for key in list(self._remembered)[:-room]:
            self._remembered.pop(key, None)  # another thread may have done so
        return torch.from_numpy(found).to(batch.tokens)

    def _tables(self, samples: list[np.ndarray]) -> list[Float64[np.ndarray, "n n"]]:
        """Affinities of samples ``(n, T)``, each as it is ordered."""
        if not samples:
            return []
        ones = [np.triu_indices(len(sample), 1) for sample in samples]
        first, second = (
            np.concatenate([sample[pair[side]] for sample, pair in zip(samples, ones, strict=True)])
            for side in (0, 1)
        )
        ends = np.cumsum([len(pair[0]) for pair in ones])
        counts = np.repeat([len(sample) for sample in samples], [len(one) for one, _ in ones])
        informations = np.split(self._information(first, second, counts), ends[:-1])
        tables = []
        for sample, pairs, information in zip(samples, ones, informations, strict=True):
            lines = self.dataset.polylines(torch.from_numpy(sample).double())[None]
            distances = polyline_distances(lines)[0].numpy() / self._unit
            table = np.zeros((len(sample), len(sample)))
            table[pairs] = self.weight * information - np.log(distances[pairs] + self.touching)
            tables.append(table + table.T)
        return tables

    def _information(
        self,
        first: Float[np.ndarray, "K T"],
        second: Float[np.ndarray, "K T"],
        counts: Int64[np.ndarray, "K"],
    ) -> Float64[np.ndarray, "K"]:
        """The pointwise mutual information of pairs, in nats; ``counts`` are the tokens of the
        samples that they are of."""
        if not len(first):
            return np.zeros(0)
        known = self._pairs
        radius = self.radius * self.dataset.token_dim**0.5
        found = np.zeros(len(first))
        at_once = max(1, self.at_once // len(known.axes))
        for start in range(0, len(first), at_once):
            rows = slice(start, start + at_once)
            pairs = self._placed(first[rows], second[rows], counts[rows]) @ known.axes
            near, usual = (
                tree.query_ball_point(pairs, radius, return_length=True)
                for tree in (known.within, known.between)
            )
            found[rows] = np.log((near + self.rare) / (usual + self.rare))
        return found

    @cached_property
    def _pairs(self) -> Pairs:
        """Pairs of the training split."""
        of_sample = self.dataset.max_tokens * self.dataset.token_dim
        tokens, present = self.dataset.training_sets(max(2, min(SAMPLES, MOST_READ // of_sample)))
        several = present.sum(1) > 1
        tokens, counts = tokens[several], present[several].sum(1)
        if len(tokens) < 2:
            raise ValueError(
                f"the training split of {self.dataset.name} has {len(tokens)} samples of two "
                "tokens or more; what recurs is known from two samples at least"
            )
        tokens, counts = (values[np.argsort(counts, kind="stable")] for values in (tokens, counts))
        width = self._placed(tokens[:1, 0], tokens[:1, 1], counts[:1]).shape[1]
        ordered = int((counts * (counts - 1)).sum())
        size = max(1, min(self.pairs, self.most_numbers // (2 * width), ordered))
        generator = np.random.Generator(np.random.PCG64(0))
        number = len(tokens)
        sample = generator.integers(number, size=size)
        first = generator.integers(counts[sample])
        second = (first + 1 + generator.integers(counts[sample] - 1)) % counts[sample]
        apart = 1 + generator.integers(min(SIMILAR, number) - 1, size=size)
        other = (sample + apart) % number
        foreign = generator.integers(counts[other])
        one = tokens[sample, first]
        within, between = (
            np.concatenate(
                [self._placed(*pair, counts[sample]) for pair in ((one, two), (two, one))]
            )
            for two in (tokens[sample, second], tokens[other, foreign])
        )
        axes = np.linalg.eigh(np.cov(within.T))[1]
        return Pairs(axes, KDTree(within @ axes), KDTree(between @ axes))

    def _placed(
        self,
        first: Float[np.ndarray, "K T"],
        second: Float[np.ndarray, "K T"],
        counts: Int64[np.ndarray, "K"],
    ) -> Float64[np.ndarray, "K F"]:
        """Shapes and relative position of the tokens of every pair, and the size of the sample."""
        tokens = torch.from_numpy(np.stack([first, second], axis=1)).double()  # (K, 2, T)
        mean, std = self.dataset.mean.double(), self.dataset.std.double()
        kind, token_dim = self.dataset.kind, self.dataset.token_dim
        places = place_columns(kind, token_dim)[0] if kind in POLYLINES else 0
        values = ((tokens - mean) / std)[..., places:]
        if places:
            lines = self.dataset.polylines(tokens) / self._unit  # (K, 2, points, C)
            lines = lines - lines.mean(dim=(1, 2), keepdim=True)
            values = torch.cat([lines.flatten(2), values], dim=2)
        crowd = CROWD * np.log(counts)[:, None]
        placed: np.ndarray = np.concatenate([values.flatten(1).numpy(), crowd], axis=1)
        return placed

    @cached_property
    def _unit(self) -> float:
        """The standard deviation of the points of training lines, over all their coordinates."""
        tokens = torch.from_numpy(self.dataset.training_tokens()).double()
        points = self.dataset.polylines(tokens).flatten(0, 1)  # (K, C)
        return float(points.var(dim=0, correction=0).mean().sqrt()) or 1.0


def recurrence(dataset: Dataset) -> Recurrence:
    """The affinities of this data with the defaults: one object as long as the data is in use."""
    # An attribute of the data: a table of all data would keep it, since the object refers to it.
    found: Recurrence | None = vars(dataset).get(ATTRIBUTE)
    if found is None or found.dataset is not dataset:  # a copy of the data has that of the original
        found = vars(dataset)[ATTRIBUTE] = Recurrence(dataset)
    return found


ATTRIBUTE = "_recurrence"
"""Of a dataset: its affinities, where they were asked for."""


def _order(tokens: Float[np.ndarray, "n T"]) -> Int64[np.ndarray, "n"]:
    """The tokens by their first coordinate, then the next."""
    order: np.ndarray = np.lexsort(tokens.T[::-1])
    return order


def mean_affinities(
    affinities: Float[Tensor, "B P P"], first: Bool[Tensor, "B K P"], second: Bool[Tensor, "B K P"]
) -> Float[Tensor, "B K"]:
    """The mean affinity between the tokens of two sets, of ``K`` pairs of sets a sample; 0 where a
    set is empty."""
    one, other = first.to(affinities), second.to(affinities)
    sums = torch.einsum("bkp,bpq,bkq->bk", one, affinities, other)
    return sums / (one.sum(2) * other.sum(2)).clamp(min=1)
