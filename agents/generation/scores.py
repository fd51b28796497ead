"""The measures of token sets that a model made, the same for every row of the table."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from htm_env.datasets import Dataset
from htm_env.generation.distances import (
    TokenSets,
    nearest_chamfer,
    set_measures,
    token_count_distance,
)
from htm_env.generation.validity import (
    TOLERANCE,
    check_validity,
    plausible_lengths,
    plausible_strokes,
)
from htm_env.types import TokenBatch

LOOSE = 2 * TOLERANCE
"""A second tolerance, within which a near miss is valid."""

MEASURED = 200
"""Sets whose distance to the training samples is measured, at most."""

Scores = dict[str, float | None]


class Newness:
    """How new token sets are to training samples.

    Args:
        dataset: of the real ones.
        training: the training samples.
        others: other real samples, which are as new as they can be.
    """

    def __init__(self, dataset: Dataset, training: TokenBatch, others: TokenBatch) -> None:
        self._dataset = dataset
        self._training = self._standardised(training.tokens.cpu(), training.present.cpu())
        self._usual = self._distance(others.tokens.cpu(), others.present.cpu())

    def of(self, tokens: Float[Tensor, "B P T"], present: Bool[Tensor, "B P"]) -> float | None:
        """The median Chamfer distance to the nearest training sample, over that of other real ones.

        0 for copies, 1 for sets as new as real ones; None where most of these are copies
        themselves. Of the first ``MEASURED`` sets, in standardised coordinates.
        """
        return self._distance(tokens, present) / self._usual if self._usual > 0 else None

    def _distance(self, tokens: Tensor, present: Tensor) -> float:
        sets = self._standardised(tokens[:MEASURED], present[:MEASURED])
        return float(np.median(nearest_chamfer(sets, self._training)))

    def _standardised(self, tokens: Tensor, present: Tensor) -> TokenSets:
        return TokenSets((tokens - self._dataset.mean) / self._dataset.std, present)


class SetScores:
    """Measures of token sets against held-out real ones and against the rules of the data.

    Args:
        dataset: the held-out split.
        count: real samples to compare with; finite data gives half of its rows at most.
        training: samples of the training split, to measure how new sets are.

    Raises ``ValueError`` where the data has fewer than four rows.
    """

    def __init__(self, dataset: Dataset, count: int, training: TokenBatch) -> None:
        samples = dataset.fixed(2 * count)
        half = len(samples.tokens) // 2
        if half < 2:
            raise ValueError(
                f"the {dataset.split} split has {len(samples.tokens)} samples; expected at least 4"
            )
        self.dataset = dataset
        self.count = half
        """Sets on either side of a comparison."""
        self.reference = samples.rows(slice(half))
        """Real samples that everything is compared with."""
        self.others = samples.rows(slice(half, 2 * half))
        """Other real samples, whose scores against the reference are the best possible."""
        self._newness = Newness(dataset, training, self.others)

    def of(self, tokens: Float[Tensor, "B P T"], present: Bool[Tensor, "B P"]) -> Scores:
        """All measures of token sets in raw units, by name.

        Validity (None without rules) and token counts are those of all sets; distances compare the
        first :attr:`count` with as many real ones, in standardised coordinates. Where there are
        fewer sets, fewer real ones are taken. A category is its most probable value.
        ``distance_to_training`` is that of :class:`Newness`.
        """
        given, present = self.dataset.to_user(tokens.cpu()), present.cpu()
        tokens = torch.from_numpy(self.dataset.from_user(given.numpy()))
        arrays = tokens.numpy(), present.numpy()
        strict, loose = (
            check_validity(self.dataset, *arrays, tolerance) for tolerance in (TOLERANCE, LOOSE)
        )
        counts = present.sum(dim=1)
        scores: Scores = {
            "valid": None if strict is None else float(strict.valid.mean()),
            "valid_with_angles": None if strict is None else float(strict.valid_with_angles.mean()),
            "valid_within_20_percent": None if loose is None else float(loose.valid.mean()),
            "undecided": None if strict is None else float(strict.undecided.mean()),
            "plausible_stroke_lengths": plausible_lengths(self.dataset, *arrays),
            "plausible_strokes": plausible_strokes(self.dataset, *arrays),
            "token_count_distance": token_count_distance(
                self.reference.num_tokens.numpy(), counts.numpy()
            ),
            "mean_tokens": float(counts.double().mean()),
        }
        count = min(self.count, len(tokens))
        found = set_measures(
            self._standardised(self.reference.tokens[:count], self.reference.present[:count]),
            self._standardised(tokens[:count], present[:count]),
        )
        scores["distance_to_training"] = self._newness.of(tokens, present)
        for name, measures in found.items():
            scores |= {f"{name}_{measure}": value for measure, value in measures._asdict().items()}
        return scores

    def _standardised(self, tokens: Tensor, present: Tensor) -> TokenSets:
        return TokenSets((tokens - self.dataset.mean) / self.dataset.std, present)


def gaussian_tokens(
    training: TokenBatch, count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "B P T"], Bool[Tensor, "B P"]]:
    """Sets of independent tokens from one Gaussian, with the token counts of training samples.

    A baseline without any structure: mean and covariance of all tokens are right.
    """
    values = training.tokens[training.present].double()
    covariance = torch.from_numpy(np.atleast_2d(np.cov(values.numpy(), rowvar=False)))
    variances, axes = torch.linalg.eigh(covariance)  # singular where a coordinate never varies
    size = (count, training.present.shape[1], len(variances))
    noise = torch.randn(size, generator=generator, dtype=torch.float64)
    tokens = values.mean(dim=0) + (noise * variances.clamp(min=0).sqrt()) @ axes.T
    rows = torch.randint(len(training.present), (count,), generator=generator)
    present = training.present[rows]
    return (tokens * present[..., None]).float(), present
