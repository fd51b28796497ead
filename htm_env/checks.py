"""Checks of numbers and names that people pass: each error names the parameter and its value."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

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


def at_least(low: int, **values: float | int) -> None:
    """Raise ``ValueError`` naming the first of the values that is less, or no number."""
    for name, value in values.items():
        if not value >= low:
            raise ValueError(f"{name} is {value}; expected at least {low:g}")


def check_choice(what: str, name: Any, choices: Collection[Any]) -> None:
    """Raise ``ValueError``, with the choices, for a name of ``what`` that is none of them."""
    if name not in choices:
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
    if isinstance(value, bool | str):
        raise ValueError(f"{name} is {value!r}: expected a number")
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}: expected a number") from None
    if not math.isfinite(result) or not low <= result <= high:
        wanted = f" from {low:g} to {high:g}" if math.isfinite(high) else f" of at least {low:g}"
        wanted = wanted if math.isfinite(low) else ""
        raise ValueError(f"{name} is {value!r}: expected a finite number{wanted}")
    return result


def positive(name: str, value: Any) -> float:
    """``value`` as a float above zero; raises ``ValueError`` otherwise."""
    result = number(name, value, -math.inf)
    if result <= 0.0:
        raise ValueError(f"{name} is {value!r}: expected a number above 0")
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
    if isinstance(value, bool) or not low <= result <= high:
        raise ValueError(f"{name} is {value!r}: expected a whole number from {low} to {high}")
    return result


def keywords(owner: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Raises ``ValueError`` naming the first given keyword that ``owner`` does not have."""
    for keyword in given:
        if keyword not in known:
            choices = ", ".join(known) or "no keywords"
            like = did_you_mean(keyword, known)
            raise ValueError(f"{owner} has no keyword {keyword!r}: expected {choices}{like}")
