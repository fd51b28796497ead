"""Frozen, nested configuration dataclasses as JSON, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")
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
            raise ValueError(f"{config_class.__name__} has no field {name!r}; expected {known}")
    hints = get_type_hints(config_class)
    restored = {name: _restored(hints[name], value) for name, value in values.items()}
    for name, value in restored.items():
        if not _fits(hints[name], value):
            expected = " or ".join(_words(choice) for choice in _choices(hints[name]))
            raise ValueError(f"{name} is {json.dumps(value, default=str)}; expected {expected}")
    return restored


def _restored(hint: Any, value: Any) -> Any:
    """A value of JSON as the annotation has it: dataclasses, tuples, paths and numbers."""
    choices = _choices(hint)
    if isinstance(value, dict):
        for choice in choices:
            if is_dataclass(choice):
                return config_from_dict(choice, value)  # type: ignore[arg-type]
    if isinstance(value, str) and get_origin(hint) is tuple:  # one name may stand for itself
        value = (value,)
    if isinstance(value, str) and Path in choices:
        return Path(value)
    if isinstance(value, list | tuple):
        kinds = next((get_args(choice) for choice in choices if get_origin(choice) is tuple), ())
        inside = kinds[:1] * len(value) if kinds[-1:] == (Ellipsis,) else kinds
        if len(inside) != len(value):  # refused later, by its length
            inside = (None,) * len(value)
        return tuple(map(_restored, inside, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value) if float in choices and int not in choices else value
    return value


def _choices(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of the annotated type; a whole number is a number, a truth value is none.

    A tuple has a length of its own, or any where the annotation ends in ``...``.
    """
    for choice in _choices(hint):
        if get_origin(choice) is tuple:
            inside = get_args(choice)
            if not isinstance(value, tuple):
                continue
            kinds = inside[:1] * len(value) if inside[-1] is Ellipsis else inside
            if len(kinds) == len(value) and all(map(_fits, kinds, value)):
                return True
        elif get_origin(choice) is Literal:
            if value in get_args(choice):
                return True
        elif isinstance(value, bool):
            if choice is bool:
                return True
        elif isinstance(value, (int, float) if choice is float else get_origin(choice) or choice):
            return True
    return False


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
        *outer, name = path.split(".")
        inside: dict[str, Any] = {name: value}
        for part in reversed(outer):
            inside = {part: inside}
        result = merged(result, inside)
    return result


def check_bounds(config: Any, **bounds: tuple[float | int, float | int]) -> None:
    """Raise ``ValueError`` naming the first field that is not a number within its bounds.

    A field that is declared as ``int`` takes whole numbers only.
    """
    whole = {field.name for field in fields(config) if field.type in ("int", int)}
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if name in whole and not isinstance(value, int):
            raise ValueError(f"{name} is {value}; expected a whole number")
        if not (isinstance(value, int | float) and low <= value <= high):
            upper = f" and at most {high:g}" if math.isfinite(high) else ""
            raise ValueError(f"{name} is {value}; expected at least {low:g}{upper}")
