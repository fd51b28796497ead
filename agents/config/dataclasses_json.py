"""Frozen, nested configuration dataclasses as JSON, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from agents.config.errors import did_you_mean

Config = TypeVar("Config")
LARGEST = 2**20
"""Bound of the options that memory grows with: widths, samples, trees and copies of an update."""
MOST_SHOWN = 60
"""Letters of a wrong value that an error shows."""
JSON_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    dict: "an object",
    Path: "a path",
    type(None): "null",
}


def config_from_dict(config_class: type[Config], values: dict[str, Any]) -> Config:
    """The dataclass of which ``dataclasses.asdict`` gave ``values``, perhaps through JSON.

    A field that is missing takes its default. Raises ``ValueError`` naming a field that
    ``config_class`` does not have, whose value is not of its type, or that is missing and has no
    default.
    """
    checked = checked_fields(config_class, values)
    for field in fields(config_class):  # type: ignore[arg-type]
        required = field.default is MISSING and field.default_factory is MISSING
        if required and field.name not in checked:
            raise ValueError(f"{config_class.__name__} needs {field.name!r}")
    return config_class(**checked)


def checked_fields(config_class: type, values: dict[str, Any]) -> dict[str, Any]:
    """Values of some fields of a dataclass, as its fields hold them.

    Raises ``ValueError`` naming a field that ``config_class`` does not have, or whose value is not
    of its type.
    """
    known = [field.name for field in fields(config_class)]
    for name in values:
        if name not in known:
            raise ValueError(
                f"{config_class.__name__} has no field {name!r}{did_you_mean(name, known)}; "
                f"expected {known}"
            )
    hints, checked = get_type_hints(config_class), {}
    for name, value in values.items():
        try:
            checked[name] = _converted(hints[name], value)
        except TypeError:
            expected = " or ".join(_words(choice) for choice in _choices(hints[name]))
            shown = json.dumps(value, default=str)
            shown = shown if len(shown) <= MOST_SHOWN else f"{shown[:MOST_SHOWN]} ..."
            raise ValueError(f"{name} is {shown}; expected {expected}") from None
    return checked


def _converted(hint: Any, value: Any) -> Any:
    """A value of JSON as an object of the annotated type; ``TypeError`` where it is none.

    A whole number is a number, a truth value is not. A tuple has its own length, or any where the
    annotation ends in ``...``, and may be a single string.
    """
    if hint is Any:
        return value
    if get_origin(hint) in (Union, UnionType):
        for choice in get_args(hint):
            with suppress(TypeError):
                return _converted(choice, value)
    kind = get_origin(hint) or hint
    if is_dataclass(kind) and isinstance(value, dict):
        return config_from_dict(kind, value)  # type: ignore[arg-type]
    if kind is tuple and isinstance(value, str | list | tuple):
        items, inside = (value,) if isinstance(value, str) else value, get_args(hint)
        kinds = inside[:1] * len(items) if inside[-1] is Ellipsis else inside
        if len(kinds) == len(items):
            return tuple(map(_converted, kinds, items))
    elif kind is dict and isinstance(value, dict):
        of_value = (*get_args(hint), Any, Any)[1]
        return {name: _converted(of_value, item) for name, item in value.items()}
    elif kind is Literal:
        if isinstance(value, str | int | None) and value in get_args(hint):
            return value
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        with suppress(OverflowError):
            return float(value)
    elif kind is int and isinstance(value, int) and not -(2**63) <= value < 2**63:
        pass  # no library takes it
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise TypeError(f"{value!r} is no {hint}")


def _choices(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _words(choice: Any) -> str:
    """A type in the words of JSON."""
    if is_dataclass(choice):
        return f"an object with some of {[field.name for field in fields(choice)]}"
    if get_origin(choice) is tuple:
        inside = next(iter(get_args(choice)))
        return (
            "a list of lists" if get_origin(inside) is tuple else f"a list, each {_words(inside)}"
        )
    if get_origin(choice) is Literal:
        return " or ".join(map(json.dumps, get_args(choice)))
    return JSON_WORDS[get_origin(choice) or choice]


def merged(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with the changed ones in place of theirs."""
    return values | {
        name: merged(values[name], change)
        if isinstance(change, dict) and isinstance(values.get(name), dict)
        else change
        for name, change in changes.items()
    }


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted names as nested dicts; the inverse of :func:`flattened`."""
    result: dict[str, Any] = {}
    for path, value in values.items():
        for name in reversed(path.split(".")):
            value = {name: value}
        result = merged(result, value)
    return result


def check_bounds(config: Any, **bounds: float | int | tuple[float | int, float | int]) -> None:
    """Raise ``ValueError`` naming the first field that is not a number within its bounds.

    The bounds are the least value, or the least and the largest. A field that is declared as
    ``int`` takes whole numbers only.
    """
    whole = {field.name for field in fields(config) if field.type in ("int", int)}
    for name, bound in bounds.items():
        low, high = bound if isinstance(bound, tuple) else (bound, math.inf)
        value = getattr(config, name)
        if name in whole and not isinstance(value, int):
            raise ValueError(f"{name} is {value}; expected a whole number")
        if not (isinstance(value, int | float) and low <= value <= high):
            most = str(high) if isinstance(high, int) else f"{high:g}"
            upper = f" and at most {most}" if math.isfinite(high) else ""
            raise ValueError(f"{name} is {value}; expected at least {low:g}{upper}")
