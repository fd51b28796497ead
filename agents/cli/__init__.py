"""The command line ``htm``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from agents.runs.interruption import (
    Terminated,
    follow_owner,
    handled,
    raise_at_once,
    starting_up,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit status.

    0: done; 1: failed; 2: wrong usage; 130: interrupted by Ctrl-C, 143: by SIGTERM (training with
    its checkpoint written). All but 0 say why in one line on standard error.
    """
    try:
        with handled(raise_at_once, signal.SIGINT, signal.SIGTERM):
            follow_owner()
            with starting_up():
                from agents.cli.command import run

            return run(sys.argv[1:] if arguments is None else arguments)
    except Terminated as interruption:
        return _interrupted(interruption, 128 + signal.SIGTERM)
    except KeyboardInterrupt as interruption:
        return _interrupted(interruption, 128 + signal.SIGINT)


def _interrupted(interruption: KeyboardInterrupt, status: int) -> int:
    from agents.config.errors import one_line

    print(f"htm: {one_line(str(interruption) or 'interrupted')}", file=sys.stderr)
    return status


__all__ = ["main"]
