"""Pictures of what a learner does: merge trees, and originals beside their reconstructions."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import matplotlib
import torch
from jaxtyping import Float, Int64
from matplotlib.figure import Figure
from torch import Tensor

from agents.evaluation.encoded import Encoded
from agents.evaluation.evaluate import EVALUATION_SEED, Planner
from htm_env.autoencoder import TreeEncoder
from htm_env.datasets import Dataset
from htm_env.drawing.letters import make_readable
from htm_env.drawing.rendering import Sample, samples_figure
from htm_env.files import atomic_write_bytes
from htm_env.types import TokenBatch

SAMPLES = 6
PRINT_DPI = 200
"""Dots per inch of a figure for a paper."""


@torch.no_grad()
def learner_figure(
    planner: Planner, autoencoder: TreeEncoder, dataset: Dataset, count: int = SAMPLES
) -> Figure:
    """The first fixed samples of ``dataset``: original, greedy merge tree, and reconstruction where
    anything is decoded."""
    device = autoencoder.token_mean.device
    batch = dataset.fixed(count).to(device)
    generator = torch.Generator(device).manual_seed(EVALUATION_SEED)
    merges = planner.plan(batch, generator, greedy=True)
    encoded = Encoded.along(autoencoder, batch, merges)
    errors = encoded.errors(dataset.std.to(device))
    return reconstructions_figure(batch, merges, encoded.reconstruction, errors, dataset)


def reconstructions_figure(
    batch: TokenBatch,
    merges: Int64[Tensor, "B M 2"],
    decoded: Float[Tensor, "B P T"] | None,
    errors: Float[Tensor, "B"],
    dataset: Dataset,
) -> Figure:
    """A column a sample: original, the merges that were made of it, reconstruction and error; where
    nothing is decoded, minus the costs ``errors``."""
    given = dataset.to_user(batch.tokens)
    restored = None if decoded is None else dataset.to_user(decoded)
    samples = [
        Sample(
            given[row, :tokens].cpu().numpy(),
            merges[row, merges[row, :, 0] >= 0].cpu().numpy(),
            None if restored is None else restored[row, :tokens].cpu().numpy(),
            f"return {-float(errors[row]):.4g}"
            if restored is None
            else f"nmse {float(errors[row]):.3g}",
        )
        for row, tokens in enumerate(batch.num_tokens.tolist())
    ]
    return samples_figure(samples, dataset.kind)


def write_figure(path: str | Path, figure: Figure, dpi: int | None = PRINT_DPI) -> None:
    """Write a figure as the path's suffix says (PNG, PDF or SVG), all or nothing.

    For a paper, or with its own dots per inch if ``dpi`` is None.
    The same figure gives the same bytes: there is no date in them. Letters in a PDF stay text;
    those that no font has become their code points.
    """
    make_readable(figure)
    content = BytesIO()
    suffix = Path(path).suffix.removeprefix(".")
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "htm"}):
        figure.savefig(content, format=suffix, dpi=dpi or "figure", metadata=undated.get(suffix))
    atomic_write_bytes(path, content.getvalue())
