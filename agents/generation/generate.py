"""``htm generate``: new samples from a trained run, and how good they are."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from agents.config.errors import UsageError, set_threads
from agents.generation.options import GenerateOptions
from agents.generation.pictures import write_figures
from agents.generation.samples import (
    Encoded,
    Limits,
    denoised,
    encoded,
    encoded_along,
    enough,
    stream_of,
)
from agents.generation.scores import Judge, Scores, gaussian_tokens
from agents.learners.base import Learner
from agents.registry import load_learner
from agents.runs.directory import RunDirectory
from htm_env.autoencoder import HTMAutoencoder
from htm_env.files import atomic_write_bytes, atomic_write_text
from htm_env.generation.generate import Generated, generate, refine
from htm_env.generation.mixture import COMPONENTS, COVARIANCE_TYPES, Candidate, RootMixture
from htm_env.measures.metrics import classifier_scores, mean_or_none, nmse_per_sample

FOLDER = "generated"
MOST_SEED = 2**59
"""Sixteen streams of each fit into a generator's seed."""
ROOTS_A_COMPONENT = 20
"""Roots that a component needs at least before the default range tries so many."""


def generate_run(options: GenerateOptions) -> None:
    """Fit a mixture to a run's roots, draw samples from it, and write and print what they are like.

    Raises :class:`UsageError` for options that make no sense, ``FileNotFoundError`` and
    ``ValueError`` where there is no run that makes trees or too little data.
    """
    _check(options)
    set_threads(options.threads)
    directory = RunDirectory(options.directory)
    learner = load_learner(options.directory)
    if not learner.makes_trees:
        raise ValueError(f"{directory.path} is a run of {learner.algo}, which makes no trees")
    out = directory.path / FOLDER if options.out is None else options.out
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; expected a folder, or nothing yet")
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
    drawn = _draw(learner.autoencoder, mixture, options, limits, stream=1)
    good = enough(learner.autoencoder, training)
    generated = refine(learner.autoencoder, drawn, options.refinements, enough=good, **vars(limits))
    seconds = {"fitting": fitted - started, "generating": perf_counter() - fitted}
    report = _report(learner, options, limits, mixture, training, held_out, generated)
    report["refined_above_nmse"] = good
    report["rows"] = _rows(
        learner, options, limits, judge, mixture.chosen, training, held_out, drawn, generated
    )
    seconds["measuring"] = perf_counter() - fitted - seconds["generating"]

    out.mkdir(parents=True, exist_ok=True)
    mixture.save(out / "mixture.safetensors")
    _write_samples(out / "samples.npz", generated)
    write_figures(out, learner, options, limits, mixture, held_out, generated)
    # The last of the files: with it the folder is complete.
    atomic_write_text(out / "metrics.json", json.dumps(report, indent=2) + "\n")
    _print(report)
    print(", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))
    print(f"written to {out}")


def _fit(roots: Tensor, options: GenerateOptions, stream: int) -> RootMixture:
    components = options.components
    if components is None:
        components = tuple(k for k in COMPONENTS if k == 1 or k * ROOTS_A_COMPONENT <= len(roots))
    kinds = options.covariance_types
    console = Console(file=sys.stderr)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("mixtures", total=len(components) * len(kinds))
        return RootMixture.fit(
            roots,
            stream_of(options, stream),
            components,
            kinds,
            on_fitted=lambda _: progress.advance(task),
        )


def _draw(
    autoencoder: HTMAutoencoder,
    mixture: RootMixture,
    options: GenerateOptions,
    limits: Limits,
    stream: int,
) -> Generated:
    roots = mixture.sample(options.n, stream_of(options, stream), options.temperature)
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
    errors = nmse_per_sample(
        held_out.reconstruction, held_out.batch.tokens, held_out.batch.present, learner.std
    )
    noisy = denoised(learner, held_out.batch, options, stream=4)
    return {
        "env": task.env,
        "env_kwargs": RunDirectory(options.directory).load_config().env_kwargs,
        "algo": learner.algo,
        "embedding_dim": autoencoder.embedding_dim,
        "weights_hash": autoencoder.weights_hash(),
        "seed": options.seed,
        "n": options.n,
        "temperature": options.temperature,
        "refinements": options.refinements,
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
    drawn: Generated,
    generated: Generated,
) -> dict[str, Scores]:
    """The scores of what was generated, of what is above it, and of what is below it."""
    autoencoder, batch = learner.autoencoder, held_out.batch
    untrained = _untrained(autoencoder, stream_of(options, 2))
    again = encoded_along(untrained, training.batch, training.merges)
    alike = RootMixture.fit(
        again.roots, stream_of(options, 5), [mixture.components], [mixture.covariance_type]
    )
    floor = _draw(untrained, alike, options, limits, stream=6)
    good = enough(untrained, again)
    floor = refine(untrained, floor, options.refinements, enough=good, **vars(limits))
    training_cpu = training.batch.to("cpu")
    return {
        "generated": _scores(judge, generated),
        "unrefined": _scores(judge, drawn),
        "real": judge.scores(batch.tokens, batch.present),
        "reconstruction": judge.scores(held_out.reconstruction, batch.present),
        "gaussian": judge.scores(*gaussian_tokens(training_cpu, options.n, stream_of(options, 3))),
        "untrained": _scores(judge, floor),
    }


def _scores(judge: Judge, generated: Generated) -> Scores:
    """The scores of what a limit may have cut, and how much of it was."""
    cut = float(generated.truncated.double().mean())
    return judge.scores(generated.tokens, generated.present) | {"truncated": cut}


def _untrained(autoencoder: HTMAutoencoder, generator: torch.Generator) -> HTMAutoencoder:
    """The same architecture with other, random weights; it sees the trees of the trained run."""
    config: dict[str, Any] = autoencoder.config
    fresh = HTMAutoencoder(**config, generator=generator)
    fresh.set_statistics(autoencoder.token_mean.cpu(), autoencoder.token_std.cpu())
    return fresh.to(autoencoder.token_mean.device)


def _write_samples(path: Path, generated: Generated) -> None:
    content = BytesIO()
    names = ("tokens", "present", "merges", "truncated")
    arrays = {name: getattr(generated, name).cpu().numpy() for name in names}
    np.savez_compressed(content, **arrays)
    atomic_write_bytes(path, content.getvalue())


def _print(report: dict[str, Any]) -> None:
    rows = report["rows"]
    table = Table(title=f"{report['env']} {report['algo']}: {report['n']} generated samples")
    table.add_column("measure")
    for name in rows:
        table.add_column(name, justify="right")
    for measure in rows["generated"]:
        if any(row.get(measure) is not None for row in rows.values()):
            table.add_row(measure, *(_cell(row.get(measure)) for row in rows.values()))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
    console.print(table)
    mixture, truncated = report["mixture"], report["truncated"]
    print(
        f"mixture of {mixture['components']} ({mixture['covariance_type']}) over "
        f"{mixture['roots']} roots, of {len(mixture['candidates'])} tried"
    )
    if mixture["components"] == max(each["components"] for each in mixture["candidates"]):
        print("no larger mixture was tried: --components can name more")
    print(
        f"cut off by depth {truncated['by_depth']:.1%}, by tokens {truncated['by_tokens']:.1%} "
        "of the samples"
    )
    for name, share in report["classifier"].items():
        print(f"{name} {_cell(share)}")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _check(options: GenerateOptions) -> None:
    least: Sequence[tuple[str, int | float, float]] = (
        ("n", options.n, 2),
        ("real", options.real, 2),
        ("roots", options.roots, 2),
        ("refinements", options.refinements, 0),
        ("temperature", options.temperature, 0),
        ("noise-std", options.noise_std, 0),
    )
    for flag, value, low in least:
        if not low <= value < float("inf"):
            raise UsageError(f"--{flag} is {value}; expected a finite number of at least {low}")
    whole = (
        ("max-depth", options.max_depth, 0),
        ("max-tokens", options.max_tokens, 1),
        ("components", min(options.components or (1,)), 1),
    )
    for flag, count, low in whole:
        if count is not None and count < low:
            raise UsageError(f"--{flag} is {count}; expected at least {low}")
    if not 0 <= options.threshold <= 1:
        raise UsageError(f"--threshold is {options.threshold}; expected a probability")
    for flag, given in (
        ("components", options.components),
        ("covariance-types", options.covariance_types),
    ):
        if given is not None and not given:
            raise UsageError(f"--{flag} has no value; expected at least one")
    if not 0 <= options.seed < MOST_SEED:
        raise UsageError(f"--seed is {options.seed}; expected 0 to {MOST_SEED - 1}")
    unknown = set(options.covariance_types) - set(COVARIANCE_TYPES)
    if unknown:
        raise UsageError(
            f"--covariance-types has {sorted(unknown)}; choose from {list(COVARIANCE_TYPES)}"
        )
