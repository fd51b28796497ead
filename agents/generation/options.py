"""The options of ``htm generate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents.config.options import OfRun, PictureFormat


@dataclass(frozen=True)
class GenerateOptions(OfRun):
    """Draw new samples from a trained run, and measure how good they are.

    A Gaussian mixture is fitted to the root embeddings of training samples, roots are drawn from
    it, and unmerged until the leaf classifier calls everything a leaf; what the autoencoder
    reconstructs badly is encoded and decoded a few times more, which brings it nearer. Writes
    samples.npz, metrics.json, mixture.safetensors and pictures. Rows beside the generated samples:
    the same before any refinement, other real samples (the ceiling), reconstructions, tokens of a
    Gaussian and an untrained autoencoder.
    """

    n: int = 1000
    """Samples to generate."""
    out: Path | None = None
    """Folder to write to; "generated" in the run's folder if not given."""
    seed: int = 0
    """Seed of all random numbers."""
    temperature: float = 1.0
    """Factor of the mixture's covariances; 0 draws the means of its components, which are training
    roots where it is smoothed."""
    refinements: int = 3
    """Most times a generated sample is encoded along its own tree and decoded again, as long
    as the autoencoder reconstructs it worse than nine in ten real samples; 0 for never."""
    threshold: float = 0.5
    """Probability of being a leaf from which a node is one."""
    components: tuple[int, ...] | None = None
    """Numbers of components to try; powers of two up to 128, and to a twentieth of the roots, if
    not given."""
    covariance_types: tuple[str, ...] = ("full", "tied", "diag")
    """Covariance types to try: full, tied, diag, spherical."""
    smoothed: bool = True
    """Whether to draw beside training roots, as narrowly as makes samples as new as those of the
    validation split; else from the components of the mixture."""
    roots: int = 10_000
    """Training samples whose roots are fitted; finite data gives each of its rows once at most."""
    real: int = 500
    """Held-out samples to compare with, where the data has twice as many."""
    max_depth: int | None = None
    """Merges between a root and a leaf at most; the data's largest number of tokens if not
    given."""
    max_tokens: int | None = None
    """Tokens of a sample at most; twice the data's largest number if not given."""
    noise_std: float = 0.1
    """Noise to be removed, in standard deviations of each coordinate."""
    format: PictureFormat = "png"
    """File format of the pictures."""
