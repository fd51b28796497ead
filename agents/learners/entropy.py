"""Holding the policy's entropy open until the autoencoder is worth exploiting.

Whatever trees the policy makes most, the autoencoder learns best, so that an early habit feeds
itself. A target for the normalised entropy (1 at first, 0 at the end) keeps the policy from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from agents.config.dataclasses_json import check_bounds
from agents.config.schedules import check_points, piecewise_linear
from agents.rollouts.rollout import Episodes, MergeTerms


@dataclass(frozen=True)
class EntropyConfig:
    """What entropy is worth; shares are of the budget."""

    bonus: float = 0.0
    """Paid for normalised entropy, whatever it is."""
    target: tuple[tuple[float, float], ...] | None = None
    """(share, normalised entropy) points that the mean entropy is drawn to, from 1 at first to 0 at
    the end for a policy that starts from nothing; None for no target."""
    ordered: bool = False
    """Whether the order within a pair counts as a choice to keep open; among candidates it does."""
    control: str = "adaptive"
    """``adaptive``: the price of entropy moves until the target is met (as the temperature of
    Haarnoja et al. 2018, "Soft actor-critic algorithms and applications"); ``distance``: a penalty
    on the distance to the target (the published method's)."""
    weight: float = 3.0
    """``distance``: of the penalty; ``adaptive``: of the present distance, and the sum so far."""
    rate: float = 0.05
    """``adaptive``: how fast the price accumulates."""

    def __post_init__(self) -> None:
        check_bounds(self, bonus=(-1e6, 1e6), weight=(0, 1e6), rate=(0, 1e6))
        if self.target is not None:
            check_points("target", self.target)


def mean_entropy(episodes: Episodes, terms: MergeTerms, ordered: bool) -> float:
    """The mean normalised entropy of the choices that were more than one."""
    return float(terms.entropy.sum() / episodes.open_steps(ordered).sum().clamp(min=1))


def distance_to_target(
    episodes: Episodes, terms: MergeTerms, target: float, ordered: bool
) -> Float[Tensor, "B 1"]:
    """The sign of every episode's mean normalised entropy less the target: the gradient of
    ``|mean - target|``, the published method's loss."""
    mean = terms.entropy.sum(1) / episodes.open_steps(ordered).sum(1).clamp(min=1)
    return torch.sign(mean - target)[:, None]


CONTROLS = ("adaptive", "distance")
PRICE_LIMITS = (-10.0, 50.0)


class EntropyControl:
    """Gives the coefficient of every episode's mean entropy in the policy's loss."""

    def __init__(self, config: EntropyConfig) -> None:
        if config.control not in CONTROLS:
            raise ValueError(
                f"unknown entropy control {config.control!r}; choose from {list(CONTROLS)}"
            )
        self.config, self.price = config, 0.0

    @property
    def measured(self) -> bool:
        """Whether entropy has a price, or may get one: an estimate does not suffice then."""
        return self.config.target is not None or self.config.bonus != 0

    def target(self, progress: float) -> float | None:
        """The target at this share of the budget, if there is one."""
        if self.config.target is None:
            return None
        return piecewise_linear(self.config.target, progress)

    def coefficient(
        self, episodes: Episodes, terms: MergeTerms, progress: float
    ) -> Float[Tensor, "B 1"]:
        """``dLoss / dEntropy`` of every episode."""
        config, target = self.config, self.target(progress)
        coefficient = torch.full_like(terms.entropy[:, :1], -config.bonus)
        if target is None:
            return coefficient
        if config.control == "distance":
            sign = distance_to_target(episodes, terms, target, config.ordered)
            return coefficient + config.weight * sign
        mean = mean_entropy(episodes, terms, config.ordered)
        low, high = PRICE_LIMITS
        self.price = min(max(self.price + config.rate * (target - mean), low), high)
        return coefficient - self.price - config.weight * (target - mean)

    def state(self) -> dict[str, Any]:
        return {"price": self.price}

    def restore(self, state: dict[str, Any]) -> None:
        self.price = state["price"]
