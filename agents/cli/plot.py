"""``htm plot``: the figures of a trained run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from agents.cli.options import PlotOptions
from agents.config.errors import UsageError, set_threads
from agents.config.files import quoted
from agents.evaluation.figures import write_figure
from agents.inspection.traces import traces_of
from agents.registry import load_learner
from agents.runs.directory import RunDirectory
from agents.runs.lock import locked
from htm_env.drawing.figures import (
    charges_figure,
    filmstrip_figure,
    least_certain_step,
    merges_gif,
    probabilities_figure,
    tree_figure,
)
from htm_env.drawing.rendering import Sample, plain, samples_figure
from htm_env.drawing.trace import Trace
from htm_env.files import atomic_write_bytes


def plot(options: PlotOptions) -> None:
    """Write all figures of some samples, and print where they are.

    A policy without probabilities leaves its figure out, and a line says so. Raises
    :class:`UsageError` for numbers that make no sense, ``FileNotFoundError`` without a run or a
    checkpoint, and ``ValueError`` for a run that makes no trees.
    """
    set_threads(options.threads)
    learner = load_learner(options.directory, options.data, needs_data=True)
    dataset = learner.task.dataset(options.split)
    if dataset.size is not None and options.first >= dataset.size:
        raise UsageError(
            f"--first is {options.first}, but the {options.split} split has {dataset.size} samples"
        )
    keys = dataset.fixed_keys(options.first + options.samples)[options.first :]
    if options.out is None:
        RunDirectory(options.directory).check_own_files()
    out = options.directory / "figures" if options.out is None else options.out
    with locked(out):  # first of all, since where nothing can be written nothing is computed
        drawn = traces_of(learner, dataset, keys.tolist(), options.search)
        work = list(_work(out, options.first, drawn, options.format))
        console = Console(file=sys.stderr)
        for path, draw in track(work, "htm plot", console=console, disable=not console.is_terminal):
            picture = draw()
            if isinstance(picture, bytes):
                atomic_write_bytes(path, picture)
            else:
                write_figure(path, picture)
            print(quoted(path))
    if not all(trace.considered for trace in drawn):
        print(f"left out  probabilities over pairs: {learner.algo} has none", file=sys.stderr)


def _work(
    out: Path, first: int, drawn: list[Trace], suffix: str
) -> Iterator[tuple[Path, Callable[[], Any]]]:
    """Where each file goes, and what draws it: a figure, or the bytes of an animation."""
    columns = [
        Sample(
            trace.tokens,
            trace.tree.merges,
            trace.reconstruction,
            f"{plain(trace.title) or f'sample {first + number}'}\n"
            f"{trace.error_name} {trace.errors[-1]:.4g}",
        )
        for number, trace in enumerate(drawn)
    ]
    last = first + len(drawn) - 1
    yield out / f"samples_{first}-{last}.{suffix}", partial(samples_figure, columns, drawn[0].kind)
    for number, trace in enumerate(drawn, start=first):
        name = f"sample_{number}"
        yield out / f"{name}_tree.{suffix}", partial(tree_figure, trace)
        yield out / f"{name}_filmstrip.{suffix}", partial(filmstrip_figure, trace)
        yield out / f"{name}_merges.gif", partial(merges_gif, trace)
        if len(trace.tree.merges):
            yield out / f"{name}_tree_by_error.{suffix}", partial(tree_figure, trace, "error")
            yield out / f"{name}_charges.{suffix}", partial(charges_figure, trace)
        if trace.considered:
            for step in sorted({0, least_certain_step(trace)}):
                path = out / f"{name}_probabilities_merge_{step + 1}.{suffix}"
                yield path, partial(probabilities_figure, trace, step)
