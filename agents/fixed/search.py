"""Search by the autoencoder's own error: greedy, with a beam, and exhaustive for few tokens."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.autoencoder import TreeEncoder
from htm_env.checks import at_least
from htm_env.forest import children_table, legal_pairs, pad_merges
from htm_env.population import Population, merge_pairs, start_population, subtree_errors
from htm_env.types import NONE, TokenBatch

UNKNOWN = 1e30
"""Replaces an error that is not a number: worst of all, but still a legal merge."""


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
        at_least(1, width=self.width)

    @torch.no_grad()
    def __call__(
        self, batch: TokenBatch, autoencoder: TreeEncoder, generator: torch.Generator
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
            population, errors, keys = population.rows(row), errors[row], keys[row]
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
    """True <--> the same value is further to the left in its row."""
    ordered, index = values.sort(dim=1, stable=True)
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(repeated).scatter_(1, index, repeated)


def _tokens_only(batch: TokenBatch) -> TokenBatch:
    """The batch without clades and merges, so that a copy for every forest costs little."""
    return batch._replace(clades=batch.clades[:, :0], merges=batch.merges[:, :0])


TOKENS_A_CALL = 16384
"""Tokens decoded at once: with a hidden width of 256, some 20 MB a hidden layer."""


@torch.no_grad()
def candidate_errors(
    autoencoder: TreeEncoder, population: Population, pairs: Bool[Tensor, "R P P"]
) -> Float[Tensor, "R P P"]:
    """The summed squared error of the tokens under the parent that each ordered pair would have.

    ``pairs`` must be legal; 0 where it is False. All candidates are merged and decoded together,
    ``TOKENS_A_CALL`` tokens at a time. An entry stays right until one of its two slots changes.
    """
    forest, counts = population.forest, population.leaf_counts
    children = children_table(forest.merges, forest.num_leaves)
    rows, first, second = pairs.nonzero(as_tuple=True)
    errors = population.embeddings.new_zeros(pairs.shape)
    if not len(rows):
        return errors
    largest = int((counts[rows, first] + counts[rows, second]).max())
    a_call = max(1, TOKENS_A_CALL // largest)
    for row, left, right in zip(
        rows.split(a_call), first.split(a_call), second.split(a_call), strict=True
    ):
        slots = torch.stack([left, right], dim=1)  # (C, 2)
        embeddings = population.embeddings[row[:, None], slots]  # (C, 2, D)
        merged = autoencoder.merger(embeddings.flatten(1))
        below = autoencoder.decoding().unmerge(merged)  # (2 C, D)
        # The parent does not exist yet, so decoding starts at its children, which do.
        nodes = forest.slots[row[:, None], slots] + row[:, None] * children.shape[1]
        decoded = subtree_errors(
            autoencoder, below, nodes.flatten(), children, population.batch, autoencoder.token_std
        )
        errors[row, left, right] = decoded.view(-1, 2).sum(dim=1)
    return errors


LARGEST = 4
"""Five tokens have 2,880 sequences, eight have 203 million."""
EPISODES_A_CALL = 8192


def all_merge_sequences(num_leaves: int) -> Int64[Tensor, "S M 2"]:
    """Every sequence of ordered merges over ``n`` tokens, in node ids, ``M = n - 1``.

    There are ``n! (n - 1)!``: 2, 12 and 144 for two, three and four tokens. Some differ only in
    when their merges are made. Raises ``ValueError`` for fewer than one token.
    """
    at_least(1, num_leaves=num_leaves)

    def continued(active: list[int]) -> list[list[list[int]]]:
        if len(active) == 1:
            return [[]]
        parent = 2 * num_leaves - len(active)
        return [
            [[first, second], *rest]
            for first, second in permutations(active, 2)
            for rest in continued([*(set(active) - {first, second}), parent])
        ]

    sequences = continued(list(range(num_leaves)))
    return torch.tensor(sequences, dtype=torch.int64).view(len(sequences), num_leaves - 1, 2)


@torch.no_grad()
def exhaustive_merges(batch: TokenBatch, autoencoder: TreeEncoder) -> Int64[Tensor, "B M 2"]:
    """The merges with the smallest ``nmse`` of each sample.

    Raises ``ValueError`` naming the first sample of more than ``LARGEST`` tokens.
    """
    num_leaves, num_slots = batch.num_tokens, batch.present.shape[1]
    if (num_leaves > LARGEST).any():
        row = int((num_leaves > LARGEST).nonzero()[0])
        raise ValueError(
            f"sample {row} has {int(num_leaves[row])} tokens; the exhaustive search takes at most "
            f"{LARGEST}"
        )
    best = num_leaves.new_full((len(num_leaves), num_slots - 1, 2), NONE)
    for size in num_leaves.unique().tolist():
        rows = (num_leaves == size).nonzero().squeeze(1)
        sequences = all_merge_sequences(max(1, size)).to(rows.device)
        for part in rows.split(max(1, EPISODES_A_CALL // len(sequences))):
            errors = _errors(batch.tokens[part, :size], sequences, autoencoder)
            best[part] = pad_merges(sequences[errors.argmin(dim=1)], num_slots)
    return best


def _errors(tokens: Tensor, sequences: Tensor, autoencoder: TreeEncoder) -> Tensor:
    """``(rows, S)``: the summed squared error of each sample ``(n, T)`` under each sequence."""
    samples, choices = len(tokens), len(sequences)
    repeated = tokens.repeat_interleave(choices, dim=0)
    merges = sequences.repeat(samples, 1, 1)
    present = torch.ones(repeated.shape[:2], dtype=torch.bool, device=tokens.device)
    roots = autoencoder.encode(repeated, present, merges).roots
    decoded = autoencoder.decode(roots, merges, present)
    difference = (decoded - repeated) / autoencoder.token_std
    return difference.square().sum(dim=(1, 2)).view(samples, choices)
