"""Benchmarks by name, or all throughput benchmarks: ``python -m benchmarks [NAME ...]``."""

from __future__ import annotations

import argparse
import sys

from benchmarks import running
from benchmarks.measuring import add_device


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help="see --list; without any, those with a star")
    parser.add_argument("--list", action="store_true", help="say which there are")
    parser.add_argument("--quick", action="store_true", help="a first look, in minutes")
    add_device(parser)
    options = parser.parse_args(arguments)
    try:
        if options.list:
            print(running.listing())
        else:
            running.run(options.names, options.quick, device=options.device)
    except (ValueError, ChildProcessError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
