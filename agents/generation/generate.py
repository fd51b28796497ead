"""``htm generate``: new samples from a trained run, and their scores."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
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
from agents.config.files import quoted
from agents.evaluation.encoded import Encoded
from agents.generation.options import GenerateOptions
from agents.generation.pictures import write_figures
from agents.generation.samples import RunSamples
from agents.generation.scores import MEASURED, Newness, Scores, SetScores, gaussian_tokens
from agents.inspection.trained import say_if_not_trained
from agents.learners.base import Learner
from agents.registry import load_learner
from agents.runs.directory import RunDirectory
from agents.runs.lock import locked
from htm_env.autoencoder import HTMAutoencoder
from htm_env.files import atomic_write_bytes, atomic_write_text
from htm_env.generation.generate import Generated
from htm_env.generation.mixture import COMPONENTS, COVARIANCE_TYPES, RootMixture
from htm_env.measures.metrics import classifier_scores, mean_or_none
from htm_env.types import TokenBatch

FOLDER = "generated"
MOST_SEED = 2**59
"""Sixteen streams of each fit into a generator's seed."""
KNOWN_SAMPLES, KNOWN_TOKENS = 4000, 100_000
"""Training samples, and tokens of them, among which the nearest one of a generated sample is found
at most; and at whose roots a smoothed mixture has components."""
BANDWIDTHS, BISECTIONS = (0.02, 1.0), 6
"""Limits of the bandwidth, and steps in which it is found."""
ROOTS_A_COMPONENT = 20
"""Roots that a component needs at least before the default range tries so many."""


def generate_run(options: GenerateOptions) -> None:
    """Fit a mixture to a run's roots, draw samples from it, and write and print their scores.

    Raises :class:`UsageError` for options that make no sense, ``FileNotFoundError`` and
    ``ValueError`` where there is no run that makes trees or too little data.
    """
    _check(options)
    set_threads(options.threads)
    directory = RunDirectory(options.directory)
    learner = load_learner(options.directory, options.data, needs_data=True)
    out = directory.path / FOLDER if options.out is None else options.out
    with locked(out):  # first of all, since where nothing can be written nothing is computed
        _generate(options, learner, out)


def _generate(options: GenerateOptions, learner: Learner, out: Path) -> None:
    samples = RunSamples(learner, options)

    started = perf_counter()
    training = samples.encoded(learner.dataset.fixed(options.roots))
    autoencoder = learner.autoencoder.decoding()
    known = _known(training.batch)
    familiar = training.batch.rows(known)
    scores = SetScores(learner.task.dataset("test"), options.real, familiar)
    held_out = samples.encoded(scores.others)
    mixture = plain = _fit(training.roots, options, samples.stream(0))
    if options.smoothed:
        validation = learner.task.dataset("validation")
        newness = Newness(validation, familiar, validation.fixed(MEASURED))
        mixture = _smoothed(samples, plain, training.roots[known], newness)
    fitted = perf_counter()
    drawn = samples.drawn(autoencoder, mixture, stream=1)
    generated, refined_above = samples.refined(autoencoder, drawn, training)
    seconds = {"fitting": fitted - started, "generating": perf_counter() - fitted}
    untrained = _untrained_samples(samples, training, mixture)
    real, present = held_out.batch.tokens, held_out.batch.present
    rows = {
        "generated": _scores(scores, generated),
        "unrefined": _scores(scores, drawn),
        "real": scores.of(real, present),
        "reconstruction": scores.of(held_out.decoded(), present),
        "gaussian": scores.of(
            *gaussian_tokens(training.batch.to("cpu"), options.n, samples.stream(3))
        ),
        "untrained": _scores(scores, untrained),
    }
    report = {
        **_report(samples, mixture, plain, training, held_out, generated),
        "refined_above_nmse": refined_above,
        "rows": rows,
    }
    seconds["measuring"] = perf_counter() - fitted - seconds["generating"]

    mixture.save(out / "mixture.safetensors")
    given = replace(generated, tokens=learner.dataset.to_user(generated.tokens))
    _write_samples(out / "samples.npz", given)
    write_figures(out, samples, mixture, held_out, generated)
    # The last of the files: with it the folder is complete.
    atomic_write_text(out / "metrics.json", json.dumps(report, indent=2) + "\n")
    _print(report)
    say_if_not_trained(learner, float(generated.truncated.double().mean()))
    print(", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))
    print(f"written to {quoted(out)}")


def _fit(roots: Tensor, options: GenerateOptions, generator: torch.Generator) -> RootMixture:
    components = options.components
    if components is None:
        components = tuple(k for k in COMPONENTS if k == 1 or k * ROOTS_A_COMPONENT <= len(roots))
    kinds = options.covariance_types
    console = Console(file=sys.stderr)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("mixtures", total=len(components) * len(kinds))
        return RootMixture.fit(
            roots, generator, components, kinds, on_fitted=lambda _: progress.advance(task)
        )


def _known(batch: TokenBatch) -> slice:
    """The first training samples, as many as new ones are compared with."""
    return slice(max(2, min(KNOWN_SAMPLES, KNOWN_TOKENS // batch.present.shape[1])))


def _smoothed(
    samples: RunSamples, plain: RootMixture, roots: Tensor, newness: Newness
) -> RootMixture:
    """The narrowest smoothed mixture whose samples are as new as real ones are, found by bisection
    of the logarithm of its bandwidth.

    The mixture itself, where most real samples are copies of training samples.
    """
    autoencoder = samples.learner.autoencoder.decoding()
    low, high = BANDWIDTHS
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        drawn = samples.drawn(autoencoder, plain.smoothed(roots, middle), stream=7)
        new = newness.of(drawn.tokens.cpu(), drawn.present.cpu())
        if new is None:
            return plain
        low, high = (middle, high) if new < 1 else (low, middle)
    return plain.smoothed(roots, high)


def _untrained_samples(samples: RunSamples, training: Encoded, like: RootMixture) -> Generated:
    """As many from the same architecture with random weights, along the trees of the run."""
    autoencoder = samples.learner.autoencoder
    config: dict[str, Any] = autoencoder.config
    untrained = HTMAutoencoder(**config, generator=samples.stream(2))
    untrained.set_statistics(autoencoder.token_mean.cpu(), autoencoder.token_std.cpu())
    untrained.to(autoencoder.token_mean.device)
    encoded = Encoded.along(untrained, training.batch, training.merges)
    mixture = RootMixture.fit(
        encoded.roots, samples.stream(5), [like.chosen.components], [like.chosen.covariance_type]
    )
    if like.bandwidth is not None:
        mixture = mixture.smoothed(encoded.roots[_known(encoded.batch)], like.bandwidth)
    drawn = samples.drawn(untrained, mixture, stream=6)
    return samples.refined(untrained, drawn, encoded)[0]


def _report(
    samples: RunSamples,
    mixture: RootMixture,
    plain: RootMixture,
    training: Encoded,
    held_out: Encoded,
    generated: Generated,
) -> dict[str, Any]:
    """The model and the mixture; the rows of scores come beside it."""
    learner, options, limits = samples.learner, samples.options, samples.limits
    autoencoder, task = learner.autoencoder.decoding(), learner.task
    shares = classifier_scores(autoencoder, held_out.batch, held_out.merges, limits["threshold"])
    noisy = samples.denoised(held_out.batch)
    return {
        "env": task.env,
        "env_kwargs": samples.learner.task.env_kwargs,
        "algo": learner.algo,
        "embedding_dim": autoencoder.embedding_dim,
        "weights_hash": autoencoder.weights_hash(),
        "seed": options.seed,
        "n": options.n,
        "temperature": options.temperature,
        "refinements": options.refinements,
        **limits,
        "mixture": {
            **mixture.chosen._asdict(),
            "roots": len(training.roots),
            "bandwidth": mixture.bandwidth,
            "log_density": float(plain.log_density(training.roots).mean()),
            "log_density_held_out": float(plain.log_density(held_out.roots).mean()),
            "candidates": [candidate._asdict() for candidate in mixture.candidates],
        },
        "truncated": {
            "by_depth": float(generated.depth_limited.double().mean()),
            "by_tokens": float(generated.token_limited.double().mean()),
        },
        "classifier": {name: mean_or_none(share.double()) for name, share in shares.items()},
        "reconstruction_nmse": float(held_out.errors(learner.std).double().mean()),
        "denoising": {
            "noise_std": options.noise_std,
            "noisy_nmse": float(noisy.noisy_error.double().mean()),
            "reconstruction_nmse": float(noisy.error.double().mean()),
        },
    }


def _scores(scores: SetScores, generated: Generated) -> Scores:
    """The scores of generated samples, and the share of them that a limit cut off."""
    cut = float(generated.truncated.double().mean())
    return scores.of(generated.tokens, generated.present) | {"truncated": cut}


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
    if mixture["bandwidth"] is not None:
        print(
            f"smoothed: a component at every root, of {mixture['bandwidth']:.2g} times the "
            "standard deviations"
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
    components = min(options.components or (1,))
    least = {
        "n": (options.n, 2),
        "real": (options.real, 2),
        "roots": (options.roots, 2),
        "refinements": (options.refinements, 0),
        "temperature": (options.temperature, 0),
        "noise-std": (options.noise_std, 0),
        "max-depth": (options.max_depth, 0),
        "max-tokens": (options.max_tokens, 1),
        "components": (components, 1),
    }
    for flag, (value, low) in least.items():
        if value is not None and not low <= value < float("inf"):
            raise UsageError(f"--{flag} is {value}; expected a finite number of at least {low}")
    if not 0 <= options.threshold <= 1:
        raise UsageError(f"--threshold is {options.threshold}; expected a probability")
    if options.components == ():
        raise UsageError("--components has no value; expected at least one")
    if not options.covariance_types:
        raise UsageError("--covariance-types has no value; expected at least one")
    if not 0 <= options.seed < MOST_SEED:
        raise UsageError(f"--seed is {options.seed}; expected 0 to {MOST_SEED - 1}")
    unknown = set(options.covariance_types) - set(COVARIANCE_TYPES)
    if unknown:
        raise UsageError(
            f"--covariance-types has {sorted(unknown)}; choose from {list(COVARIANCE_TYPES)}"
        )
