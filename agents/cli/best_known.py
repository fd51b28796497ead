"""``htm best-known``: the best trees known of frozen environments, and how to find better ones."""

from __future__ import annotations

import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from jaxtyping import Int64
from torch import Tensor

from agents.cli.options import BestKnownOptions
from agents.cli.tables import print_table
from agents.config.errors import UsageError, as_usage_error, one_line, set_threads
from agents.config.files import quoted
from agents.config.run import Task
from agents.evaluation.best_known import Improvement
from agents.fixed import FIXED_POLICIES, fixed_policy, fixed_rule
from agents.registry import load_learner
from agents.runs.lock import check_own_files, locked
from htm_env.best_known import FOLDER, BestKnown, best_known_path
from htm_env.datasets import environment_id
from htm_env.rewards import known_costs
from htm_env.weights import SHIPPED, make_autoencoder


def show_best_known(options: BestKnownOptions) -> None:
    """Print a table of one file or of all, after searching on where that is asked for.

    Raises :class:`UsageError` for an id without shipped weights or a known merger, and for a run on
    another environment or on other weights.
    """
    set_threads(options.threads)
    if options.env is None:
        paths = sorted(FOLDER.glob("*.safetensors"))
    else:
        with as_usage_error():
            env = environment_id(options.env)
        paths = [best_known_path(env) if options.out is None else options.out]
        if options.improve:
            # First of all, since where nothing can be written nothing is searched.
            with locked(paths[0].absolute().parent):
                check_own_files(paths)
                _improve(options, env, paths[0])
    print_table([_row(BestKnown.load(path)) for path in paths])
    for path in paths:
        known = BestKnown.load(path)
        print(f"{one_line(known.env)}: who found how many")
        found = Counter(known.source.tolist())
        for number, source in enumerate(known.sources):
            told = one_line(f"{source['command']}  ({source['version']})")
            print(f"{found[number]:6d}  {told}")


def _row(known: BestKnown) -> dict[str, str]:
    return {
        "": known.env,
        "weights": known.weights_hash,
        "episodes": str(len(known.errors)),
        "proven": str(int(known.proven.sum())),
        "best known": f"{float(known.errors.mean()):.6g}",
        "random": f"{float(known.random_errors.mean()):.6g}",
    }


def _improve(options: BestKnownOptions, env: str, path: Path) -> None:
    task = Task(env, mode="frozen")
    with as_usage_error():
        dataset = task.dataset("test")
        known_merger = task.knows_merger(dataset)
        if not known_merger and env not in SHIPPED:
            raise ValueError(
                f"{env} has no pretrained weights; expected one of {', '.join(SHIPPED)}, or an "
                "environment whose merger is known"
            )
    costs = known_costs(dataset, None, None, None)[1]
    model = make_autoencoder(env, dataset, None, costs=costs)
    before = BestKnown.load(path) if path.is_file() else None
    if before is not None and before.weights_hash != model.weights_hash():
        raise UsageError(
            f"{path} is about the weights {before.weights_hash}; those of {env} are "
            f"{model.weights_hash()}"
        )
    command = f"htm {shlex.join(sys.argv[1:])}"
    source = {"command": command, "version": version("htm-rl")}
    improvement = Improvement(env, model, dataset, before, source, options.seed)
    proven = improvement.prove()
    if proven:
        print(f"{proven} episodes have the best of all their trees now")
    written = _written(improvement, before, path)
    for name, trees in _starts(improvement, options):
        improvement.take(trees)
        found = improvement.search(trees, options.search)
        print(f"from {name}: {found} better, {improvement.mean:.6g}", flush=True)
        written = _written(improvement, written, path)
    end = time.process_time() + options.seconds
    while len(improvement.open) and time.process_time() < end:
        found = improvement.search(None, options.search)
        print(f"from the best known: {found} better, {improvement.mean:.6g}", flush=True)
        written = _written(improvement, written, path)
    if improvement.known is before:
        print("nothing better was found, and nothing is written")
    else:
        print(f"written   {quoted(path)}")


def _written(improvement: Improvement, before: BestKnown | None, path: Path) -> BestKnown:
    """The trees known now, which are written where they are others than before."""
    if improvement.known is not before:
        improvement.known.save(path)
    return improvement.known


def _starts(
    improvement: Improvement, options: BestKnownOptions
) -> Iterator[tuple[str, Int64[Tensor, "E M 2"]]]:
    """The trees of fixed orders and of a run, by name.

    An autoencoder's own errors of partial forests take long, and lead to poor trees.
    """
    model, dataset = improvement.model, improvement.dataset
    names = list(FIXED_POLICIES) if options.orders is None else options.orders.split(",")
    for name in names:
        if not len(improvement.open):
            return
        with as_usage_error("--orders: "):
            rule = fixed_rule(name)
        by_error = rule.need is not None and model.decodes
        if name != "exact" and not by_error and rule.suits(dataset, model):
            yield name, improvement.planned_by(fixed_policy(name, model, dataset))
    if options.from_run is not None:
        learner = load_learner(options.from_run)
        found, expected = learner.autoencoder.weights_hash(), model.weights_hash()
        if found != expected:
            raise UsageError(
                f"{options.from_run} has the weights {found}; expected the frozen ones, {expected}"
            )
        yield str(options.from_run), improvement.planned_by(learner)
