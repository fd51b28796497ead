"""What a demonstration must know of itself: the probability of whatever it may do."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int64
from torch import Tensor


class Behaviour(ABC):
    """A stochastic policy on one batch of samples."""

    @abstractmethod
    def episodes(
        self, generator: torch.Generator
    ) -> tuple[Int64[Tensor, "B M 2"], Float[Tensor, "B M"]]:
        """One complete episode of every sample, and the log-probability of its merges (0 pads)."""

    @abstractmethod
    def log_prob(self, merges: Int64[Tensor, "B M 2"]) -> Float[Tensor, "B M"]:
        """The log-probability of any merges of the samples; 0 in padding."""

    @abstractmethod
    def tree_log_prob(
        self, merges: Int64[Tensor, "B M 2"], generator: torch.Generator
    ) -> Float[Tensor, "B"]:
        """The log-probability of complete ordered trees, however they are reached.

        Exact, but for trees to which too many forests lead: see the class.
        """
