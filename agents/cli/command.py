"""The command ``htm``: from its arguments to its exit status."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any, Union

import tyro

from agents.cli.options import (
    BenchOptions,
    EmbedOptions,
    EvaluateOptions,
    PlotOptions,
    PretrainOptions,
    TrainOptions,
    ViewOptions,
    train_options,
)
from agents.cli.train import resumed_options
from agents.comparison.options import CompareOptions
from agents.config.errors import UsageError
from agents.generation.options import GenerateOptions
from agents.registry import algorithm
from agents.runs.interruption import terminate_as_interrupt

TRAIN = inspect.cleandoc(TrainOptions.__doc__ or "")
COMMANDS = {
    EvaluateOptions: "agents.cli.train:evaluate_run",
    CompareOptions: "agents.comparison.compare:compare",
    PlotOptions: "agents.cli.plot:plot",
    ViewOptions: "agents.cli.view:view",
    EmbedOptions: "agents.cli.embed:embed",
    GenerateOptions: "agents.generation.generate:generate_run",
    PretrainOptions: "agents.cli.pretrain:pretrain",
    BenchOptions: "agents.cli.bench:bench",
}
"""What each command does, imported when it is asked for; ``train``, whose options depend on the
algorithm, is the other one."""
SUBCOMMANDS = {kind.__name__.removesuffix("Options").lower(): kind for kind in COMMANDS}
DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns 0 when it is done, 1 when it failed, 2 for wrong usage, 130 when it was interrupted
    (with the checkpoint written); all but 0 say why in one line on standard error.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with terminate_as_interrupt():
            options = parse(arguments)
            _command(options)(options)
    except UsageError as error:
        return _fail(str(error), WRONG_USAGE)
    except KeyboardInterrupt as interruption:
        return _fail(str(interruption) or "interrupted", INTERRUPTED)
    except (ValueError, OSError, FloatingPointError) as error:
        return _fail(str(error), FAILED)
    except Exception as error:  # a defect: still one line, and the place for who asks
        if os.environ.get("HTM_TRACEBACK"):
            traceback.print_exc()
        return _fail(f"{type(error).__name__}: {error} (HTM_TRACEBACK=1 shows where)", FAILED)
    return DONE


def parse(arguments: Sequence[str]) -> Any:
    """The options of the command; exits with status 2 where they cannot be read.

    Which flags ``htm train`` has depends on the algorithm, and their defaults on a run to resume,
    so these two are looked up first. Raises :class:`UsageError` for an unknown algorithm, and for
    numbers out of range.
    """
    resume = _value_of("--resume", arguments)
    defaults = None if resume is None else resumed_options(resume)
    if defaults is None:
        name = _value_of("--algo", arguments) or "reinforce"
        try:
            defaults = train_options(algorithm(name).config)
        except ValueError as error:
            raise UsageError(f"--algo: {error}") from None
    training = tyro.conf.subcommand("train", default=defaults, description=TRAIN)
    union: Any = Union[  # made while running, so mypy cannot follow
        Annotated[type(defaults), training],
        *(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in SUBCOMMANDS.items()),
    ]
    try:
        return tyro.cli(
            union,
            prog="htm",
            description="Learn to merge sets of tokens into trees.",
            args=list(arguments),
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except ValueError as error:  # a configuration that refuses a number
        raise UsageError(str(error)) from None


def _command(options: Any) -> Callable[[Any], None]:
    module, _, name = COMMANDS.get(type(options), "agents.cli.train:train").partition(":")
    return getattr(import_module(module), name)


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """What stands behind a flag, as ``--flag value`` or ``--flag=value``; None without it."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == flag:
            return value if equals else next(iter(arguments[position + 1 :]), None)
    return None


def _fail(message: str, status: int) -> int:
    print(f"htm: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
