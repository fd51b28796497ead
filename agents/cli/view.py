"""``htm view``: a page that steps through the merges of a run."""

from __future__ import annotations

import sys
import webbrowser
from contextlib import nullcontext

from agents.cli.options import ViewOptions
from agents.config.errors import UsageError, set_threads
from agents.config.files import quoted
from agents.inspection.traces import traces_of
from agents.registry import load_learner
from agents.runs.directory import RunDirectory
from htm_env.drawing.page import viewer_page
from htm_env.files import atomic_write_text, check_name, check_writable

PAGE = "view.html"


def view(options: ViewOptions) -> None:
    """``htm view``: writes the page of a run's last checkpoint and prints where it is."""
    set_threads(options.threads)
    chosen = options.chosen
    learner = load_learner(options.directory, options.data, needs_data=True)
    dataset = learner.task.dataset(options.split)
    keys = dataset.fixed_keys(chosen).tolist() if isinstance(chosen, int) else list(chosen)
    if dataset.size is not None and max(keys) >= dataset.size:
        raise UsageError(
            f"--samples has {max(keys)}, but the {options.split} split has {dataset.size} samples"
        )
    path = options.directory / PAGE if options.out is None else options.out
    if path.is_dir():
        path /= PAGE
    check_name(path)
    directory = RunDirectory(options.directory)
    within = path.parent.resolve() == directory.path.resolve()
    # First of all, since where nothing can be written nothing is computed.
    with directory.locked() if within else nullcontext():
        check_writable(path.parent)
        course = directory.load_trees()
        episodes = traces_of(learner, dataset, keys, options.search)
        about = [
            f"{options.split} split",
            f"{learner.autoencoder.embedding_dim} numbers an embedding",
            f"seed {learner.task.seed}",
            f"weights {learner.autoencoder.weights_hash()}",
        ]
        page = viewer_page(
            {str(key): episode for key, episode in zip(keys, episodes, strict=True)},
            f"{learner.task.env}, {learner.algo}",
            ", ".join(about),
            list(zip(course.merges, course.lists, strict=True)),
        )
        atomic_write_text(path, page)
    print(f"page      {quoted(path)}")
    if options.open and not webbrowser.open(path.resolve().as_uri()):
        print("htm: found no browser to open the page with", file=sys.stderr)
