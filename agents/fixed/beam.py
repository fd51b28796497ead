"""Search by the autoencoder's own error: greedy, or with a beam."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.fixed.candidates import candidate_errors
from htm_env.autoencoder import HTMAutoencoder
from htm_env.forest import Forest, legal_pairs
from htm_env.population import Population, merge_pairs, start_population
from htm_env.types import TokenBatch

UNKNOWN = 1e30
"""Stands for an error that is not a number: worst of all, but still a legal merge."""


@dataclass(frozen=True)
class Beam:
    """Keeps the ``width`` partial forests of each sample with the smallest ``nmse``.

    Every ordered pair is a candidate. Forests with the same ordered trees are kept once, however
    they were reached. Width 1 is greedy search; a wider beam need not end better than a narrower.

    Cost: a candidate's error holds until one of its two trees is merged, so a sample of ``n``
    tokens needs ``n (n - 1)`` candidates at first and ``2 (k - 1)`` for each kept forest of ``k``
    trees later: about ``(1 + width) n^2`` merges in all, each decoded down to its tokens.
    """

    width: int = 4

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width is {self.width}; expected at least 1")

    @torch.no_grad()
    def __call__(
        self, batch: TokenBatch, autoencoder: HTMAutoencoder, generator: torch.Generator
    ) -> Int64[Tensor, "B M 2"]:
        """The complete tree with the smallest ``nmse`` that the search found; nothing is drawn."""
        samples, slots = batch.present.shape
        std = autoencoder.token_std
        population = start_population(autoencoder, _tokens_only(batch), std)
        errors = candidate_errors(
            autoencoder, population, legal_pairs(population.forest.active)
        )  # (R, P, P), and R = B at first, B * width later
        keys = _mixed(torch.arange(slots, device=batch.tokens.device), 1).repeat(samples, 1)
        for _ in range(slots - 1):
            row, first, second = self._best(population, errors, keys, samples)
            population, errors, keys = _rows_of(population, row), errors[row], keys[row]
            running = population.forest.num_active > 1
            population = merge_pairs(autoencoder, population, first, second, std, running)
            here = torch.arange(len(row), device=row.device)
            keys[here, first] = _mixed(keys[here, first], keys[here, second])
            new = torch.zeros_like(errors, dtype=torch.bool)
            new[here, first] = True
            new[here, :, first] = True
            new &= legal_pairs(population.forest.active)
            errors = torch.where(new, candidate_errors(autoencoder, population, new), errors)
        best = population.error.view(samples, -1).argmin(dim=1)
        beams = len(population.embeddings) // samples
        return population.forest.merges[torch.arange(samples, device=best.device) * beams + best]

    def _best(
        self,
        population: Population,
        errors: Float[Tensor, "R P P"],
        keys: Int64[Tensor, "R P"],
        samples: int,
    ) -> tuple[Int64[Tensor, "K"], Int64[Tensor, "K"], Int64[Tensor, "K"]]:
        """The kept candidates, as many for each sample: their forests and their pairs of slots."""
        forests, slots, _ = errors.shape
        beams = forests // samples
        totals = self._totals(population, errors).view(samples, -1)
        # Pairs of one forest differ in outcome, so an outcome comes at most once from each forest.
        totals, index = totals.topk(
            min(self.width * beams, totals.shape[1]), dim=1, largest=False
        )  # (B, C), ascending
        offset = torch.arange(samples, device=index.device)[:, None] * beams
        row = index // slots**2 + offset
        first, second = index // slots % slots, index % slots
        active = population.forest.active
        outcome = (
            (keys * active).sum(dim=1)[row]
            - keys[row, first]
            - keys[row, second]
            + _mixed(keys[row, first], keys[row, second])
        )  # (B, C)
        totals = totals.masked_fill(_repeated(outcome), torch.inf)
        totals, kept = totals.topk(min(self.width, totals.shape[1]), dim=1, largest=False)
        # Small samples have fewer outcomes than the beam is wide: the best one fills it up, and the
        # copies go as duplicates in the next step.
        kept = torch.where(totals.isinf(), kept[:, :1], kept)
        row, first, second = (chosen.gather(1, kept).flatten() for chosen in (row, first, second))
        return row, first, second

    @staticmethod
    def _totals(population: Population, errors: Float[Tensor, "R P P"]) -> Float[Tensor, "R P P"]:
        """The squared error of the whole forest after each candidate; infinite if it is illegal."""
        own = population.squared_errors
        total = own.sum(dim=1)
        after = errors + total[:, None, None] - own[:, :, None] - own[:, None, :]
        after = after.nan_to_num(nan=UNKNOWN, posinf=UNKNOWN)
        after = after.masked_fill(~legal_pairs(population.forest.active), torch.inf)
        # A finished tree stays in the beam: its one candidate changes nothing.
        finished = population.forest.num_active <= 1
        after[:, 0, 0] = torch.where(finished, total.nan_to_num(nan=UNKNOWN), after[:, 0, 0])
        return after


def _mixed(first: Tensor, second: Tensor | int) -> Tensor:
    """A 64-bit key of an ordered pair of keys (multiply and shift, as in splitmix64)."""
    mixed = first * 0x1E3779B97F4A7C15 + second * 0x3F58476D1CE4E5B9 + 0x14D049BB133111EB
    mixed = (mixed ^ (mixed >> 30)) * 0x3F58476D1CE4E5B9
    mixed = (mixed ^ (mixed >> 27)) * 0x14D049BB133111EB
    return mixed ^ (mixed >> 31)


def _repeated(values: Int64[Tensor, "B C"]) -> Tensor:
    """True <--> the same value stands further to the left in its row."""
    ordered, index = values.sort(dim=1, stable=True)
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(repeated).scatter_(1, index, repeated)


def _tokens_only(batch: TokenBatch) -> TokenBatch:
    """The batch without clades and merges, so that a copy for every forest costs little."""
    return batch._replace(clades=batch.clades[:, :0], merges=batch.merges[:, :0])


def _rows_of(population: Population, index: Int64[Tensor, "K"]) -> Population:
    forest = population.forest
    return Population(
        population.batch.rows(index),
        Forest(*(getattr(forest, field.name)[index] for field in fields(Forest))),
        population.embeddings[index],
        population.leaf_counts[index],
        population.squared_errors[index],
        population.initial_error[index],
    )
