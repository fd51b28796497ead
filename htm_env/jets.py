"""The known merger and reward of jets: momenta add up, and splittings have a likelihood."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from htm_env.datasets.jets import JetsDataset, splitting_log_likelihood, squared_mass
from htm_env.rewards import MergeReward

UNIT = 100.0
"""GeV: momenta are observed in this unit, which leaves those of most particles near 1."""
FEATURES = 10
"""Numbers of an embedding (see :class:`FourMomenta`)."""
LEAST = 1e-3
"""Squared masses and energies, in units of their own, below which logarithms are not followed."""


class FourMomenta:
    """The merger of jets: the four-momentum of a part is the sum of those of its particles.

    An embedding is the four-momentum in units of 100 GeV, the direction of flight (a unit vector),
    the logarithm of the energy in that unit, the logarithm of the squared mass in units of the cut
    (0 for a particle, whose mass is not known), and 1 for a particle or 0 for a part of several.
    """

    commutative = True
    associative = True

    @staticmethod
    def momenta(tokens: Float[Tensor, "*rows 4"]) -> Float[Tensor, "*rows 4"]:
        """Tokens are four-momenta as they are (see ``TreeEncoder.momenta``)."""
        return tokens

    def __init__(self, dataset: JetsDataset) -> None:
        self.cut = float(dataset.geometry.cut)

    def lift(self, tokens: Float[Tensor, "*rows 4"]) -> Float[Tensor, "*rows 10"]:
        """Embeddings of particles, from their four-momenta in GeV."""
        return self._embedded(tokens / UNIT, torch.ones_like(tokens[..., 0]))

    def __call__(
        self, first: Float[Tensor, "I 10"], second: Float[Tensor, "I 10"]
    ) -> Float[Tensor, "I 10"]:
        """Embeddings of what the pairs become."""
        momenta = first[..., :4] + second[..., :4]
        return self._embedded(momenta, torch.zeros_like(momenta[..., 0]))

    def _embedded(self, momenta: Tensor, particle: Tensor) -> Tensor:
        energy, vector = momenta[..., 0], momenta[..., 1:]
        direction = vector / vector.norm(dim=-1, keepdim=True).clamp(min=LEAST)
        mass = squared_mass(momenta.double()).to(momenta.dtype) * (UNIT**2 / self.cut)
        heavy = mass.clamp(min=LEAST).log() * (1 - particle)
        numbers = torch.stack([energy.clamp(min=LEAST).log(), heavy, particle], dim=-1)
        return torch.cat([momenta, direction, numbers], dim=-1)


class SplittingLikelihood(MergeReward):
    """The log-likelihood of the splitting that a merge undoes; the return is that of the tree.

    See :func:`htm_env.datasets.jets.splitting_log_likelihood`, which is computed in double
    precision from the momenta of the embeddings.
    """

    def __init__(self, dataset: JetsDataset) -> None:
        self.model = dataset.geometry

    def of_merges(
        self,
        first: Float[Tensor, "I 10"],
        second: Float[Tensor, "I 10"],
        merged: Float[Tensor, "I 10"],
        last: Bool[Tensor, "I"],
    ) -> Float[Tensor, "I"]:
        model = self.model
        momenta = torch.stack([merged, first, second])[..., :4].double() * UNIT
        mass = squared_mass(momenta)  # (3, I)
        children = mass[1:] * (1 - torch.stack([first[:, -1], second[:, -1]]))
        rate = torch.where(last, model.root_rate, model.rate).double()
        found = splitting_log_likelihood(
            mass[0], children[0], children[1], rate, model.cut, model.least_log_likelihood
        )
        return found.to(merged.dtype)
