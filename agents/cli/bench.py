"""``htm bench``: the benchmarks, which are part of the repository, not of the package."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from agents.cli.options import BenchOptions
from agents.config.errors import as_usage_error
from htm_env.files import check_writable


def bench(options: BenchOptions) -> None:
    """Lists or runs benchmarks.

    Raises :class:`UsageError` for an unknown name and for a device that is not there or that a
    benchmark does not know, ``FileNotFoundError`` where there are no benchmarks or no folder for
    the JSON file, and ``ChildProcessError`` where one failed.
    """
    if find_spec("benchmarks") is None or find_spec("benchmarks.running") is None:
        raise FileNotFoundError(
            "the benchmarks are not part of the installed package; htm bench needs a checkout of "
            "the repository, installed with make install"
        )
    running = import_module("benchmarks.running")
    if options.list:
        print(running.listing())
        return
    with as_usage_error():
        running.chosen(options.names, options.quick, options.device)
    if options.json is not None and not options.json.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(options.json.parent)!r} for --json")
    if options.json is not None:
        check_writable(options.json.parent)
    running.run(options.names, options.quick, options.json, options.device)
