"""Samples of a run as ``htm generate`` uses them: encoded, drawn, refined and denoised."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from agents.evaluation.encoded import Encoded
from agents.evaluation.evaluate import CHUNK, EVALUATION_SEED
from agents.evaluation.search import improved
from agents.generation.options import GenerateOptions
from agents.learners.base import Learner
from htm_env.autoencoder import HTMAutoencoder
from htm_env.generation.denoising import Denoised, denoise
from htm_env.generation.generate import Generated, generate, refine
from htm_env.generation.mixture import RootMixture
from htm_env.types import TokenBatch

ENOUGH = 0.9
"""Share of the real samples that are reconstructed better than what is still refined."""


@dataclass(frozen=True)
class RunSamples:
    """The samples of a trained run under the options of one command.

    Every purpose has a stream of random numbers of its own, so that one does not change another's.
    """

    learner: Learner
    options: GenerateOptions

    @property
    def limits(self) -> dict[str, Any]:
        """When unmerging ends; arguments of :func:`htm_env.generation.generate.generate`."""
        options, slots = self.options, self.learner.dataset.max_tokens
        return {
            "threshold": options.threshold,
            "max_depth": slots if options.max_depth is None else options.max_depth,
            "max_tokens": 2 * slots if options.max_tokens is None else options.max_tokens,
        }

    def stream(self, number: int, device: torch.device | str = "cpu") -> torch.Generator:
        """The random numbers of one purpose."""
        return torch.Generator(device).manual_seed(16 * self.options.seed + number)

    @torch.no_grad()
    def encoded(self, batch: TokenBatch) -> Encoded:
        """Samples with the run's own greedy merges."""
        batch = batch.to(self.learner.device)
        merges = torch.cat(list(map(self._planner(), batch.parts(CHUNK))))
        return Encoded.along(self.learner.autoencoder, batch, merges)

    def drawn(self, autoencoder: HTMAutoencoder, mixture: RootMixture, stream: int) -> Generated:
        """New samples: roots of the mixture, unmerged."""
        roots = mixture.sample(self.options.n, self.stream(stream), self.options.temperature)
        return generate(autoencoder, roots.to(autoencoder.token_mean.device), **self.limits)

    def refined(
        self, autoencoder: HTMAutoencoder, drawn: Generated, real: Encoded
    ) -> tuple[Generated, float]:
        """Drawn samples, refined, and the ``nmse`` that made a sample one to refine.

        Most real samples, as this autoencoder encodes them, stay below it.
        """
        enough = float(real.errors(autoencoder.token_std).double().quantile(ENOUGH))
        rounds = self.options.refinements
        return refine(autoencoder, drawn, rounds, enough=enough, **self.limits), enough

    def denoised(self, batch: TokenBatch) -> Denoised:
        """Noisy samples, merged by the learner and decoded again."""
        noise = self.stream(4, self.learner.device)
        std = self.options.noise_std
        return denoise(self.learner.autoencoder.decoding(), batch, self._planner(), std, noise)

    def _planner(self) -> Any:
        generator = torch.Generator(self.learner.device).manual_seed(EVALUATION_SEED)
        planner = improved(self.learner, self.options.search)
        return partial(planner.plan, generator=generator, greedy=True)
