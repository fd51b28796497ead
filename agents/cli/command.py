"""The command ``htm``: from its arguments to its exit status.

Importing this, the help of every command and most errors of usage load no torch; each command
imports what it needs when it runs.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import traceback
import warnings
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, fields
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from agents.cli.options import (
    BenchOptions,
    BestKnownOptions,
    EmbedOptions,
    EvaluateOptions,
    PlotOptions,
    PretrainOptions,
    TrainOptions,
    ViewOptions,
    shown_options,
)
from agents.comparison.options import CompareOptions, options_from_file
from agents.config.dataclasses_json import flattened
from agents.config.errors import (
    RunWarning,
    UsageError,
    as_usage_error,
    did_you_mean,
    one_line,
    printable,
)
from agents.config.files import check_run
from agents.config.options import OfRun
from agents.config.plug_ins import modules_of_this_folder
from agents.generation.options import GenerateOptions
from agents.registry import algorithm, imported
from agents.runs.interruption import starting_up
from agents.tuning.options import TuneOptions

COMMANDS: dict[str, tuple[type, str]] = {
    "train": (TrainOptions, "agents.cli.train:train"),
    "evaluate": (EvaluateOptions, "agents.cli.evaluate:evaluate_run"),
    "compare": (CompareOptions, "agents.comparison.compare:compare"),
    "tune": (TuneOptions, "agents.tuning.tune:tune"),
    "plot": (PlotOptions, "agents.cli.plot:plot"),
    "view": (ViewOptions, "agents.cli.view:view"),
    "embed": (EmbedOptions, "agents.cli.embed:embed"),
    "generate": (GenerateOptions, "agents.generation.generate:generate_run"),
    "best-known": (BestKnownOptions, "agents.cli.best_known:show_best_known"),
    "pretrain": (PretrainOptions, "agents.cli.pretrain:pretrain"),
    "bench": (BenchOptions, "agents.cli.bench:bench"),
}
"""The options of each command, and the function that carries it out."""
DESCRIPTION = "Learn to merge sets of tokens into trees. htm --version prints the version."
PACKAGES = ("agents", "benchmarks", "htm_env", "replay")
"""Where the errors of this project are raised."""
DONE, FAILED, WRONG_USAGE = 0, 1, 2
SIZES = {
    "train": "--batch-size, --trees-per-sample, --policy-hidden-dim or another size, or choose "
    "--candidates knn",
    "evaluate": "--episodes or --search",
    "compare": "--jobs, or sizes of the algorithms in --config",
    **dict.fromkeys(("plot", "view", "embed"), "--samples or --search"),
    "generate": "--n, --real or --roots",
}
"""What a command may be given less of where memory ends."""
OUT_OF_MEMORY = "out of memory|enough memory|allocate memory|size calculation overflowed|bad_alloc"
"""In the errors of torch where memory ends."""


def run(arguments: Sequence[str]) -> int:
    """Run one command, and return its exit status; :func:`agents.cli.main` runs this.

    0: done; 1: failed; 2: wrong usage. Raises ``KeyboardInterrupt`` where it is interrupted.
    """
    if list(arguments) == ["--version"]:
        print(f"htm {version('htm-rl')}")
        return DONE
    try:
        with modules_of_this_folder(), _short_warnings(), _quiet_threads():
            with starting_up():
                options = parse(arguments)
                if isinstance(options, OfRun):
                    check_run(options.directory)
                kinds = COMMANDS.values()
                command = imported(next(made for kind, made in kinds if isinstance(options, kind)))
            command(options)
            _flush_output()
    except UsageError as error:
        return _fail(str(error), WRONG_USAGE)
    except Exception as error:
        if os.environ.get("HTM_TRACEBACK"):
            traceback.print_exc()
        if _is_out_of_memory(error):
            sizes = SIZES.get(next(iter(arguments), ""), "what is asked for")
            return _fail(f"memory is not enough{_wanted(error)}; lower {sizes}", FAILED)
        return _fail(_told(error), FAILED)
    return DONE


def parse(arguments: Sequence[str]) -> Any:
    """The options of the command; exits with status 2 where they cannot be read.

    Raises :class:`UsageError` for an unknown algorithm or flag of training, for a file that cannot
    be read, and for numbers out of range.
    """
    kinds = {name: kind for name, (kind, _) in COMMANDS.items()}
    defaults: dict[str, Any] = {}
    asks_help = {"-h", "--help", "--help-all"} & set(arguments)
    early = ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--algo", "--config", "--seconds", "--merges"):
        early.add_argument(flag, nargs="?")
    given, _ = early.parse_known_args(arguments)
    if arguments[:1] == ["train"] and asks_help and given.algo is not None:
        kinds["train"] = _train_options(given.algo, in_full="--help-all" in asks_help)
    elif arguments[:1] == ["train"] and not asks_help:
        _check_flags(arguments[1:], given.algo or "NAME")
    elif arguments[:1] == ["compare"] and given.config is not None:
        with_budget = given.seconds is None and given.merges is None
        defaults["default"] = options_from_file(Path(given.config), with_budget=with_budget)
    if arguments and arguments[0] in kinds:  # by itself, so that errors advise its own help
        return _cli(kinds[arguments[0]], f"htm {arguments[0]}", arguments[1:], None, **defaults)
    commands = (Annotated[kind, tyro.conf.subcommand(name)] for name, kind in kinds.items())
    union: Any = Union[*commands]  # made while running, so mypy cannot follow
    return _cli(union, "htm", arguments, DESCRIPTION)


def _check_flags(arguments: Sequence[str], algo: str) -> None:
    """Raise :class:`UsageError` for a flag that ``htm train`` does not have, and say how an option
    of an algorithm is set; which algorithms have it takes loading them."""
    known = [f"--{field.name.replace('_', '-')}" for field in fields(TrainOptions)]
    for place, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        flag = flag.replace("_", "-")
        if flag in known or not re.match("--(?!tyro-)[a-z]", flag):
            continue
        value = value or next(iter(arguments[place + 1 :]), "")
        value = "VALUE" if not value or value.startswith("--") else value
        raise UsageError(
            f"{flag} is no flag of htm train{did_you_mean(flag, known)}; an option of the "
            f"algorithm is set by its path, as --set {flag[2:].replace('-', '_')}={value} "
            f"(htm train --algo {algo} --help-all lists them)"
        )


def _cli(kind: Any, program: str, arguments: Sequence[str], about: str | None, **how: Any) -> Any:
    """The arguments as an object of ``kind``; the parser exits for help and for errors.

    Its errors repeat what was given. Where that is not printable they are made again of its
    escapes; the arguments themselves may be odd, since a file may have any name.
    """

    def parsed(given: Sequence[str]) -> Any:
        kinds = {"config": (tyro.conf.FlagCreatePairsOff,), **how}
        return tyro.cli(kind, prog=program, description=about, args=list(given), **kinds)

    escaped = [printable(argument) for argument in arguments]
    if escaped == list(arguments):
        return parsed(arguments)
    try:
        with redirect_stderr(StringIO()):
            return parsed(arguments)
    except SystemExit as refused:
        if refused.code:
            parsed(escaped)
        raise


def _train_options(algo: str, in_full: bool) -> type[TrainOptions]:
    """The options of ``htm train`` with the defaults of an algorithm, for the help.

    In full, prints all and exits.
    """
    with as_usage_error("--algo: "):
        config = algorithm(algo).config
    shown = shown_options(flattened(asdict(config)))
    if in_full:
        with suppress(SystemExit):
            _cli(shown, "htm train", ["--help"], None)
        about = f"All options of {algo}: each as --set path=value, or under config in a file."
        written = {"use_underscores": True, "config": (tyro.conf.FlagConversionOff,)}
        with suppress(SystemExit), redirect_stdout(StringIO()) as text:
            _cli(type(config), "htm train", ["--help"], about, default=config, **written)
        print(re.sub("^( +)--", r"\1", text.getvalue(), flags=re.MULTILINE), end="")
        sys.exit(DONE)
    return shown


def _is_out_of_memory(error: Exception) -> bool:
    """True <--> no memory was given, by torch or by others."""
    by_torch = isinstance(error, RuntimeError) and re.search(OUT_OF_MEMORY, str(error))
    return bool(by_torch) or isinstance(error, MemoryError)


def _wanted(error: Exception) -> str:
    """What an error says of the memory that was asked for, in brackets, if anything."""
    said = re.split(r"\.?\s*\n|\. ", str(error).rpartition("Allocator: ")[2])[0]
    return f" ({said})" if said else ""


def _told(error: Exception) -> str:
    """An error in one line; what this project did not raise itself says how to see the place."""
    expected = isinstance(error, (ValueError, OSError, FloatingPointError))
    message = str(error) if expected else f"{type(error).__name__}: {error}"
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    ours = frame.f_globals.get("__name__", "").partition(".")[0] in PACKAGES
    return message if expected and ours else f"{message} (HTM_TRACEBACK=1 shows where)"


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Print warnings about runs as one line each, without the place in the code."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", RunWarning)
        show = warnings.showwarning

        def shown(message: Any, category: type[Warning], *place: Any, **other: Any) -> None:
            if issubclass(category, RunWarning):
                _say(str(message))
            else:
                show(message, category, *place, **other)

        warnings.showwarning = shown
        yield


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Print nothing of an ``OSError`` in a thread: whoever waits for the thread raises it too."""
    before = threading.excepthook

    def shown(raised: threading.ExceptHookArgs) -> None:
        if not issubclass(raised.exc_type, OSError):
            before(raised)

    threading.excepthook = shown
    try:
        yield
    finally:
        threading.excepthook = before


def _flush_output() -> None:
    """Write what was printed; where it cannot be written, the system is not to try it again."""
    try:
        sys.stdout.flush()
    except OSError as error:
        error.filename = "standard output"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _fail(message: str, status: int) -> int:
    _say(message)
    return status


def _say(message: str) -> None:
    print(f"htm: {one_line(message)}", file=sys.stderr)
