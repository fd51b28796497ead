"""The pictures that ``htm generate`` writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from agents.evaluation.encoded import Encoded
from agents.evaluation.figures import write_figure
from agents.generation.samples import RunSamples
from htm_env.datasets import Dataset
from htm_env.drawing.figures.generation import (
    NoisySample,
    criteria_figure,
    denoising_figure,
    generated_figure,
    interpolation_figure,
)
from htm_env.generation.generate import Generated, interpolate
from htm_env.generation.mixture import RootMixture
from htm_env.generation.validity import check_validity

PICTURED, WAYS, STEPS, NOISY = 18, 4, 7, 6
"""Samples of the picture; interpolations and their steps; samples of the denoising picture."""


def write_figures(
    out: Path, samples: RunSamples, mixture: RootMixture, held_out: Encoded, generated: Generated
) -> None:
    """Write the criteria of the mixtures, samples, interpolations and denoised samples."""
    dataset, autoencoder = samples.learner.dataset, samples.learner.autoencoder.decoding()
    kind, suffix = dataset.kind, samples.options.format

    def shown(made: Generated) -> Generated:
        return replace(made, tokens=dataset.to_user(made.tokens))

    write_figure(out / f"bic.{suffix}", criteria_figure(mixture.candidates, mixture.chosen))
    titles = _titles(dataset, generated)
    real = dataset.to_user(held_out.batch.tokens[0][held_out.batch.present[0]]).cpu().numpy()
    write_figure(out / f"samples.{suffix}", generated_figure(shown(generated), kind, titles, real))
    ends = held_out.roots[: 2 * WAYS]
    ways = [
        shown(interpolate(autoencoder, first, second, STEPS, **samples.limits))
        for first, second in zip(ends[0::2], ends[1::2], strict=False)
    ]
    write_figure(out / f"interpolation.{suffix}", interpolation_figure(ways, kind, real))
    batch = held_out.batch.rows(slice(NOISY))
    noisy = samples.denoised(batch)
    columns = []
    for row, here in enumerate(batch.present):
        tokens = map(dataset.to_user, (batch.tokens, noisy.noisy, noisy.reconstruction))
        clean, dirty, restored = (values[row][here].cpu().numpy() for values in tokens)
        errors = float(noisy.noisy_error[row]), float(noisy.error[row])
        columns.append(NoisySample(clean, dirty, restored, *errors))
    write_figure(
        out / f"denoising.{suffix}", denoising_figure(columns, kind, samples.options.noise_std)
    )


def _titles(dataset: Dataset, generated: Generated) -> list[str]:
    shown = slice(PICTURED)
    arrays = generated.tokens[shown].cpu().numpy(), generated.present[shown].cpu().numpy()
    found = check_validity(dataset, *arrays)
    titles = []
    for row, count in enumerate(generated.num_tokens[shown].tolist()):
        title = f"{count} token{'s' if count != 1 else ''}"
        if generated.truncated[row]:
            title += ", cut"
        elif found is not None:
            title += ", valid" if found.valid[row] else ", not valid"
        titles.append(title)
    return titles
