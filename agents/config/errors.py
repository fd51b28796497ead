"""Errors of wrong usage, warnings about runs, and checks of single options."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

MOST_LETTERS, CUT = 300, " [...] "
"""Letters of a message, as in ``htm_env.checks``, whose import loads torch."""

IN_USE = "is in use by process"
"""What the message about a folder that another process has locked says."""


class UsageError(Exception):
    """A command line that cannot be carried out."""


class RunWarning(UserWarning):
    """What whoever reads the results of a run should know; commands print it as one line."""


@contextmanager
def as_usage_error(place: str = "") -> Iterator[None]:
    """Raise a ``ValueError`` of this block as :class:`UsageError`, with its place in front."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{place}{error}") from None


def one_line(message: str) -> str:
    """A message in one line, with escapes for what no terminal should be sent, and without the
    middle of what is too long: the name of a file or of a field may be anything."""
    line = printable(" ".join(message.split()))
    half = (MOST_LETTERS - len(CUT)) // 2
    return line if len(line) <= MOST_LETTERS else f"{line[:half]}{CUT}{line[-half:]}"


def printable(text: str) -> str:
    """A text with escapes for the letters that no terminal should be sent."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A question to append to a message about an unknown name; empty where none is like it."""
    lower = {choice.lower(): choice for choice in choices}
    found = get_close_matches(name.lower(), lower, n=1)
    return f" (did you mean {lower[found[0]]!r}?)" if found else ""


def json_object(flag: str, text: str | None) -> dict[str, Any]:
    """The JSON object behind a flag, empty without one; :class:`UsageError` for anything else."""
    if text is None:
        return {}
    from htm_env.files import parse_json  # loads torch

    try:
        values = parse_json(text)
    except ValueError as error:
        raise UsageError(f"{flag} {text!r} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{flag} {text!r} is not a JSON object, such as '{{\"k\": 1}}'")
    return values


def check_at_least(least: int, **options: int | None) -> None:
    """Raise :class:`UsageError` naming the first option below ``least``, or beyond 64 bits, which
    no library takes; None is not given."""
    for name, value in options.items():
        if value is not None and not least <= value < 2**63:
            wanted = f"at least {least}" if value < least else "a number of 64 bits"
            raise UsageError(f"--{name.replace('_', '-')} is {value}; expected {wanted}")


def set_threads(count: int) -> None:
    """Let one operation of torch use so many threads."""
    import torch

    torch.set_num_threads(count)
