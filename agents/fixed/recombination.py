"""Sequential recombination of particles: the orders in which collider physics builds its jets.

The two particles with the least ``min(pt_i^2p, pt_j^2p) (dy^2 + dphi^2)`` are merged and their
four-momenta are added, until one is left: ``p = 1`` is the kt algorithm (Catani, Dokshitzer,
Seymour and Webber 1993; Ellis and Soper 1993), ``p = 0`` that of Cambridge and Aachen (Dokshitzer,
Leder, Moretti and Webber 1997; Wobisch and Wengler 1998). ``pt``, the rapidity ``y`` and the
azimuth ``phi`` are those of a beam along z. Distances to the beam are left out, as with a radius so
large that nothing is ever merged with it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.fixed.linkage import agglomerate
from htm_env.autoencoder import TreeEncoder
from htm_env.types import TokenBatch

MOST_RAPIDITY = 1e5
"""Rapidity of a massless particle along the beam, which has none; fastjet takes the same."""


def kt_tree(
    batch: TokenBatch, model: TreeEncoder, generator: torch.Generator
) -> Int64[Tensor, "B M 2"]:
    """The order of the kt algorithm; the order within a pair means nothing."""
    return recombined(batch, model, power=1)


def cambridge_aachen_tree(
    batch: TokenBatch, model: TreeEncoder, generator: torch.Generator
) -> Int64[Tensor, "B M 2"]:
    """The order of Cambridge and Aachen, by angles alone; the order within a pair means nothing."""
    return recombined(batch, model, power=0)


@torch.no_grad()
def recombined(batch: TokenBatch, model: TreeEncoder, *, power: int) -> Int64[Tensor, "B M 2"]:
    """One tree a sample, by the generalised kt distance with ``p = power``, of a model that knows
    the four-momenta of tokens."""
    assert model.momenta is not None
    momenta = model.momenta(batch.tokens.double()) * batch.present[..., None]  # (B, P, 4)
    rows = torch.arange(len(momenta), device=momenta.device)

    def joined(distances: Tensor, first: Tensor, second: Tensor) -> Tensor:
        momenta[rows, first] += momenta[rows, second]
        return kt_distances(momenta[rows, first][:, None], momenta, power)[:, 0]

    return agglomerate(kt_distances(momenta, momenta, power), batch.present, joined)


def kt_distances(
    these: Float[Tensor, "B Q 4"], others: Float[Tensor, "B P 4"], power: int
) -> Float[Tensor, "B Q P"]:
    """The generalised kt distance of each of these from each of the others."""
    here, there = beam_coordinates(these)[:, :, None], beam_coordinates(others)[:, None]
    _, rapidity, azimuth = (here - there).abs().unbind(-1)
    azimuth = torch.where(azimuth > math.pi, 2 * math.pi - azimuth, azimuth)
    scale = torch.minimum(here[..., 0] ** power, there[..., 0] ** power)
    return scale * (rapidity.square() + azimuth.square())


def beam_coordinates(momenta: Float[Tensor, "B P 4"]) -> Float[Tensor, "B P 3"]:
    """Squared transverse momentum, rapidity and azimuth about the z axis.

    The rapidity is ``log((E + pz) / (E - pz)) / 2``, with ``E - pz`` from the squared mass, which
    keeps its digits where a particle flies nearly along the beam.
    """
    energy, x, y, z = momenta.unbind(-1)
    squared = x.square() + y.square()
    mass = ((energy + z) * (energy - z) - squared).clamp(min=0)
    rapidity = 0.5 * ((squared + mass).log() - 2 * (energy + z.abs()).log())
    along = MOST_RAPIDITY + z.abs()
    rapidity = torch.where(squared + mass > 0, rapidity, -along)
    rapidity = torch.where(z > 0, -rapidity, rapidity)
    return torch.stack([squared, rapidity, torch.atan2(y, x)], dim=-1)
