"""``htm embed``: the root embeddings of a run, for TensorBoard's projector, as a map, as arrays."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from jaxtyping import Int64

from agents.cli.options import EmbedOptions
from agents.config.errors import set_threads
from agents.evaluation.figures import write_figure
from agents.inspection.embeddings import RootEmbeddings, root_embeddings
from agents.inspection.trained import say_if_not_trained
from agents.registry import load_learner
from agents.runs.tensorboard import PROJECTOR_CONFIG, write_projector
from htm_env.drawing.figures.roots import root_figure, thumbnails
from htm_env.files import atomic_folder, atomic_write_bytes


def embed(options: EmbedOptions) -> None:
    """Write ``embeddings.npz``, a map and ``projector/``.

    Raises ``FileNotFoundError`` without a run, and ``ValueError`` for what cannot be read, drawn or
    replaced.
    """
    set_threads(options.threads)
    learner = load_learner(options.directory, options.data, needs_data=True)
    if options.merge_rounds:
        learner.merge_in_rounds()
    out = options.directory / "embeddings" if options.out is None else options.out
    projector = out / "projector"
    if projector.exists() and not (projector / PROJECTOR_CONFIG).is_file():
        raise ValueError(f"{projector} exists and is no projector log; choose another --out")
    dataset = learner.task.dataset(options.split)
    samples = root_embeddings(learner, dataset, options.samples)
    pictures = thumbnails(samples.tokens, samples.present, dataset.kind)
    columns, shows, what = _described(samples)
    count = len(samples.roots)
    title = f"{learner.task.env} {learner.algo}: {count} root embeddings, {options.split} split"

    # The picture first: it refuses what the others would write without a word.
    picture = out / f"pca.{options.format}"
    write_figure(picture, root_figure(samples.roots, shows, what, pictures, title))
    content = BytesIO()
    arrays = {name: array for name, array in samples._asdict().items() if array is not None}
    np.savez_compressed(content, **arrays)
    atomic_write_bytes(out / "embeddings.npz", content.getvalue())
    with atomic_folder(projector) as folder:
        write_projector(folder, samples.roots, columns, pictures)
    print(f"{count} root embeddings of {samples.roots.shape[1]} numbers, {options.split} split")
    say_if_not_trained(learner, dataset)
    print(f"arrays    {out / 'embeddings.npz'}")
    print(f"picture   {picture}")
    print(f"projector tensorboard --logdir {projector}")


def _described(
    samples: RootEmbeddings,
) -> tuple[dict[str, Int64[np.ndarray, "N"]], Int64[np.ndarray, "N"], str]:
    """Columns of numbers about the samples, and the one to show with its name."""
    counts = samples.present.sum(axis=1).astype(np.int64)
    about = {"tokens": counts, "sample": np.arange(len(counts), dtype=np.int64)}
    if samples.labels is None:
        return about, counts, "number of tokens"
    return {"label": samples.labels} | about, samples.labels, "label (never seen in training)"
