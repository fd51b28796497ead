"""Checks of numbers and names that people pass: each error names the parameter and its value."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    # What a checked field holds.
    Choices = tuple[int, ...]
    Angles = tuple[float, float]
    Real = float
    Whole = int
else:
    # What people may pass to it: anything, since the checks below answer better than a type.
    Choices = Angles = Real = Whole = Any

MOST_LETTERS, CUT = 300, " [...] "
"""Letters of a message about a file, and what is in the place of those that are left out."""


def at_least(low: int, **values: float | int) -> None:
    """Raise ``ValueError`` naming the first of the values that is less, or no number."""
    for name, value in values.items():
        try:
            enough = bool(value >= low)
        except (TypeError, ValueError):
            enough = False
        if not enough:
            raise ValueError(f"{name} is {value!r}; expected at least {low:g}")


def brief(text: object) -> str:
    """A text in one line of at most 300 letters, whatever a file has put into it.

    What is no printable letter is written as its escape; what is too long loses its middle, so that
    the name of a file at the start and what was expected at the end stay.
    """
    line = _shortened(" ".join(str(text).split()))
    if line.isprintable():
        return line
    escaped = (
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in line
    )
    return _shortened("".join(escaped))


def _shortened(line: str) -> str:
    if len(line) <= MOST_LETTERS:
        return line
    half = (MOST_LETTERS - len(CUT)) // 2
    return f"{line[:half]}{CUT}{line[-half:]}"


@contextmanager
def briefly() -> Iterator[None]:
    """Raise a ``ValueError`` of this block with a :func:`brief` message."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        if brief(text) == text:
            raise
        raise ValueError(brief(text)) from error


def check_choice(what: str, name: Any, choices: Collection[Any]) -> None:
    """Raise ``ValueError``, with the choices, for a name of ``what`` that is none of them."""
    try:
        known = name in list(choices)
    except ValueError:  # an array is equal to nothing and to everything
        known = False
    if not known:
        like = did_you_mean(name, choices)
        raise ValueError(f"unknown {what} {name!r}; choose from {list(choices)}{like}")


def did_you_mean(name: Any, choices: Iterable[Any]) -> str:
    """A question to append to a message about an unknown name; empty where none is like it."""
    lower = {choice.lower(): choice for choice in choices if isinstance(choice, str)}
    found = get_close_matches(name.lower(), lower, n=1) if isinstance(name, str) else []
    return f" (did you mean {lower[found[0]]!r}?)" if found else ""


def check_finite(roots: Float[Tensor, "S D"]) -> None:
    """Raise ``ValueError`` naming the first root that is not finite."""
    if not roots.isfinite().all():
        row = int((~roots.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"root {row} is not finite: {roots[row].tolist()}")


def number(name: str, value: Any, low: float, high: float = math.inf) -> float:
    """``value`` as a float within ``[low, high]``; raises ``ValueError`` otherwise."""
    if isinstance(value, bool | str | bytes):
        raise ValueError(f"{name} is {value!r}: expected a number")
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is {value!r}: expected a number") from None
    if not math.isfinite(result) or not low <= result <= high:
        wanted = f" from {low:g} to {high:g}" if math.isfinite(high) else f" of at least {low:g}"
        wanted = wanted if math.isfinite(low) else ""
        raise ValueError(f"{name} is {value!r}: expected a finite number{wanted}")
    return result


def positive(name: str, value: Any, high: float = math.inf) -> float:
    """``value`` as a float above zero, ``high`` at most; raises ``ValueError`` otherwise."""
    result = number(name, value, -math.inf)
    if not 0.0 < result <= high:
        most = f" and at most {high:g}" if math.isfinite(high) else ""
        raise ValueError(f"{name} is {value!r}: expected a number above 0{most}")
    return result


def whole_numbers(name: str, value: Any, low: int, high: int) -> tuple[int, ...]:
    """The choices of a per-sample count: an int, or a sequence of ints within ``[low, high]``.

    Raises ``ValueError`` where there is no choice, or one is not a whole number in the range.
    """
    choices = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if not choices:
        raise ValueError(f"{name} is {value!r}: expected at least one choice")
    return tuple(whole_number(name, choice, low, high) for choice in choices)


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """``value`` as an int within ``[low, high]``; raises ``ValueError`` otherwise."""
    try:
        result = operator.index(value)
    except TypeError:
        result = low - 1
    if isinstance(value, bool | np.bool_) or not low <= result <= high:
        raise ValueError(f"{name} is {value!r}: expected a whole number from {low} to {high}")
    return result


def seed(value: Any) -> int:
    """The seed of a generator as an int; raises ``ValueError`` for a fraction, a text, a truth
    value, or a number below 0."""
    return whole_number("seed", value, 0, 2**128)


def keywords(owner: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Raises ``ValueError`` naming the first given keyword that ``owner`` does not have."""
    for keyword in given:
        if keyword not in known:
            choices = ", ".join(known) or "no keywords"
            like = did_you_mean(keyword, known)
            raise ValueError(f"{owner} has no keyword {keyword!r}: expected {choices}{like}")
