"""What ``htm generate`` works with: encoded samples, limits, and streams of random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.evaluation.evaluate import CHUNK, EVALUATION_SEED
from agents.generation.options import GenerateOptions
from agents.learners.base import Learner
from htm_env.autoencoder import HTMAutoencoder
from htm_env.generation.denoising import Denoised, denoise
from htm_env.measures.metrics import nmse_per_sample
from htm_env.types import TokenBatch

ENOUGH = 0.9
"""Share of the real samples that are reconstructed better than what is still refined."""


@dataclass(frozen=True)
class Encoded:
    """Samples, their trees, and their roots."""

    batch: TokenBatch
    merges: Int64[Tensor, "B M 2"]
    roots: Float[Tensor, "B D"]
    reconstruction: Float[Tensor, "B P T"]
    """The tokens that the roots decode to along the same trees, in raw units."""


@dataclass(frozen=True)
class Limits:
    """When unmerging ends; the arguments of :func:`htm_env.generation.generate.generate`."""

    threshold: float
    max_depth: int
    max_tokens: int


@torch.no_grad()
def encoded(learner: Learner, batch: TokenBatch) -> Encoded:
    """Samples with the run's own greedy merges, roots and reconstructions."""
    generator = torch.Generator(learner.device).manual_seed(EVALUATION_SEED)
    batch = batch.to(learner.device)
    merges = torch.cat([learner.plan(part, generator, greedy=True) for part in batch.parts(CHUNK)])
    return encoded_along(learner.autoencoder, batch, merges)


@torch.no_grad()
def encoded_along(
    autoencoder: HTMAutoencoder, batch: TokenBatch, merges: Int64[Tensor, "B M 2"]
) -> Encoded:
    """Samples with these merges, their roots and reconstructions."""
    roots, decoded = [], []
    for part, trees in zip(batch.parts(CHUNK), merges.split(CHUNK), strict=True):
        roots.append(autoencoder.encode(part.tokens, part.present, trees).roots)
        decoded.append(autoencoder.decode(roots[-1], trees, part.present))
    return Encoded(batch, merges, torch.cat(roots), torch.cat(decoded))


def enough(autoencoder: HTMAutoencoder, real: Encoded) -> float:
    """The ``nmse`` that most real samples, as this autoencoder encodes them, stay below: what it
    reconstructs as well as that needs no refinement."""
    batch = real.batch
    errors = nmse_per_sample(
        real.reconstruction, batch.tokens, batch.present, autoencoder.token_std
    )
    return float(errors.double().quantile(ENOUGH))


def denoised(
    learner: Learner, batch: TokenBatch, options: GenerateOptions, stream: int
) -> Denoised:
    """Noisy samples, merged by the learner and decoded again."""
    generator = torch.Generator(learner.device).manual_seed(EVALUATION_SEED)
    noise = torch.Generator(learner.device).manual_seed(_seed(options, stream))

    def plan(noisy: TokenBatch) -> Int64[Tensor, "B M 2"]:
        return learner.plan(noisy, generator, greedy=True)

    return denoise(learner.autoencoder, batch, plan, options.noise_std, noise)


def _seed(options: GenerateOptions, stream: int) -> int:
    return 16 * options.seed + stream


def stream_of(options: GenerateOptions, stream: int) -> torch.Generator:
    """Numbers of their own for each purpose, so that one does not change another's."""
    return torch.Generator().manual_seed(_seed(options, stream))
