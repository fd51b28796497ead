"""``htm generate``: new samples from a trained run, and how good they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from rich.console import Console
from rich.table import Table
from torch import Tensor

from agents.evaluation import CHUNK, EVALUATION_SEED
from agents.figures import write_png
from agents.generation_scores import Judge, Scores, gaussian_tokens
from agents.learner import Learner
from agents.options import GenerateOptions, UsageError, set_threads
from agents.run import load_learner
from agents.run_directory import RunDirectory
from htm_env.autoencoder import HTMAutoencoder
from htm_env.classifier_scores import classifier_scores
from htm_env.denoising import denoise
from htm_env.files import atomic_write_bytes, atomic_write_text
from htm_env.generation import Generated, generate, interpolate
from htm_env.generation_figures import (
    NoisySample,
    criteria_figure,
    denoising_figure,
    generated_figure,
    interpolation_figure,
)
from htm_env.metrics import mean_or_none, nmse_per_sample
from htm_env.root_mixture import COMPONENTS, COVARIANCE_TYPES, Candidate, RootMixture
from htm_env.types import TokenBatch
from htm_env.validity import validity

FOLDER = "generated"
ROOTS_A_COMPONENT = 20
"""Roots that a component needs at least before the default range tries so many."""
PICTURED, WAYS, STEPS, NOISY = 18, 4, 7, 6
"""Samples of the picture; interpolations and their steps; samples of the denoising picture."""


@dataclass(frozen=True)
class Encoded:
    """Samples, the trees that the run makes of them, and their roots."""

    batch: TokenBatch
    merges: Int64[Tensor, "B M 2"]
    roots: Float[Tensor, "B D"]


@dataclass(frozen=True)
class Limits:
    """When unmerging ends; the arguments of :func:`htm_env.generation.generate`."""

    threshold: float
    max_depth: int
    max_tokens: int


def generate_run(options: GenerateOptions) -> None:
    """Fit a mixture to a run's roots, draw samples from it, and write and print what they are like.

    Raises :class:`UsageError` for options that make no sense, ``FileNotFoundError`` and
    ``ValueError`` where there is no run that makes trees or too little data.
    """
    _check(options)
    set_threads(options.threads)
    directory = RunDirectory(options.directory)
    learner = load_learner(directory)
    if not learner.makes_trees:
        raise ValueError(f"{directory.path} is a run of {learner.algo}, which makes no trees")
    out = directory.path / FOLDER if options.out is None else options.out
    slots = learner.dataset.max_tokens
    limits = Limits(
        options.threshold,
        slots if options.max_depth is None else options.max_depth,
        2 * slots if options.max_tokens is None else options.max_tokens,
    )

    started = perf_counter()
    training = encoded(learner, learner.dataset.fixed(options.roots))
    judge = Judge(learner.task.dataset("test"), options.real)
    held_out = encoded(learner, judge.others)
    mixture = _fit(training.roots, options, stream=0)
    fitted = perf_counter()
    generated = _draw(learner.autoencoder, mixture, options, limits, stream=1)
    seconds = {"fitting": fitted - started, "generating": perf_counter() - fitted}
    report = _report(learner, options, limits, mixture, training, held_out, generated)
    report["rows"] = _rows(
        learner, options, limits, judge, mixture.chosen, training, held_out, generated
    )
    seconds["measuring"] = perf_counter() - fitted - seconds["generating"]

    out.mkdir(parents=True, exist_ok=True)
    mixture.save(out / "mixture.safetensors")
    _write_samples(out / "samples.npz", generated)
    atomic_write_text(out / "metrics.json", json.dumps(report, indent=2) + "\n")
    _write_figures(out, learner, options, limits, mixture, held_out, generated)
    _print(report)
    print(", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))
    print(f"written to {out}")


@torch.no_grad()
def encoded(learner: Learner, batch: TokenBatch) -> Encoded:
    """Samples with the run's own greedy merges and roots."""
    generator = torch.Generator(learner.device).manual_seed(EVALUATION_SEED)
    batch = batch.to(learner.device)
    merges, roots = [], []
    for start in range(0, len(batch.tokens), CHUNK):
        part = batch.rows(slice(start, start + CHUNK))
        merges.append(learner.plan(part, generator, greedy=True))
        roots.append(learner.autoencoder.encode(part.tokens, part.present, merges[-1]).roots)
    return Encoded(batch, torch.cat(merges), torch.cat(roots))


def _fit(roots: Tensor, options: GenerateOptions, stream: int) -> RootMixture:
    components = options.components
    if components is None:
        components = tuple(k for k in COMPONENTS if k == 1 or k * ROOTS_A_COMPONENT <= len(roots))
    return RootMixture.fit(roots, _random(options, stream), components, options.covariance_types)


def _draw(
    autoencoder: HTMAutoencoder,
    mixture: RootMixture,
    options: GenerateOptions,
    limits: Limits,
    stream: int,
) -> Generated:
    roots = mixture.sample(options.n, _random(options, stream), options.temperature)
    return generate(autoencoder, roots.to(autoencoder.token_mean.device), **vars(limits))


def _report(
    learner: Learner,
    options: GenerateOptions,
    limits: Limits,
    mixture: RootMixture,
    training: Encoded,
    held_out: Encoded,
    generated: Generated,
) -> dict[str, Any]:
    """Everything about the model and the mixture; the rows of scores come beside it."""
    autoencoder, task = learner.autoencoder, learner.task
    shares = classifier_scores(autoencoder, held_out.batch, held_out.merges, limits.threshold)
    tokens = autoencoder.decode(held_out.roots, held_out.merges, held_out.batch.present)
    errors = nmse_per_sample(
        tokens.detach(), held_out.batch.tokens, held_out.batch.present, learner.std
    )
    noisy = _denoised(learner, held_out.batch, options, stream=4)
    return {
        "env": task.env_id,
        "env_kwargs": RunDirectory(options.directory).load_config()["env_kwargs"],
        "algo": learner.algo,
        "embedding_dim": autoencoder.embedding_dim,
        "weights_hash": autoencoder.weights_hash(),
        "seed": options.seed,
        "n": options.n,
        "temperature": options.temperature,
        **vars(limits),
        "mixture": {
            **mixture.chosen._asdict(),
            "roots": len(training.roots),
            "log_density": float(mixture.log_density(training.roots).mean()),
            "log_density_held_out": float(mixture.log_density(held_out.roots).mean()),
            "candidates": [candidate._asdict() for candidate in mixture.candidates],
        },
        "truncated": {
            "by_depth": float(generated.depth_limited.double().mean()),
            "by_tokens": float(generated.token_limited.double().mean()),
        },
        "classifier": {name: mean_or_none(share.double()) for name, share in shares.items()},
        "reconstruction_nmse": float(errors.double().mean()),
        "denoising": {
            "noise_std": options.noise_std,
            "noisy_nmse": float(noisy.noisy_error.double().mean()),
            "reconstruction_nmse": float(noisy.error.double().mean()),
        },
    }


def _rows(
    learner: Learner,
    options: GenerateOptions,
    limits: Limits,
    judge: Judge,
    mixture: Candidate,
    training: Encoded,
    held_out: Encoded,
    generated: Generated,
) -> dict[str, Scores]:
    """The scores of what was generated, of what is above it, and of what is below it."""
    autoencoder, batch = learner.autoencoder, held_out.batch
    reconstruction = autoencoder.decode(held_out.roots, held_out.merges, batch.present).detach()
    untrained = _untrained(autoencoder)
    roots = untrained.encode(training.batch.tokens, training.batch.present, training.merges).roots
    alike = RootMixture.fit(
        roots, _random(options, 2), [mixture.components], [mixture.covariance_type]
    )
    floor = _draw(untrained, alike, options, limits, stream=2)
    training_cpu = training.batch.to("cpu")
    return {
        "generated": judge.scores(generated.tokens, generated.present),
        "real": judge.scores(batch.tokens, batch.present),
        "reconstruction": judge.scores(reconstruction, batch.present),
        "gaussian": judge.scores(*gaussian_tokens(training_cpu, options.n, _random(options, 3))),
        "untrained": judge.scores(floor.tokens, floor.present),
    }


def _untrained(autoencoder: HTMAutoencoder) -> HTMAutoencoder:
    """The same architecture with other, random weights; it sees the trees of the trained run."""
    config: dict[str, Any] = autoencoder.config
    fresh = HTMAutoencoder(**config, generator=torch.Generator().manual_seed(0))
    fresh.set_statistics(autoencoder.token_mean.cpu(), autoencoder.token_std.cpu())
    return fresh.to(autoencoder.token_mean.device)


def _denoised(learner: Learner, batch: TokenBatch, options: GenerateOptions, stream: int) -> Any:
    generator = torch.Generator(learner.device).manual_seed(EVALUATION_SEED)
    noise = torch.Generator(learner.device).manual_seed(_seed(options, stream))

    def plan(noisy: TokenBatch) -> Int64[Tensor, "B M 2"]:
        return learner.plan(noisy, generator, greedy=True)

    return denoise(learner.autoencoder, batch, plan, options.noise_std, noise)


def _write_samples(path: Path, generated: Generated) -> None:
    content = BytesIO()
    names = ("tokens", "present", "merges", "truncated")
    arrays = {name: getattr(generated, name).cpu().numpy() for name in names}
    np.savez_compressed(content, **arrays)
    atomic_write_bytes(path, content.getvalue())


def _write_figures(
    out: Path,
    learner: Learner,
    options: GenerateOptions,
    limits: Limits,
    mixture: RootMixture,
    held_out: Encoded,
    generated: Generated,
) -> None:
    kind, autoencoder = learner.dataset.kind, learner.autoencoder
    write_png(out / "bic.png", criteria_figure(mixture.candidates, mixture.chosen))
    titles = _titles(learner, generated)
    real = held_out.batch.tokens[0][held_out.batch.present[0]].cpu().numpy()
    write_png(out / "samples.png", generated_figure(generated, kind, titles, real))
    ends = held_out.roots[: 2 * WAYS]
    ways = [
        interpolate(autoencoder, first, second, STEPS, **vars(limits))
        for first, second in zip(ends[0::2], ends[1::2], strict=False)
    ]
    write_png(out / "interpolation.png", interpolation_figure(ways, kind, real))
    batch = held_out.batch.rows(slice(NOISY))
    noisy = _denoised(learner, batch, options, stream=4)
    columns = []
    for row, here in enumerate(batch.present):
        tokens = (batch.tokens, noisy.noisy, noisy.reconstruction)
        clean, dirty, restored = (values[row][here].cpu().numpy() for values in tokens)
        errors = float(noisy.noisy_error[row]), float(noisy.error[row])
        columns.append(NoisySample(clean, dirty, restored, *errors))
    write_png(out / "denoising.png", denoising_figure(columns, kind, options.noise_std))


def _titles(learner: Learner, generated: Generated) -> list[str]:
    shown = slice(PICTURED)
    arrays = generated.tokens[shown].cpu().numpy(), generated.present[shown].cpu().numpy()
    found = validity(learner.dataset, *arrays)
    titles = []
    for row, count in enumerate(generated.num_tokens[shown].tolist()):
        title = f"{count} token{'s' if count != 1 else ''}"
        if generated.truncated[row]:
            title += ", cut"
        elif found is not None:
            title += ", valid" if found.valid[row] else ", not valid"
        titles.append(title)
    return titles


def _print(report: dict[str, Any]) -> None:
    rows = report["rows"]
    table = Table(title=f"{report['env']} {report['algo']}: {report['n']} generated samples")
    table.add_column("measure")
    for name in rows:
        table.add_column(name, justify="right")
    for measure in rows["generated"]:
        if any(row[measure] is not None for row in rows.values()):
            table.add_row(measure, *(_cell(row[measure]) for row in rows.values()))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
    console.print(table)
    mixture, truncated = report["mixture"], report["truncated"]
    print(
        f"mixture of {mixture['components']} ({mixture['covariance_type']}) over "
        f"{mixture['roots']} roots, of {len(mixture['candidates'])} tried"
    )
    print(
        f"cut off by depth {truncated['by_depth']:.1%}, by tokens {truncated['by_tokens']:.1%} "
        "of the samples"
    )
    for name, share in report["classifier"].items():
        print(f"{name} {_cell(share)}")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _seed(options: GenerateOptions, stream: int) -> int:
    return 16 * options.seed + stream


def _random(options: GenerateOptions, stream: int) -> torch.Generator:
    """Numbers of their own for each purpose, so that one does not change another's."""
    return torch.Generator().manual_seed(_seed(options, stream))


def _check(options: GenerateOptions) -> None:
    least: Sequence[tuple[str, int | float, float]] = (
        ("n", options.n, 2), ("real", options.real, 2), ("roots", options.roots, 2),
        ("temperature", options.temperature, 0), ("noise-std", options.noise_std, 0),
    )  # fmt: skip
    for flag, value, low in least:
        if not low <= value < float("inf"):
            raise UsageError(f"--{flag} is {value}; expected a finite number of at least {low}")
    whole = (
        ("max-depth", options.max_depth, 0), ("max-tokens", options.max_tokens, 1),
        ("components", min(options.components or (1,)), 1),
    )  # fmt: skip
    for flag, count, low in whole:
        if count is not None and count < low:
            raise UsageError(f"--{flag} is {count}; expected at least {low}")
    if not 0 <= options.threshold <= 1:
        raise UsageError(f"--threshold is {options.threshold}; expected a probability")
    unknown = set(options.covariance_types) - set(COVARIANCE_TYPES)
    if unknown:
        raise UsageError(
            f"--covariance-types has {sorted(unknown)}; choose from {list(COVARIANCE_TYPES)}"
        )
