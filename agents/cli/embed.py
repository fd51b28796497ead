"""``htm embed``: roots, trees and reconstructions of a run as files, and on demand as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int64

from agents.cli.options import EmbedOptions
from agents.config.errors import set_threads
from agents.config.files import quoted
from agents.evaluation.figures import write_figure
from agents.inspection.rows import EncodedRows, encode_rows
from agents.inspection.trained import say_if_not_trained
from agents.learners.base import Learner
from agents.registry import load_learner
from agents.runs.directory import RunDirectory
from agents.runs.lock import locked
from agents.runs.tensorboard import PROJECTOR_CONFIG, write_projector
from htm_env.datasets import SPLITS
from htm_env.drawing.figures.roots import root_figure, thumbnails
from htm_env.files import atomic_folder


def embed(options: EmbedOptions) -> None:
    """Write ``embeddings.npz``, ``reconstructions.npz`` (``tokens.npz`` where the merger is known),
    ``merges.npz`` and ``trees.nwk``, and with ``--pictures`` a map and ``projector/``.

    Raises ``FileNotFoundError`` without a run, and ``ValueError`` for what cannot be read, drawn or
    replaced.
    """
    set_threads(options.threads)
    learner = load_learner(options.directory, options.data, needs_data=True)
    if options.merge_rounds:
        learner.merge_in_rounds()
    if options.out is None:
        RunDirectory(options.directory).check_own_files()
    out = options.directory / "embeddings" if options.out is None else options.out
    projector = out / "projector"
    if options.pictures and projector.exists() and not (projector / PROJECTOR_CONFIG).is_file():
        raise ValueError(f"{projector} exists and is no projector log; choose another --out")
    splits = SPLITS if options.split == "all" else (options.split,)
    with locked(out):  # first of all, since where nothing can be written nothing is computed
        found = encode_rows(learner, splits, options.samples, options.search)
        if options.pictures:
            # The picture first: it refuses what the others would write without a word.
            _draw(options, learner, found)
        found.write(out)
    count, dim = found.encoded.roots.shape
    print(f"{count} root embeddings of {dim} numbers, {_source(options)}")
    if found.encoded.reconstruction is None:
        print(f"return    {-found.encoded.errors.mean():.5g}")
    else:
        print(f"nmse      {found.encoded.errors.mean():.4g}")
    say_if_not_trained(learner)
    print(f"roots     {quoted(out / 'embeddings.npz')}")
    print(f"tokens    {quoted(out / found.tokens_file)}")
    if found.has_trees:
        print(f"trees     {quoted(out / 'trees.nwk')}, {quoted(out / 'merges.npz')}")
    else:
        print(f"trees     none: {learner.algo} makes no trees")
    if options.pictures:
        print(f"picture   {quoted(out / f'pca.{options.format}')}")
        print(f"projector tensorboard --logdir {quoted(projector)}")


def _source(options: EmbedOptions) -> str:
    return "all splits" if options.split == "all" else f"{options.split} split"


def _draw(options: EmbedOptions, learner: Learner, found: EncodedRows) -> None:
    """A map of the roots, and a log of TensorBoard's projector."""
    out = options.directory / "embeddings" if options.out is None else options.out
    roots = found.encoded.roots
    pictures = thumbnails(found.tokens, found.encoded.present, learner.dataset.kind)
    columns, shows, what, names = _described(found)
    title = f"{learner.task.env} {learner.algo}: {len(roots)} root embeddings, {_source(options)}"
    figure = root_figure(roots, shows, what, pictures, title, names)
    write_figure(out / f"pca.{options.format}", figure)
    with atomic_folder(out / "projector") as folder:
        write_projector(folder, roots, columns, pictures)


def _described(
    found: EncodedRows,
) -> tuple[dict[str, Any], Int64[np.ndarray, "N"], str, list[str] | None]:
    """Columns about the samples, the one to show as numbers, its name, and perhaps theirs."""
    counts = found.encoded.present.sum(axis=1).astype(np.int64)
    about: dict[str, Any] = {"tokens": counts, "row": found.rows}
    if found.labels is None:
        return about, counts, "number of tokens", None
    names, classes = np.unique(found.labels, return_inverse=True)
    what = "label (never seen in training)"
    return {"label": found.labels} | about, classes.astype(np.int64), what, [*map(str, names)]
