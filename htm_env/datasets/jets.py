"""``JetsDataset``: particle jets, and the likelihood of the splittings that made them.

The model, Ginkgo, is that of Cranmer, Drnevich, Macaluso and Pappadopulo, "Reframing jet physics
with new computational methods" (2021). Brehmer, Macaluso, Pappadopulo and Cranmer, "Hierarchical
clustering in particle physics through reinforcement learning" (2020), published scores of searches
and learned policies on it.

A four-momentum is ``(E, px, py, pz)`` in GeV; a squared mass is in GeV^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt64
from torch import Tensor

from htm_env import checks
from htm_env.checks import Real, Whole
from htm_env.datasets.base import (
    LARGEST_SIZE,
    GeneratedArrays,
    GeneratedDataset,
    Shuffle,
    empty_merges,
    uniforms,
)
from htm_env.types import TokenBatch

_MAX_TOKENS = 1024
_MAX_DRAWS = 2**17
_MAX_FUTILE = 2**13
"""Draws where none of the jets has fitted yet."""
"""Jets that are drawn for a seed until one is not too large."""
_AT_ONCE = 2**13
"""Jets that are drawn together for the seeds whose first ones were too large."""


@dataclass(frozen=True)
class JetsModel:
    """Constants of the model."""

    mass: Real = 80.0
    """Mass of a jet, in GeV."""
    momentum: Real = 400.0
    """Momentum of a jet, in GeV, along (1, 1, 1)."""
    root_rate: Real = 3.0
    """Rate at which the squared masses of the first two decay; no unit."""
    rate: Real = 1.5
    """The same of all others."""
    cut: Real = 16.0
    """Squared mass, in GeV^2, at which or below which nothing splits."""
    max_tokens: Whole = 20
    """Particles of a jet, at most; jets of more are drawn again."""
    least_log_likelihood: Real = -100.0
    """Log-likelihood of a splitting that cannot be, and the least one of any."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` naming the first constant that is out of range."""
        for name in ("mass", "root_rate", "rate", "cut"):
            object.__setattr__(self, name, checks.positive(name, getattr(self, name), LARGEST_SIZE))
        object.__setattr__(
            self, "momentum", checks.number("momentum", self.momentum, 0.0, LARGEST_SIZE)
        )
        if self.mass**2 <= self.cut:
            raise ValueError(
                f"mass {self.mass:g} with cut {self.cut:g} allows no splitting: expected a mass "
                "whose square is above the cut"
            )
        max_tokens = checks.whole_number("max_tokens", self.max_tokens, 3, _MAX_TOKENS)
        object.__setattr__(self, "max_tokens", max_tokens)
        least = checks.number("least_log_likelihood", self.least_log_likelihood, -1e9, 0.0)
        object.__setattr__(self, "least_log_likelihood", least)


# ---------------------------------------------------------------- jets


class Splittings(NamedTuple):
    """Masses of the nodes of some jets; splitting ``k`` makes nodes ``2 k + 1`` and ``2 k + 2``.

    Node 0 is the whole jet. Splittings are numbered from it downwards; what lies beyond those of a
    jet has no meaning. ``K`` are the splittings and ``N = 2 K + 1`` the nodes of a largest jet.
    """

    mass: Float64[np.ndarray, "N B"]
    """Of every node, in GeV."""
    node: Int64[np.ndarray, "K B"]
    """The node that each splitting divides."""
    number: Int64[np.ndarray, "B"]
    """Splittings of each jet, one less than its particles; more than ``K`` for one that is too
    large, which is not complete."""

    @classmethod
    def draw(
        cls,
        model: JetsModel,
        first: Float64[np.ndarray, "K B"],
        second: Float64[np.ndarray, "K B"],
    ) -> Splittings:
        """Splittings from uniform numbers in [0, 1), up to ``K``.

        The first child's squared mass is a share of the parent's, exponentially distributed and
        below 1. The second one's is such a share of the largest that the first leaves possible.
        """
        steps, batch = first.shape
        rates = np.full((steps, 1), model.rate)
        rates[0] = model.root_rate
        shares = -np.log1p(np.stack([first, second]) * np.expm1(-rates)) / rates
        first, second = np.sqrt(np.minimum(shares, 1.0))  # of masses; 1 against rounding
        least = math.sqrt(model.cut)
        none = 2 * steps + 1  # a node without mass, whose children have none
        mass = np.zeros((none + 1, batch))
        mass[0] = model.mass
        masses = mass.ravel()
        cells = np.arange(mass.size).reshape(mass.shape)  # of the nodes in ``masses``
        queue = np.repeat(cells[none][:, None], none + 1, axis=1)  # (B, N + 1), of what splits
        queue[:, 0] = cells[0]
        queued = queue.ravel()
        # Where the children are written: one that does not split is overwritten by the next.
        starts = np.arange(batch) * (none + 1)
        ends = np.stack([starts + 1, starts])
        for step in range(steps):
            pair = slice(2 * step + 1, 2 * step + 3)
            both, parent = mass[pair], masses[queue[:, step]]
            both[0] = parent * first[step]
            both[1] = (parent - both[0]) * second[step]
            more = (both > least).astype(np.int64)
            np.add(ends[0], more[0], out=ends[1])
            queued[ends] = cells[pair]
            np.add(ends[1], more[1], out=ends[0])
        node = np.ascontiguousarray(queue[:, :steps].T) // batch
        return cls(mass[:none], node, ends[0] - starts)

    @property
    def dividing(self) -> Int64[np.ndarray, "K B"]:
        """``node`` with ``N``, which is no node, beyond the splittings of a jet."""
        steps = np.arange(len(self.node))[:, None]
        return np.where(steps < self.number, self.node, len(self.mass))

    @property
    def particles(self) -> Bool[np.ndarray, "N B"]:
        """True <--> the node is there, and does not split."""
        found = np.ones((len(self.mass) + 1, len(self.number)), dtype=bool)
        found[:-1] = np.arange(len(self.mass))[:, None] <= 2 * self.number
        found[self.dividing, np.arange(len(self.number))] = False
        return found[:-1]


def node_momenta(
    model: JetsModel, splittings: Splittings, directions: Float64[np.ndarray, "K B 2"]
) -> Float64[np.ndarray, "N 4 B"]:
    """Four-momenta of all nodes of complete showers.

    In its parent's rest frame a first child goes in a direction that is uniform on the sphere, from
    two uniform numbers in [0, 1), and the second one in the opposite direction.
    """
    mass, number = splittings.mass, splittings.number
    steps, batch = splittings.node.shape
    node = np.where(np.arange(steps)[:, None] < number, splittings.node, 0)
    every = np.arange(batch)
    parent, first, second = mass[node, every], mass[1::2], mass[2::2]  # (K, B)
    difference, rest = first - second, parent - first - second  # rest is 0 or more
    energy = (parent + difference * (first + second) / parent) / 2
    size = rest * (parent + first + second) * (parent - difference) * (parent + difference)
    size = np.sqrt(size) / (2 * parent)
    upwards, angle = 2 * directions[..., 0] - 1, 2 * np.pi * directions[..., 1]
    across = size * np.sqrt(1 - upwards**2)
    parts = [energy, across * np.cos(angle), across * np.sin(angle), size * upwards]
    still = np.stack(parts, axis=1)  # (K, 4, B), in the rest frame
    weights = still / parent[:, None]

    found = np.zeros((len(mass), 4, batch))
    found[0, 0] = math.hypot(model.mass, model.momentum)
    found[0, 1:] = model.momentum / math.sqrt(3)
    flat = found.ravel()
    cells = (4 * node[:, None] + np.arange(4)[:, None]) * batch + every  # (K, 4, B)
    for step in range(int(number.max())):
        above = flat[cells[step]]  # (4, B)
        terms = above * weights[step]
        terms = terms[:2] + terms[2:]  # not by sum, whose order changes with the batch
        energies = terms[0] + terms[1]
        child = above * ((energy[step] + energies) / (above[0] + parent[step])) + still[step]
        child[0] = energies
        found[2 * step + 1], found[2 * step + 2] = child, above - child
    return found


class JetsDataset(GeneratedDataset):
    """The four-momenta ``(E, px, py, pz)`` of the particles of a jet, in GeV, are its tokens.

    A jet splits into two, and so do its parts, until their squared masses are at or below the
    cut. The parts are known by the sum of their particles' momenta: the canonical merges undo the
    splittings, and the clades are all parts of two particles or more but the whole jet. The order
    within a pair means nothing.
    """

    name = "HTM-Jets-v0"
    geometry_class = JetsModel
    kind = "particles"
    token_dim = 4
    default_merger = "htm_env.jets:FourMomenta"
    default_reward = "htm_env.jets:SplittingLikelihood"

    def __init__(self, split: str = "train", geometry: JetsModel | None = None) -> None:
        super().__init__(split)
        self.geometry = JetsModel() if geometry is None else geometry
        self.max_tokens = self.geometry.max_tokens

    def generate(self, seeds: UInt64[np.ndarray, "B"]) -> GeneratedArrays:
        splittings, directions = self._jets(seeds)
        particles = splittings.particles.T  # (B, N)
        order, slots, there = Shuffle.draw(uniforms(seeds, particles.shape[1]), particles)
        shuffle = Shuffle(order[:, : self.max_tokens], slots, there[:, : self.max_tokens])
        nodes = node_momenta(self.geometry, splittings, directions).transpose(2, 0, 1)
        merges, clades = self._hierarchy(splittings, slots, particles)
        return shuffle.tokens(nodes), shuffle.present, clades, merges

    def _hierarchy(
        self,
        splittings: Splittings,
        slots: Int64[np.ndarray, "B N"],
        particles: Bool[np.ndarray, "B N"],
    ) -> tuple[Int64[np.ndarray, "B M 2"], Bool[np.ndarray, "B C P"]]:
        """The merges that undo the splittings, the last one first, and the parts that they make."""
        number, dividing = splittings.number, splittings.dividing
        steps, batch = dividing.shape
        every = np.arange(batch)
        ids = np.empty((2 * steps + 2, batch), dtype=np.int64)
        ids[:-1] = slots.T
        ids[dividing, every] = 2 * number - np.arange(steps)[:, None]
        merges = empty_merges(batch, self.max_tokens)
        rows, undone = np.nonzero(np.arange(steps) < number[:, None])
        time = number[rows] - 1 - undone
        merges[rows, time, 0] = ids[2 * undone + 1, rows]
        merges[rows, time, 1] = ids[2 * undone + 2, rows]

        below = np.zeros((2 * steps + 2, batch, self.max_tokens), dtype=bool)
        rows, leaves = np.nonzero(particles)
        below[leaves, rows, slots[rows, leaves]] = True
        for step in reversed(range(int(number.max()))):
            below[dividing[step], every] = below[2 * step + 1] | below[2 * step + 2]
        below[-1] = False
        return merges, below[dividing[1:].T, every[:, None]]

    def _jets(
        self, seeds: UInt64[np.ndarray, "B"]
    ) -> tuple[Splittings, Float64[np.ndarray, "K B 2"]]:
        """The first jet of each seed's stream that is not too large; numbers of its directions."""
        batch, steps = len(seeds), self.max_tokens - 1
        mass = np.empty((2 * steps + 1, batch))
        node, number = np.empty((steps, batch), np.int64), np.empty(batch, np.int64)
        directions = np.empty((steps, batch, 2))
        # Two at once where there are few: one in twenty is too large by default.
        rows, each, tried = np.arange(batch), 2 if batch < 64 else 1, 0
        while len(rows):
            if tried >= (_MAX_FUTILE if len(rows) == batch else _MAX_DRAWS):
                raise ValueError(
                    f"none of {tried} jets has {self.max_tokens} particles or fewer: expected a "
                    "larger max_tokens or cut, larger rates, or a smaller mass"
                )
            skip = len(mass) + 4 * steps * tried  # the first numbers shuffle the tokens
            numbers = uniforms(seeds[rows], 4 * steps * each, skip).reshape(-1, each, steps, 4)
            drawn = numbers.transpose(2, 1, 0, 3).reshape(steps, -1, 4)  # (K, each x rows, 4)
            found = Splittings.draw(self.geometry, drawn[..., 0], drawn[..., 1])
            fits = found.number.reshape(each, -1) <= steps
            done = fits.any(axis=0)
            jet, fit = rows[done], (fits.argmax(axis=0) * len(rows) + np.arange(len(rows)))[done]
            mass[:, jet], node[:, jet] = found.mass[:, fit], found.node[:, fit]
            number[jet], directions[:, jet] = found.number[fit], drawn[:, fit, 2:]
            rows, tried = rows[~done], tried + each
            each = max(1, min(2 * each, _AT_ONCE // max(1, len(rows))))
        return Splittings(mass, node, number), directions


# ---------------------------------------------------------------- likelihood


def squared_mass(momenta: Float[Tensor, "*rows 4"]) -> Float[Tensor, "*rows"]:
    """``E^2 - px^2 - py^2 - pz^2``; rounding may leave it a little below zero."""
    return momenta[..., 0].square() - momenta[..., 1:].square().sum(dim=-1)


def splitting_log_likelihood(
    parent: Float[Tensor, "*#rows"],
    first: Float[Tensor, "*#rows"],
    second: Float[Tensor, "*#rows"],
    rate: Float[Tensor, "*#rows"] | float,
    cut: float = JetsModel.cut,
    least: float = JetsModel.least_log_likelihood,
) -> Float[Tensor, "*rows"]:
    """Log-likelihood of splittings, from the squared masses of a parent and its two children.

    A particle's squared mass counts as 0, whatever its momentum says: it is only known to be at or
    below the cut. The heavier child is taken as the one that was drawn first, so that the order of
    the two means nothing.

    Args:
        parent: squared masses; below ``cut`` there is no splitting.
        first: those of one child, 0 where it is a particle.
        second: those of the other.
        rate: the root's rate where the parent is the whole jet, else that of all others.
        cut: squared mass at or below which nothing splits.
        least: what an impossible splitting has, and any less likely than that.
    """
    heavier, lighter = torch.maximum(first, second), torch.minimum(first, second)
    scale = (parent.sqrt() - heavier.clamp(min=0).sqrt()).square()
    found = (
        _log_density(heavier, parent, rate, cut)
        + _log_density(lighter, scale, rate, cut)
        - math.log(4 * math.pi)
    )
    possible = found.isfinite() & (parent >= cut)
    return torch.where(possible, found.clamp(min=least), least)


def _log_density(
    mass: Float[Tensor, "*#rows"],
    scale: Float[Tensor, "*#rows"],
    rate: Float[Tensor, "*#rows"] | float,
    cut: float,
) -> Float[Tensor, "*rows"]:
    """Log-density of a squared mass, or log-probability of a particle, at most ``scale``."""
    rate = torch.as_tensor(rate, dtype=scale.dtype, device=scale.device)
    split = rate.log() - scale.log() - rate * mass / scale
    particle = (-torch.expm1(-cut * rate / scale)).log()
    return torch.where(mass > 0, split, particle) - (-torch.expm1(-rate)).log()


def tree_log_likelihood(
    batch: TokenBatch, merges: Int64[Tensor, "B M 2"], model: JetsModel | None = None
) -> Float64[Tensor, "B"]:
    """Log-likelihood of the splittings that the merges of some trees, or partial ones, undo."""
    model = JetsModel() if model is None else model
    device, leaves = merges.device, batch.num_tokens
    rows = torch.arange(len(merges), device=device)
    steps = torch.arange(merges.shape[1], device=device)
    nodes = torch.arange(2 * len(steps) + 1, device=device)
    momenta = torch.zeros(len(rows), len(nodes), 4, dtype=torch.float64, device=device)
    momenta[:, : batch.tokens.shape[1]] = batch.tokens.double()
    exists = merges[..., 0] >= 0
    for step in range(len(steps)):
        made, pair = exists[:, step], merges[exists[:, step], step]
        row = rows[made]
        momenta[row, leaves[made] + step] = momenta[row, pair[:, 0]] + momenta[row, pair[:, 1]]
    mass = squared_mass(momenta).masked_fill(nodes < leaves[:, None], 0.0)
    first, second = (mass.gather(1, merges[..., child].clamp(min=0)) for child in (0, 1))
    parent = mass.gather(1, (leaves[:, None] + steps).clamp(max=len(nodes) - 1))
    rate = torch.where(steps == leaves[:, None] - 2, model.root_rate, model.rate).double()
    cut, least = model.cut, model.least_log_likelihood
    found = splitting_log_likelihood(parent, first, second, rate, cut, least)
    return found.masked_fill(~exists, 0.0).sum(dim=1)
