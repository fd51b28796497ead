"""Distances between token sets, and between a collection of real sets and one of generated ones.

The measures of generated point sets are those of Achlioptas et al. 2018, "Learning representations
and generative models for 3D point clouds" (minimum matching distance, coverage), and of Yang et al.
2019, "PointFlow", after Lopez-Paz and Oquab 2017, "Revisiting classifier two-sample tests"
(1-nearest-neighbour accuracy). Sets may differ in size; distances are in whatever units the tokens
have, so standardise them first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

MOST_WAYS = 2**22
"""Distances between tokens that are computed at a time."""
_Distance = Callable[[int, int, float], float]
"""Between two members of a collection; infinite where it is certainly above the limit, the third
argument."""


class TokenSets(NamedTuple):
    """A collection of token sets, padded."""

    tokens: Float[Tensor, "B P T"]
    present: Bool[Tensor, "B P"]
    """True <--> a token is here; at least one a sample, in its first slots."""


class SetMeasures(NamedTuple):
    """Similarity of generated and real sets by one distance between sets."""

    minimum_matching_distance: float
    """Mean over real sets of the distance to the nearest generated one: fidelity, 0 is best."""
    coverage: float
    """Share of real sets that are the nearest real one of some generated set: diversity."""
    nearest_neighbour_accuracy: float
    """Share of sets whose nearest neighbour, itself left out, is of their kind: 0.5 is best, 1
    means that the two are told apart, below 0.5 that real sets were copied. A tie counts half."""


def token_count_distance(first: Int64[np.ndarray, "A"], second: Int64[np.ndarray, "B"]) -> float:
    """Total variation between two distributions of token counts: 0 is equal, 1 is disjoint."""
    length = int(max(first.max(), second.max())) + 1
    shares = [np.bincount(counts, minlength=length) / len(counts) for counts in (first, second)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def set_measures(real: TokenSets, generated: TokenSets) -> dict[str, SetMeasures]:
    """The measures by ``chamfer`` and by ``earth_movers`` distance.

    Chamfer: the mean squared distance of every token to the nearest one of the other set, both ways
    added. Earth mover's: the least mean Euclidean way that turns one set into the other, the tokens
    of a set sharing its mass equally; exact, for any two sizes. Its nearest neighbours are found in
    the order of a lower bound, until none is below the best distance.

    Raises ``ValueError`` unless both have the same number of sets, at least two, of finite tokens.
    """
    if len(real.tokens) != len(generated.tokens) or len(real.tokens) < 2:
        raise ValueError(
            f"{len(real.tokens)} real and {len(generated.tokens)} generated sets; expected the "
            "same number of both, at least 2"
        )
    both = TokenSets(
        pad_sequence([*real.tokens, *generated.tokens], batch_first=True),
        pad_sequence([*real.present, *generated.present], batch_first=True),
    )
    if not both.tokens[both.present].isfinite().all():
        raise ValueError("a token is not finite; expected numbers in all of them")
    chamfer, bound = _matrices(both)
    kind = np.arange(len(both.tokens)) >= len(real.tokens)  # True <--> generated
    sets = [row[here].double().cpu().numpy() for row, here in zip(*both, strict=True)]
    solved: dict[tuple[int, int], float] = {}

    def exact(first: int, second: int, limit: float) -> float:
        pair = min(first, second), max(first, second)
        if pair not in solved:
            ways = cdist(sets[pair[0]], sets[pair[1]])
            if ways.shape[0] != ways.shape[1] and _bound(ways) > limit:
                return math.inf  # too far, whatever it is
            solved[pair] = _transport(ways)
        return solved[pair]

    return {
        "chamfer": _measures(kind, chamfer, lambda first, second, limit: chamfer[first, second]),
        "earth_movers": _measures(kind, bound, exact),
    }


def nearest_chamfer(
    sets: TokenSets, others: TokenSets, most: int = MOST_WAYS
) -> Float64[np.ndarray, "B"]:
    """The Chamfer distance of :func:`set_measures` of every set to the nearest of other ones.

    The memory is that of ``most`` distances between tokens, or of one set against one other.
    """
    others = TokenSets(others.tokens.double(), others.present)
    found = []
    for own, here in zip(*sets, strict=True):
        at_once = max(1, most // (int(here.sum()) * others.present.shape[1]))
        parts = zip(others.tokens.split(at_once), others.present.split(at_once), strict=True)
        least = [_ways(own.double(), here, TokenSets(*part))[0].min() for part in parts]
        found.append(torch.stack(least).min())
    return torch.stack(found).cpu().numpy()


def _matrices(sets: TokenSets) -> tuple[Float64[np.ndarray, "B B"], Float64[np.ndarray, "B B"]]:
    """The chamfer distances, and lower bounds of the earth mover's distances: every token sends its
    mass to the nearest token of the other set, whatever the others send there (Kusner et al. 2015,
    "From word embeddings to document distances").

    Row by row, so that the memory stays at one set against all.
    """
    sets = TokenSets(sets.tokens.double(), sets.present)
    rows = [_ways(own, here, sets) for own, here in zip(*sets, strict=True)]
    chamfer, bound = zip(*rows, strict=True)
    return torch.stack(chamfer).cpu().numpy(), torch.stack(bound).cpu().numpy()


def _ways(
    own: Float[Tensor, "P T"], here: Bool[Tensor, "P"], sets: TokenSets
) -> tuple[Float64[Tensor, "B"], Float64[Tensor, "B"]]:
    """A row of both matrices: one set against all of these."""
    absent, sizes = ~sets.present, sets.present.sum(dim=1)
    ways = torch.cdist(
        own[here], sets.tokens, compute_mode="donot_use_mm_for_euclid_dist"
    )  # (B, n, Q)
    there = ways.masked_fill(absent[:, None], torch.inf).amin(dim=2)  # (B, n)
    back = ways.amin(dim=1).masked_fill(absent, 0.0)  # (B, Q)
    chamfer = there.square().mean(dim=1) + back.square().sum(dim=1) / sizes
    return chamfer, torch.maximum(there.mean(dim=1), back.sum(dim=1) / sizes)


def _bound(ways: Float[np.ndarray, "N M"]) -> float:
    """At most the earth mover's distance of fewer tokens to more: each of the few sends its mass to
    the nearest of the many, to each at most what fits there, whatever the others send (Atasu and
    Mittelholzer 2019, "Linear-complexity data-parallel earth mover's distance approximations")."""
    few = ways if ways.shape[0] < ways.shape[1] else ways.T
    targets = few.shape[1] / few.shape[0]
    taken = np.clip(targets - np.arange(few.shape[1]), 0.0, 1.0)
    return float((np.sort(few, axis=1) @ taken).mean() / targets)


def _transport(ways: Float64[np.ndarray, "N M"]) -> float:
    """The least mean way between masses that are uniform on both sides."""
    rows, columns = ways.shape
    if rows == columns:
        return float(ways[linear_sum_assignment(ways)].mean())
    from ot import emd2  # takes a second, and equal sizes do without

    masses = np.full(rows, 1 / rows), np.full(columns, 1 / columns)
    return float(emd2(*masses, ways, center_dual=False, check_marginals=False))


def _measures(
    kind: Bool[np.ndarray, "U"],
    bound: Float64[np.ndarray, "U U"],
    distance: _Distance,
) -> SetMeasures:
    """The measures of all sets together; ``kind`` is True for the generated ones."""
    groups = {False: np.flatnonzero(~kind), True: np.flatnonzero(kind)}
    own_kind, to_generated, covered = [], [], set()
    for member, generated in enumerate(kind.tolist()):
        other, way = _nearest(member, groups[not generated], bound[member], distance)
        mates = groups[generated][groups[generated] != member]
        _, own_way = _nearest(member, mates, bound[member], distance, enough=way)
        own_kind.append(0.5 if own_way == way else float(own_way < way))
        if generated:
            covered.add(other)
        else:
            to_generated.append(way)
    return SetMeasures(
        float(np.mean(to_generated)),
        len(covered) / len(groups[False]),
        float(np.mean(own_kind)),
    )


def _nearest(
    member: int,
    candidates: Int64[np.ndarray, "C"],
    bound: Float64[np.ndarray, "U"],
    distance: _Distance,
    enough: float = -math.inf,
) -> tuple[int, float]:
    """The nearest candidate, the first of equals, and its distance; any that is nearer than
    ``enough`` will do."""
    best, least = -1, math.inf
    for candidate in candidates[np.argsort(bound[candidates], kind="stable")].tolist():
        if bound[candidate] > least or least < enough:
            break
        found = distance(member, candidate, least)
        if found < least:
            best, least = candidate, found
    return best, least
