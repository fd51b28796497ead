"""What ``htm generate`` works with: encoded samples, limits, and streams of random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.evaluation import CHUNK, EVALUATION_SEED
from agents.learner import Learner
from agents.options import GenerateOptions
from htm_env.denoising import Denoised, denoise
from htm_env.types import TokenBatch


@dataclass(frozen=True)
class Encoded:
    """Samples, the trees that the run makes of them, and their roots."""

    batch: TokenBatch
    merges: Int64[Tensor, "B M 2"]
    roots: Float[Tensor, "B D"]
    reconstruction: Float[Tensor, "B P T"]
    """The tokens that the roots decode to along the same trees, in raw units."""


@dataclass(frozen=True)
class Limits:
    """When unmerging ends; the arguments of :func:`htm_env.generation.generate`."""

    threshold: float
    max_depth: int
    max_tokens: int


@torch.no_grad()
def encoded(learner: Learner, batch: TokenBatch) -> Encoded:
    """Samples with the run's own greedy merges, roots and reconstructions."""
    generator = torch.Generator(learner.device).manual_seed(EVALUATION_SEED)
    batch = batch.to(learner.device)
    merges, roots, decoded = [], [], []
    for start in range(0, len(batch.tokens), CHUNK):
        part = batch.rows(slice(start, start + CHUNK))
        merges.append(learner.plan(part, generator, greedy=True))
        roots.append(learner.autoencoder.encode(part.tokens, part.present, merges[-1]).roots)
        decoded.append(learner.autoencoder.decode(roots[-1], merges[-1], part.present))
    return Encoded(batch, torch.cat(merges), torch.cat(roots), torch.cat(decoded))


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
