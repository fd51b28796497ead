"""Sequential recombination of particles against a plain loop, and against fastjet."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.fixed import fixed_policy
from agents.fixed.recombination import beam_coordinates
from htm_env.forest import check_merges
from htm_env.known import KnownMerger
from htm_env.types import TokenBatch

POWERS = {"kt": 1, "cambridge_aachen": 0}


class Momenta:
    """Momenta add up; a token has them behind another number."""

    commutative = associative = True

    def momenta(self, tokens):
        return tokens[..., 1:]

    def __call__(self, first, second):
        return first + second


MODEL = KnownMerger(5, Momenta())


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def particles(sizes: list[int], seed: int, spread: float = 1.0) -> np.ndarray:
    """Massless and massive momenta about the direction (1, 1, 1)."""
    random = np.random.default_rng(seed)
    momenta = random.normal(size=(len(sizes), max(sizes), 3)) * spread + 1
    mass = random.uniform(0, 0.5, size=momenta.shape[:2]) * random.integers(0, 2, momenta.shape[:2])
    energy = np.sqrt((momenta**2).sum(2) + mass**2)
    return np.concatenate([energy[..., None], momenta], axis=2)


def batch_of(momenta: np.ndarray, sizes: list[int]) -> TokenBatch:
    slots = max(2, momenta.shape[1])
    tokens = torch.full((len(sizes), slots, 5), 7.0, dtype=torch.float64)
    tokens[:, : momenta.shape[1], 1:] = torch.from_numpy(momenta)
    present = torch.arange(slots) < torch.tensor(sizes)[:, None]
    tokens = tokens * present[..., None]
    merges = torch.full((len(sizes), slots - 1, 2), -1)
    return TokenBatch(tokens, present, torch.zeros(len(sizes), 0, slots, dtype=torch.bool), merges)


def clades(merges: list[list[int]], n: int) -> list[frozenset[int]]:
    sets = [frozenset([leaf]) for leaf in range(n)]
    for first, second in merges:
        sets.append(sets[first] | sets[second])
    return sets[n:]


def planned(name: str, momenta: np.ndarray, sizes: list[int]) -> list[list[frozenset[int]]]:
    """The clades of each sample, in the order of its merges."""
    batch = batch_of(momenta, sizes)
    merges = fixed_policy(name, MODEL).plan(batch, generator())
    check_merges(merges, batch.num_tokens)
    return [clades(merges[row, : n - 1].tolist(), n) for row, n in enumerate(sizes)]


def by_loops(momenta: np.ndarray, power: int) -> list[frozenset[int]]:
    """The two with the least ``min(pt^2p) dR^2``, over and over."""

    def rapidity(p: np.ndarray) -> float:
        return 0.5 * math.log((p[0] + p[3]) / (p[0] - p[3]))

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        turn = abs(math.atan2(a[2], a[1]) - math.atan2(b[2], b[1]))
        turn = min(turn, 2 * math.pi - turn)
        apart = (rapidity(a) - rapidity(b)) ** 2 + turn**2
        return min(math.hypot(*p[1:3]) ** (2 * power) for p in (a, b)) * apart

    jets = {frozenset([leaf]): momentum for leaf, momentum in enumerate(momenta)}
    made = []
    while len(jets) > 1:
        pairs = [(a, b) for a in jets for b in jets if min(a) < min(b)]
        a, b = min(pairs, key=lambda pair: distance(jets[pair[0]], jets[pair[1]]))
        jets[a | b] = jets.pop(a) + jets.pop(b)
        made.append(a | b)
    return made


@pytest.mark.parametrize("name", POWERS)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 2**16))
def test_every_merge_is_that_of_the_plain_loop(name, sizes, seed):
    momenta = particles(sizes, seed)
    expected = [by_loops(momenta[row, :n], POWERS[name]) for row, n in enumerate(sizes)]
    assert planned(name, momenta, sizes) == expected


def test_fastjet_makes_the_same_trees():
    fastjet = pytest.importorskip("fastjet")
    sizes, seed = [20, 12, 3, 20], 5
    for spread in (0.1, 3.0):
        momenta = particles(sizes, seed, spread)
        for name, algorithm in [
            ("kt", fastjet.kt_algorithm),
            ("cambridge_aachen", fastjet.cambridge_algorithm),
        ]:
            # With the largest radius that it allows, nothing is merged with the beam.
            definition = fastjet.JetDefinition(algorithm, 1000.0)
            found = planned(name, momenta, sizes)
            for row, n in enumerate(sizes):
                jets = [fastjet.PseudoJet(x, y, z, e) for e, x, y, z in momenta[row, :n].tolist()]
                for index, jet in enumerate(jets):
                    jet.set_user_index(index)
                sequence = fastjet.ClusterSequence(jets, definition)
                (root,) = sequence.inclusive_jets()
                assert set(found[row]) == fastjet_clades(fastjet, root)


def fastjet_clades(fastjet, jet) -> set[frozenset[int]]:
    first, second = fastjet.PseudoJet(), fastjet.PseudoJet()
    if not jet.has_parents(first, second):
        return set()
    made = frozenset(part.user_index() for part in jet.constituents())
    return {made} | fastjet_clades(fastjet, first) | fastjet_clades(fastjet, second)


def test_momentum_decides_for_kt_and_angles_alone_for_cambridge_and_aachen():
    # Two hard particles 0.1 apart in azimuth, a soft one 0.3 from the second.
    azimuth, transverse = np.array([0.0, 0.1, 0.4]), np.array([100.0, 100.0, 1.0])
    x, y = transverse * np.cos(azimuth), transverse * np.sin(azimuth)
    momenta = np.stack([transverse, x, y, np.zeros(3)], axis=1)[None]
    assert planned("cambridge_aachen", momenta, [3]) == [[{0, 1}, {0, 1, 2}]]
    assert planned("kt", momenta, [3]) == [[{1, 2}, {0, 1, 2}]]


def test_azimuth_goes_around():
    azimuth = np.array([math.pi - 0.1, 2.0, -math.pi + 0.1])
    momenta = np.stack([np.ones(3), np.cos(azimuth), np.sin(azimuth), np.zeros(3)], axis=1)[None]
    assert planned("cambridge_aachen", momenta, [3]) == [[{0, 2}, {0, 1, 2}]]


def test_rapidity_keeps_its_digits_along_the_beam():
    # A massless particle has rapidity artanh(pz / E): at 1e-6 from the axis that is log(2e6).
    tokens = torch.tensor([[[1.0, 1e-6, 0.0, math.sqrt(1 - 1e-12)], [2.0, 0.0, 0.0, -2.0]]])
    squared, rapidity, azimuth = beam_coordinates(tokens.double())[0].unbind(-1)
    assert squared.tolist() == pytest.approx([1e-12, 0.0])
    assert rapidity.tolist() == pytest.approx([math.log(2e6), -1e5 - 2])
    assert float(azimuth[0]) == 0


def test_what_has_no_momenta_is_refused():
    class Sum:
        def __call__(self, first, second):
            return first + second

    with pytest.raises(ValueError, match="kt cannot plan with KnownMerger; expected a known"):
        fixed_policy("kt", KnownMerger(5, Sum())).plan(
            batch_of(particles([3], 0), [3]), generator()
        )
